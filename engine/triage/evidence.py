"""What people's answers say of scores, of their own time, and of what mending brought."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.masks.rle import mask_iou
from engine.store.people import JUDGED
from engine.triage.costs import Evidence
from engine.triage.decisions import REMEDIES

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

# A mask that is not there, or was taken away, has no IoU with anything, and one that people added has none with what was shown;
# one that was left as it was is right.
_TRUE_IOU = "CASE WHEN verdict IN ('no object', 'deleted', 'new') THEN 0 WHEN verdict = 'correct' THEN coalesce(iou, 1) ELSE iou END"
_ANSWERS = f"""
    SELECT m.predicted_iou, {_TRUE_IOU} AS true_iou, m.repair IS NOT NULL AS mended
    FROM labels l JOIN (SELECT DISTINCT ON (mask_id) mask_id, predicted_iou, repair FROM masks
                        WHERE mask_id IN (SELECT mask_id FROM labels)) m USING (mask_id)
    WHERE m.predicted_iou IS NOT NULL AND NOT isnan(m.predicted_iou) AND true_iou IS NOT NULL
      AND l.verdict IN ('correct', 'fixed', 'no object', 'deleted')
"""
_TASKS = f"""
    SELECT list(coalesce({_TRUE_IOU}, 0)) AS ious, any_value(seconds) AS seconds
    FROM labels WHERE seconds IS NOT NULL AND verdict IN {JUDGED}
    GROUP BY queue, task_id, annotation_id
"""
# What people answered for is the mask that was made, or whichever holds in its stead by now. Of masks that were mended the answer
# tells the true gain; of those that could not be, and where people took the mask away, it is none.
_MENDED = """
    WITH RECURSIVE made AS (FROM masks WHERE repair IS NOT NULL),
    stands AS (
        SELECT mask_id, model, mask_id AS place FROM made
        UNION
        SELECT s.mask_id, s.model, m.replaced_by FROM stands s JOIN masks m ON m.mask_id = s.place AND m.model = s.model
        WHERE m.replaced_by IS NOT NULL
    )
    SELECT c.repair, p.model_gap, p.prompt_gap, l.rle AS truth, c.rle AS mended, p.rle AS parent, c.height, c.width,
           p.replaced_by IS NOT DISTINCT FROM c.mask_id AS held
    FROM made c JOIN masks p ON p.mask_id = c.parent_mask_id AND p.model = c.model
    JOIN stands s ON s.mask_id = c.mask_id AND s.model = c.model
    JOIN labels l ON l.mask_id = s.place
    WHERE l.verdict IN ('no object', 'deleted')
       OR (l.verdict IN ('correct', 'fixed') AND l.rle IS NOT NULL AND l.height = c.height AND l.width = c.width)
"""
_MACHINE = "SELECT numbers FROM rounds WHERE step = 'triage' ORDER BY ended_at DESC LIMIT 10"


def read_evidence(store: Store) -> Evidence:
    """All that the answers of a store say, whichever model's masks they are about: the scores are calibrated."""

    def read(snapshot: Snapshot) -> Evidence:
        answers, tasks = snapshot.rows(_ANSWERS, {}), snapshot.rows(_TASKS, {})
        promised: dict[str, list[float]] = {remedy: [] for remedy in REMEDIES}
        gained: dict[str, list[float]] = {remedy: [] for remedy in REMEDIES}
        for row in snapshot.rows(_MENDED, {}):
            gap = row[REMEDIES[row["repair"]]]
            if gap is None or np.isnan(gap):
                continue
            promised[row["repair"]].append(gap)
            gained[row["repair"]].append(_true_gain(row) if row["held"] and row["truth"] else 0.0)
        return Evidence(
            predicted_iou_A=_column(answers, "predicted_iou"),
            iou_A=_column(answers, "true_iou"),
            mended_A=_column(answers, "mended"),
            ious_K=[np.array(row["ious"], float) for row in tasks],
            seconds_K=_column(tasks, "seconds"),
            promised={remedy: np.array(of) for remedy, of in promised.items()},
            gained={remedy: np.array(of) for remedy, of in gained.items()},
            machine_s=_machine_seconds([row["numbers"] for row in snapshot.rows(_MACHINE, {})]),
        )

    return store.read(read)


def _true_gain(row: dict[str, Any]) -> float:
    masks = [row["mended"], row["parent"]]
    after, before = mask_iou(masks, [row["truth"]], row["height"], row["width"])[:, 0]
    return float(after - before)


def _machine_seconds(numbers: list[str]) -> dict[str, float]:
    """Measured seconds a mask by remedy, of the latest rounds."""
    tried: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for text in numbers:
        for remedy, of in json.loads(text).get("repairs", {}).items():
            tried[remedy] = tried.get(remedy, 0) + of["tried"]
            seconds[remedy] = seconds.get(remedy, 0.0) + of["seconds"]
    return {remedy: seconds[remedy] / count for remedy, count in tried.items() if count}


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)
