"""How many of the accepted masks are wrong, as people say of a random share of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.triage.acquisition import FROM_ACCEPTED

if TYPE_CHECKING:
    from engine.store import Store

# A mask counts once: where several people answered, most of them decide, and a tie is wrong.
_ANSWERS = """
    WITH drawn AS (
        SELECT DISTINCT mask_id FROM
            (SELECT unnest(mask_ids) AS mask_id, unnest(chosen_by) AS chosen_by FROM reviews WHERE model = $model)
        WHERE chosen_by = $chosen_by),
    answers AS (
        SELECT mask_id, avg(CASE WHEN verdict IN ('no object', 'deleted') THEN 1
            WHEN coalesce(iou, CASE verdict WHEN 'correct' THEN 1 END) < $good_iou THEN 1 ELSE 0 END) AS wrong
        FROM labels WHERE verdict IN ('correct', 'fixed', 'no object', 'deleted') GROUP BY mask_id)
    SELECT count(*) AS drawn, count(wrong) AS n, count(*) FILTER (wrong >= 0.5) AS wrong
    FROM drawn LEFT JOIN answers USING (mask_id)
"""
_LEVEL = 0.95


@dataclass(frozen=True)
class AcceptError:
    """What people said of accepted masks that were drawn at random.

    Attributes:
        rate: share of the accepted masks that is wrong, 0..1; None where nothing drawn was answered.
        low, high: Clopper-Pearson interval of the rate, 95 %.
        n: masks that were drawn and answered.
        wrong: of these.
        drawn: masks that were drawn, answered or not.
    """

    rate: float | None
    low: float | None
    high: float | None
    n: int
    wrong: int
    drawn: int


def estimate_accept_error(store: Store, model: str, good_iou: float) -> AcceptError:
    """The share of a model's accepted masks that is wrong, from the random share of what people were asked.

    It is of those that nobody was asked about and that show no object that people had answered for (IoU above a half with what
    they were shown or made of it, whichever model's mask it was): an answer says more of such an object than a draw, and nobody is asked about
    it again. Of these it is unbiased, because every one that was accepted when it was drawn was as likely to be drawn, whatever
    its score, image or likeness to others, and the strategies never choose among the accepted ones. It is of the masks as they were accepted at
    the time of each draw: a draw under other thresholds tells of those. Drawn masks are asked about in the order of the draw, between
    the others, so those that are answered (`n` of `drawn`) are a random sample at any time. It is not unbiased

    - where people skip what is hard: skipped and withdrawn answers do not count;
    - where the people themselves err: a mask left as it is counts as good.

    Wrong is a mask that people took away or called no object, or whose IoU with what they made of it is below `good_iou`.
    The interval (Clopper and Pearson, Biometrika 1934) holds the truth in at least 95 % of draws, and in more where much
    of what was accepted was drawn.

    Args:
        store: with the answers pulled.
        model: whose masks, name@version.
        good_iou: IoU from which a mask is good, 0..1.
    """
    asked: dict[str, Any] = {"model": model, "chosen_by": FROM_ACCEPTED, "good_iou": good_iou}
    [row] = store.read(lambda snapshot: snapshot.rows(_ANSWERS, asked))
    n, wrong = int(row["n"]), int(row["wrong"])
    if not n:
        return AcceptError(None, None, None, 0, 0, int(row["drawn"]))
    low, high = bound_share(wrong, n)
    return AcceptError(wrong / n, low, high, n, wrong, int(row["drawn"]))


def bound_share(count: float, n: int) -> tuple[float, float]:
    """Lower and upper end, 0..1, of the 95 % interval (Clopper-Pearson) of a share of which `count` of `n` were seen.

    Exact for whole counts; others, as a sum of IoUs is, are taken for so many of them.
    """
    from scipy.stats import beta

    tail = (1 - _LEVEL) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count > 0 else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high
