"""People's answers held against models: is the predicted IoU right, and what did the answers teach?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.evaluate.bootstrap import ALL_TASKS
from engine.learn.answers import LEARNT_UNTIL, is_kept_out
from engine.masks.rle import mask_iou
from engine.report.round_scope import RoundScope
from engine.store.people import JUDGED, SAME_OBJECT
from engine.triage.accept_error import bound_share
from engine.uncertainty.calibration import measure_reliability

if TYPE_CHECKING:
    from engine.store.snapshot import Snapshot

_BINS = 10
_PAGE = 200  # images whose masks are held at once
# Of several answers to one mask one counts, as in fine-tuning; a mask that was taken away is an object of no pixels.
_ASKED = f"""
    SELECT l.mask_id, l.image_id, l.rle, l.height, l.width, coalesce(l.iou, 0) AS iou, l.model, m.rle AS shown,
           min(l.pulled_at) OVER (PARTITION BY l.image_id) AS pulled_at
    FROM (FROM labels WHERE mask_id IS NOT NULL AND verdict IN {JUDGED} AND pulled_at < $until
          AND (iou IS NOT NULL OR verdict IN ('no object', 'deleted'))
          QUALIFY row_number() OVER (PARTITION BY mask_id ORDER BY agreement DESC NULLS LAST, answered_at DESC) = 1) l
    JOIN masks m ON m.mask_id = l.mask_id AND m.model = l.model AND m.image_id = l.image_id
    ORDER BY l.image_id, l.mask_id
"""
_MASKS = """
    SELECT mask_id, image_id, rle, predicted_iou, height, width FROM masks
    WHERE model = $model AND list_contains($images::VARCHAR[], image_id) AND predicted_iou IS NOT NULL
      AND (replaced_by IS NULL OR list_contains($shown::VARCHAR[], mask_id))
"""
# Heads are fitted after the weights, to all answers that are there by then; what scored an image is older than its rows.
_SCORED_AT = """
    SELECT image_id, max(committed_at) AS scored_at FROM images
    WHERE model = $model AND image_id IN (SELECT image_id FROM labels) GROUP BY image_id
"""
_MODEL = f"SELECT parent, {LEARNT_UNTIL} AS learnt_until FROM models WHERE model = $model"
_VERSIONS = f"""
    SELECT m.model, m.parent, m.metrics, m.created_at, p.action, p.numbers,
           (SELECT count(*) FROM labels WHERE verdict IN {JUDGED} AND pulled_at <= m.learnt_until) AS answers
    FROM (SELECT *, {LEARNT_UNTIL} AS learnt_until FROM models) m LEFT JOIN (FROM promotions WHERE action <> 'restored'
                             QUALIFY row_number() OVER (PARTITION BY model ORDER BY decided_at DESC) = 1) p USING (model)
    WHERE m.parent IS NOT NULL AND m.created_at < $until AND split_part(m.model, '@', 1) = $name
    ORDER BY m.created_at
"""


@dataclass(frozen=True)
class Calibration:
    """The predicted IoU of a model's masks against their IoU with people's answers, in bins of the prediction.

    Attributes:
        model: name@version.
        predicted, true: mean of each bin, 0..1.
        low, high: Clopper-Pearson bounds of the true one, as of so many yes-or-no answers: an IoU varies less, so
            they are rather too wide.
        count: masks in each bin.
        error: mean distance between the two, weighted by the counts.
        learnt: masks that were left out because the model, or the heads that score its masks, may have learnt from their images.
        unmatched: masks that were asked about and that the model has nothing like.
    """

    model: str
    predicted: tuple[float, ...]
    true: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    count: tuple[int, ...]
    error: float
    learnt: int
    unmatched: int


@dataclass(frozen=True)
class TaughtVersion:
    """A version that was fine-tuned, and how it was judged.

    Attributes:
        answers: masks that people had answered for when it was made.
        before, after: IoU on the held-out images of its fine-tuning, of its parent and its own; None without any.
        action: promoted, refused, or None for one that was not judged.
        gain: of mean IoU over all tasks and clicks, as the gate measured it.
    """

    model: str
    parent: str
    created_at: datetime
    answers: int
    before: float | None
    after: float | None
    action: str | None
    gain: float | None


def measure_calibrations(snapshot: Snapshot, scope: RoundScope) -> list[Calibration]:
    """Of each of the models that the round compares, where people answered for masks like its own."""
    asked = snapshot.rows(_ASKED, {"until": scope.until})
    measured = (_measure(snapshot, model, asked) for model in scope.compared)
    return [of for of in measured if of.count]


def read_versions(snapshot: Snapshot, scope: RoundScope) -> list[TaughtVersion]:
    """Versions of the round's model that were fine-tuned until its end, the oldest first."""
    return [
        _read_version(row) for row in snapshot.rows(_VERSIONS, {"name": scope.name, "until": scope.until})
    ]


def _measure(snapshot: Snapshot, model: str, asked: Sequence[Mapping[str, Any]]) -> Calibration:
    rows = snapshot.rows(_MODEL, {"model": model})
    fair = asked
    if rows and rows[0]["parent"]:
        known = {of["image_id"]: of["scored_at"] for of in snapshot.rows(_SCORED_AT, {"model": model})}
        taught = rows[0]["learnt_until"]
        fair = [
            row
            for row in asked
            if is_kept_out(row["image_id"])
            or row["pulled_at"] > max(taught, known.get(row["image_id"], taught))
        ]
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for row in fair:
        by_image.setdefault(row["image_id"], []).append(row)
    images, pairs = list(by_image), []
    for start in range(0, len(images), _PAGE):
        page = images[start : start + _PAGE]
        shown = [row["mask_id"] for image_id in page for row in by_image[image_id]]
        masks: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in page}
        for mask in snapshot.rows(_MASKS, {"model": model, "images": page, "shown": shown}):
            masks[mask["image_id"]].append(mask)
        for image_id in page:
            pairs += _match(model, by_image[image_id], masks[image_id])
    predicted, true = np.array(pairs, float).reshape(-1, 2).T
    bins = measure_reliability(predicted, true, _BINS)
    bounds = [bound_share(share * count, count) for share, count in zip(bins.true, bins.count, strict=True)]
    return Calibration(
        model=model,
        predicted=bins.predicted,
        true=bins.true,
        low=tuple(low for low, _ in bounds),
        high=tuple(high for _, high in bounds),
        count=bins.count,
        error=bins.error,
        learnt=len(asked) - len(fair),
        unmatched=len(fair) - len(pairs),
    )


def _match(
    model: str, asked: Sequence[Mapping[str, Any]], masks: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    """Predicted and true IoU of the model's own mask for each one that was asked about: the very one, or, of another
    model's, the mask that lies most on it. To look at the answer for it would choose masks for being true."""
    by_id = {mask["mask_id"]: mask for mask in masks}
    pairs = []
    for row in asked:
        if row["model"] == model:
            if mask := by_id.get(row["mask_id"]):
                pairs.append((mask["predicted_iou"], row["iou"]))
            continue
        size = row["height"], row["width"]
        others = [mask for mask in masks if (mask["height"], mask["width"]) == size]
        if not others:
            continue
        like_N = mask_iou([mask["rle"] for mask in others], [row["shown"]], *size)[:, 0]
        best = others[int(like_N.argmax())]
        if like_N.max() > SAME_OBJECT:
            true = mask_iou([best["rle"]], [row["rle"]], *size)[0, 0] if row["rle"] else 0.0
            pairs.append((best["predicted_iou"], float(true)))
    return pairs


def _read_version(row: Mapping[str, Any]) -> TaughtVersion:
    metrics = json.loads(row["metrics"] or "{}")
    looks = {look["step"]: float(look["iou"]) for look in metrics.get("history", ())}
    judged = any(looks.values())  # without held-out images every look says 0
    numbers = json.loads(row["numbers"] or "{}").get("differences", ())
    gains = [of["mean"] for of in numbers if of["task"] == ALL_TASKS and of["metric"] == "miou"]
    return TaughtVersion(
        model=row["model"],
        parent=row["parent"],
        created_at=row["created_at"],
        answers=row["answers"],
        before=looks[0] if judged else None,
        after=looks[metrics["step"]] if judged else None,
        action=row["action"],
        gain=float(np.mean(gains)) if gains else None,
    )
