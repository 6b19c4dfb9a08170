"""Mended masks that became the same as another: one of them holds.

Shape suffixes: N masks that hold, K of them that are new.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from engine.masks.rle import mask_iou

_SAME_MASK = 0.8
"""IoU from which two masks of one image are one object's; the generator's own rule (boxes, 0.7) is a little milder."""


def settle_duplicates(rows: Sequence[dict[str, Any]], new: Set[str], people: Set[str]) -> None:
    """Let of a new mask and another that shows the same the one hold that is people's, else the better.

    Args:
        rows: all masks of one image, of the table `masks`; `replaced_by` is changed.
        new: mask_ids that may be doubles of others.
        people: mask_ids that people have answered for, or are being asked about: these always hold.
    """
    holding = [row for row in rows if row["replaced_by"] is None]
    # The best first; whoever comes later and shows the same gives way.
    holding.sort(key=lambda row: (row["mask_id"] not in people, -_score(row), row["mask_id"]))
    new_K = [place for place, row in enumerate(holding) if row["mask_id"] in new]
    if not new_K:
        return
    rles = [row["rle"] for row in holding]
    iou_KN = mask_iou([rles[k] for k in new_K], rles, holding[0]["height"], holding[0]["width"])
    same_NN = np.zeros((len(rles), len(rles)), bool)  # of pairs that neither mended, none
    same_NN[new_K] = iou_KN >= _SAME_MASK
    same_NN |= same_NN.T
    kept_N = np.ones(len(holding), bool)
    for place, row in enumerate(holding):
        rivals = np.flatnonzero(kept_N[:place] & same_NN[place, :place])
        if len(rivals) and row["mask_id"] not in people:
            kept_N[place] = False
            row["replaced_by"] = holding[int(rivals[0])]["mask_id"]


def _score(row: dict[str, Any]) -> float:
    return -1.0 if row["predicted_iou"] is None else float(row["predicted_iou"])
