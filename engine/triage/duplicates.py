"""Mended masks that became the same as another: one of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.masks.rle import mask_iou

_SAME_MASK = 0.8
"""IoU from which two masks of one image are one object's; the generator's own rule (boxes, 0.7) is a little milder."""


def settle_duplicates(rows: Sequence[dict[str, Any]], new: set[str], answered: set[str]) -> None:
    """Let of a new mask and another that shows the same the one hold that people answered for, else the better.

    Args:
        rows: all masks of one image, of the table `masks`; `replaced_by` is changed.
        new: mask_ids that may be doubles of others.
        answered: mask_ids that people have answered for.
    """
    holding = [row for row in rows if row["replaced_by"] is None]
    if not any(row["mask_id"] in new for row in holding):
        return
    # The best first; whoever comes later and shows the same gives way.
    holding.sort(key=lambda row: (row["mask_id"] not in answered, -row["predicted_iou"], row["mask_id"]))
    rles = [row["rle"] for row in holding]
    iou_NN = mask_iou(rles, rles, holding[0]["height"], holding[0]["width"])
    kept = np.ones(len(holding), bool)
    for place, row in enumerate(holding):
        rivals = [
            before
            for before in np.flatnonzero(kept[:place] & (iou_NN[place, :place] >= _SAME_MASK)).tolist()
            if row["mask_id"] in new or holding[before]["mask_id"] in new
        ]
        if rivals and row["mask_id"] not in answered:
            kept[place] = False
            row["replaced_by"] = holding[rivals[0]]["mask_id"]
