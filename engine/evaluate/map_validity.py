"""Are the certain pixels right? Uncertainty maps held against human masks.

SUM (Liu et al., NeurIPS 2024, appendix) shows that of pixels with certainty c > 0.6 nearly all are right. Here the
pixels are the cells of the mask grid around each mask: its box and a margin, as maps are kept; far away everything is
right and certain, and would only flatter. Masks are the model's attempts at human ones, from one point (IoU 0.7 or
more, as for the refiner's pairs).

Shape suffixes: N masks, h w mask grid, X cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine.learn.data import LabelledImage
from engine.learn.refiner_pairs import make_pairs
from engine.models.segmenter import Segmenter
from engine.uncertainty.maps import UNCERTAIN, Refiner, crop_maps, doubt

BINS = 10
_STEPS = 4096  # of certainty, for the separation: near 1 confidence needs finer ones than maps are kept in
_METHODS = ("map", "confidence", "change")


def evaluate_maps(
    segmenter: Segmenter,
    refiner: Refiner,
    sets: Mapping[str, Sequence[LabelledImage]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Of each set: how right cells are by their certainty, and how well certainty tells right from wrong.

    Args:
        segmenter: makes the masks.
        refiner: draws their maps.
        sets: human masks by name of the set, none of them learnt from.
        progress: called with (images done, images in all).

    Returns:
        {set: {masks, cells, certain_right, rest_right, rest_share, separation, separation_confidence, separation_change, right, share}}:
        shares of cells that are right among the certain ones (c > 0.6) and among the rest, and how many the rest are;
        the area under the ROC curve of certainty, of the model's own confidence |σ - 0.5|, and of SUM's certainty, 1 - how far the
        refiner changes a cell's probability, for right against wrong;
        by bin of certainty 0 … 1, the share that is right and the share of cells. None where there are no cells.
    """
    total, done = sum(len(images) for images in sets.values()), 0
    results = {}
    for name, images in sets.items():
        counts = {method: np.zeros((2, _STEPS)) for method in _METHODS}
        masks = 0
        for image in images:
            masks += _count_image(segmenter, refiner, image, counts)
            done += 1
            if progress:
                progress(done, total)
        results[name] = {"masks": masks, **_summarise(counts)}
    return results


def _count_image(
    segmenter: Segmenter, refiner: Refiner, image: LabelledImage, counts: dict[str, np.ndarray]
) -> int:
    """Add an image's cells to the histograms of certainty, wrong and right; returns its number of masks."""
    pairs = make_pairs(segmenter, image, points=1)
    if not len(pairs):
        return 0
    embedding = segmenter.embed([image.load()])
    size = embedding.image_sizes[0]
    extent = segmenter.mask_extent(size)
    logits_Nhw = pairs.logits_Nhw.float().to(segmenter.device)
    boxes_N4, points_N2 = torch.from_numpy(pairs.boxes_N4), torch.from_numpy(pairs.points_N2)
    redrawn_Nhw = refiner.redraw(embedding, 0, logits_Nhw, boxes_N4, points_N2)
    certainty = {
        "map": 1 - doubt(logits_Nhw, redrawn_Nhw, segmenter.mask_threshold),
        "confidence": 2 * (logits_Nhw.sigmoid() - 0.5).abs(),
        "change": 1 - (logits_Nhw.sigmoid() - redrawn_Nhw.sigmoid()).abs(),
    }
    right_Nhw = (logits_Nhw > segmenter.mask_threshold).cpu().numpy() == (pairs.target_Nhw > 0.5)
    right = crop_maps(right_Nhw.astype(np.uint8), pairs.boxes_N4, extent, size)
    is_right_X = np.concatenate([crop.values_hw.ravel() for crop in right]).astype(bool)
    for method, values_Nhw in certainty.items():
        steps_Nhw = (values_Nhw * (_STEPS - 1)).round().to(torch.int16).cpu().numpy()
        crops = crop_maps(steps_Nhw, pairs.boxes_N4, extent, size)
        step_X = np.concatenate([crop.values_hw.ravel() for crop in crops])
        for place, among in enumerate((~is_right_X, is_right_X)):
            counts[method][place] += np.bincount(step_X[among], minlength=_STEPS)
    return len(pairs)


def _summarise(counts: dict[str, np.ndarray]) -> dict[str, Any]:
    wrong, right = counts["map"]
    certain = np.arange(_STEPS) / (_STEPS - 1) > 1 - UNCERTAIN
    bins = np.arange(_STEPS) * BINS // _STEPS
    of_bins = [(right[bins == i].sum(), (right + wrong)[bins == i].sum()) for i in range(BINS)]
    cells = float((right + wrong).sum())
    return {
        "cells": int(cells),
        "certain_right": _share(right[certain].sum(), (right + wrong)[certain].sum()),
        "rest_right": _share(right[~certain].sum(), (right + wrong)[~certain].sum()),
        "rest_share": _share((right + wrong)[~certain].sum(), cells),
        "separation": _separation(counts["map"]),
        "separation_confidence": _separation(counts["confidence"]),
        "separation_change": _separation(counts["change"]),
        "right": [_share(good, every) for good, every in of_bins],
        "share": [_share(every, cells) for _, every in of_bins],
    }


def _separation(counts_2S: np.ndarray) -> float | None:
    """Probability that a right cell is more certain than a wrong one (ties count half): the area under the ROC curve."""
    wrong_S, right_S = counts_2S
    if not wrong_S.any() or not right_S.any():
        return None
    below_S = np.concatenate([[0], wrong_S.cumsum()[:-1]])
    return round(float((right_S * (below_S + 0.5 * wrong_S)).sum() / (right_S.sum() * wrong_S.sum())), 4)


def _share(part: float, whole: float) -> float | None:
    return round(float(part / whole), 4) if whole else None
