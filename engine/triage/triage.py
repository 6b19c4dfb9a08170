"""Decide on every mask of a model that holds and whose object nobody has answered for, and write the decisions down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from engine.store.connection import explained
from engine.store.layout import new_attempt
from engine.store.people import ANSWERED, WAITING, find_answered
from engine.triage.costs import Costs
from engine.triage.decisions import DECISIONS, REMEDIES, Decided, decide_masks
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_ROWS_AT_ONCE = 500_000
_WHERE = f"""
    m.model = $model AND m.replaced_by IS NULL AND m.mask_id NOT IN ({ANSWERED}) AND m.mask_id NOT IN (SELECT unnest($answered::VARCHAR[]))
"""
_SCORED = "m.predicted_iou IS NOT NULL AND NOT isnan(m.predicted_iou)"
# A remedy is spent on a mask where it was tried on it, or made it, or made the one it was made of, and where people are asked.
_SPENT = ", ".join(
    f"""coalesce(list_contains(t.tried, '{remedy}'), false) OR m.repair IS NOT DISTINCT FROM '{remedy}'
        OR p.repair IS NOT DISTINCT FROM '{remedy}' OR m.mask_id IN ({WAITING}) AS "{remedy}"
    """
    for remedy in REMEDIES
)
_MASKS = f"""
    SELECT m.mask_id, m.image_id, m.predicted_iou, m.repair IS NOT NULL AS mended, m.model_gap, m.prompt_gap, {_SPENT}
    FROM masks m
    LEFT JOIN (SELECT parent_mask_id, list(repair) AS tried FROM masks WHERE model = $model AND parent_mask_id IS NOT NULL
               GROUP BY parent_mask_id) t ON t.parent_mask_id = m.mask_id
    LEFT JOIN (SELECT mask_id, repair FROM masks WHERE model = $model AND repair IS NOT NULL) p ON p.mask_id = m.parent_mask_id
    WHERE {_WHERE} AND {_SCORED}
"""
_UNDECIDED = f"""
    SELECT count(*) AS masks FROM masks m
    WHERE {_WHERE} AND {_SCORED} AND m.mask_id NOT IN (SELECT mask_id FROM decisions WHERE model = $model)
"""
_COUNTS = f"SELECT count(*) AS masks, count(*) FILTER ({_SCORED}) AS scored FROM masks m WHERE {_WHERE}"


@dataclass(frozen=True)
class DecisionTotal:
    """What is decided of some masks together: how many, their mean p_good, and summed cost and gain, seconds of a person."""

    decision: str
    masks: int
    p_good: float
    cost: float
    gain: float


def triage_masks(
    store: Store,
    model: str,
    costs: Costs,
    remedies: tuple[str, ...] = tuple(REMEDIES),
    *,
    write: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[DecisionTotal]:
    """Decide on the masks of a model; returns the totals, in the order of `DECISIONS`.

    Masks of objects that people have answered for (see `find_answered`) are not among them. Masks that wait for people are for them,
    or accepted: no machine touches them. Masks without a predicted_iou are left out
    (`count_unscored`). What is decided is seen when all of it is: killed in the middle, everything shows its earlier decision.

    Args:
        store: with masks that heads have scored.
        model: whose masks, name@version.
        costs: what each way costs.
        remedies: those of `REMEDIES` that can be had.
        write: to the table `decisions`; else only the totals are made.
        progress: called with (masks decided, masks in all).

    Raises:
        ConfigError: none of the masks has a predicted_iou.
    """

    def run(snapshot: Snapshot) -> list[DecisionTotal]:
        asked = _ask_about(snapshot, model)
        (count,) = snapshot.rows(_COUNTS, asked)
        if count["masks"] and not count["scored"]:
            raise ConfigError(
                f"The masks of {model} have no predicted_iou to decide by. Fit heads (gapmap fit-heads --model …), and label again."
            )
        triage_id, done = new_attempt(), 0
        totals = np.zeros((len(DECISIONS), 4))  # masks, p_good, cost, gain

        def rows() -> Iterator[pa.Table]:
            nonlocal done
            # Explained here: where they are written, an OSError would be the file's.
            with explained(store.files, snapshot.paths):
                for batch in snapshot.con.sql(_MASKS, params=asked).to_arrow_reader(_ROWS_AT_ONCE):
                    decided = _decide(batch, costs, remedies)
                    for place in range(len(DECISIONS)):
                        of_N = decided.decision_N == place
                        sums = [of[of_N].sum() for of in (decided.p_good_N, decided.cost_N, decided.gain_N)]
                        totals[place] += [of_N.sum(), *sums]
                    yield _table(batch, triage_id, decided)
                    done += batch.num_rows
                    if progress:
                        progress(done, count["scored"])

        if write and count["scored"]:
            # Of an image the newest triage is seen alone: one in part would hide decisions that it has none for.
            store.append_tables("decisions", model, rows())
        else:
            deque(rows(), maxlen=0)
        return [
            DecisionTotal(name, int(masks), p_good / max(masks, 1), cost, gain)
            for name, (masks, p_good, cost, gain) in zip(DECISIONS, totals.tolist(), strict=True)
        ]

    return store.read(run)


def count_unscored(store: Store, model: str) -> int:
    """Masks of a model that could be decided on, but for want of a predicted_iou: labelled without heads."""
    (count,) = store.read(lambda snapshot: snapshot.rows(_COUNTS, _ask_about(snapshot, model)))
    return int(count["masks"] - count["scored"])


def count_undecided(store: Store, model: str) -> int:
    """Masks of a model that a triage would decide on and that none has: labelled since, whoever did."""
    (count,) = store.read(lambda snapshot: snapshot.rows(_UNDECIDED, _ask_about(snapshot, model)))
    return int(count["masks"])


def _ask_about(snapshot: Snapshot, model: str) -> dict[str, Any]:
    """What the queries are asked with."""
    return {"model": model, "answered": sorted(find_answered(snapshot, model))}


def _decide(batch: pa.RecordBatch, costs: Costs, remedies: tuple[str, ...]) -> Decided:
    gaps = {remedy: _floats(batch, REMEDIES[remedy]) for remedy in remedies}
    tried = {remedy: batch[remedy].to_numpy(zero_copy_only=False).astype(bool) for remedy in remedies}
    mended_N = batch["mended"].to_numpy(zero_copy_only=False).astype(bool)
    return decide_masks(costs.expect_iou(_floats(batch, "predicted_iou"), mended_N), gaps, tried, costs)


def _table(batch: pa.RecordBatch, triage_id: str, decided: Decided) -> pa.Table:
    count = batch.num_rows
    columns: dict[str, Any] = {
        "triage_id": pa.repeat(pa.scalar(triage_id), count),
        "mask_id": batch["mask_id"],
        "image_id": batch["image_id"],
        "decision": pa.array(np.array(DECISIONS)[decided.decision_N]),
        "p_good": decided.p_good_N,
        "cost": decided.cost_N,
        "gain": decided.gain_N,
        "decided_at": pa.repeat(pa.scalar(datetime.now(UTC)), count),
    }
    return pa.table(columns)


def _floats(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
