"""How right the scores of automatic masks are, where human masks say what is there.

A mask is matched with the objects under its point prompt, and its true IoU is that with the one it fits best.
Masks whose point lies on no labelled object are left out: nobody knows whether they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.evaluate.figures import correlate, round_figure
from engine.generate.generator import generate_masks
from engine.generate.records import ImageMasks
from engine.learn.data import LabelledImage
from engine.masks.rle import encode_masks, mask_iou
from engine.models.segmenter import Segmenter
from engine.uncertainty.calibration import fit_knots, measure_reliability
from engine.uncertainty.heads import HeadSet
from schemas.settings import GenerateSettings

_LEAST_MASKS = 100


def evaluate_generator(
    segmenter: Segmenter,
    heads: HeadSet,
    images: Sequence[LabelledImage],
    settings: GenerateSettings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Correlation of each score with the true IoU, and the calibration of `predicted_iou`, over automatic masks.

    Returns:
        `correlation` {sam_score, stability, entropy, predicted_iou: r}, `calibration_error`, `calibration`, `n` masks
        matched, `unmatched` masks.
    """
    rows_N, iou_N = _make_masks(segmenter, heads, images, settings, progress)
    matched_N = np.isfinite(iou_N)
    rows_N, true_N = rows_N[matched_N], iou_N[matched_N]
    quality = {name: rows_N[name].astype(np.float64) for name in ("sam_score", "stability", "predicted_iou")}
    quality["entropy"] = -rows_N["entropy"].astype(np.float64)
    reliability = measure_reliability(quality["predicted_iou"], true_N)
    return {
        "correlation": {name: round_figure(correlate(value_N, true_N)) for name, value_N in quality.items()},
        "calibration_error": round_figure(reliability.error),
        "calibration": {
            "predicted": reliability.predicted,
            "true": reliability.true,
            "count": reliability.count,
        },
        "n": len(true_N),
        "unmatched": int((~matched_N).sum()),
    }


def calibrate_heads(
    segmenter: Segmenter,
    heads: HeadSet,
    images: Sequence[LabelledImage],
    settings: GenerateSettings,
    progress: Callable[[int], None] | None = None,
) -> HeadSet:
    """The same heads with `predicted_iou` calibrated on automatic masks: those that labelling keeps.

    Suppression keeps the best scored of masks that are alike, so what is kept is not what single prompts give.
    With fewer than 100 matched masks the calibration that is there stays.

    Args:
        images: labelled, and neither fitted to nor learnt by the model; else it seems surer than it is.
    """
    if not images:
        return heads
    raw = replace(heads, knots_2Q=None)
    rows_N, iou_N = _make_masks(segmenter, raw.to(segmenter.device), images, settings, progress)
    matched_N = np.isfinite(iou_N)
    if matched_N.sum() < _LEAST_MASKS:
        return heads
    knots_2Q = fit_knots(rows_N["predicted_iou"][matched_N].astype(np.float64), iou_N[matched_N])
    return replace(heads, knots_2Q=torch.from_numpy(knots_2Q))


def _make_masks(
    segmenter: Segmenter,
    heads: HeadSet,
    images: Sequence[LabelledImage],
    settings: GenerateSettings,
    progress: Callable[[int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the automatic masks of all images, and their true IoU."""
    rows, truth = [], []
    for index, image in enumerate(images):
        [masks] = generate_masks(segmenter, [image.load()], settings, scorer=heads)
        rows.append(masks.rows_N)
        truth.append(match_masks(masks, image))
        if progress:
            progress(index + 1)
    return np.concatenate(rows), np.concatenate(truth)


def match_masks(masks: ImageMasks, image: LabelledImage) -> np.ndarray:
    """True IoU of each automatic mask, 0..1; NaN where its point lies on no labelled object."""
    truths_THW = np.stack([mask.decode() for mask in image.masks])
    rles = encode_masks(truths_THW)
    iou_NT = mask_iou(masks.rles, rles, masks.height, masks.width)
    x_N, y_N = masks.rows_N["point"].astype(int).T
    under_NT = truths_THW[:, np.clip(y_N, 0, masks.height - 1), np.clip(x_N, 0, masks.width - 1)].T
    iou_NT = np.where(under_NT, iou_NT, np.nan)
    found_N = under_NT.any(1)
    result_N = np.full(len(masks), np.nan)
    if found_N.any():
        result_N[found_N] = np.nanmax(iou_NT[found_N], 1)
    return result_N
