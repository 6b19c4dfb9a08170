"""One click, three masks: how well the best output matches the mask that was meant.

The click is the mask pixel farthest from the mask's boundary, the first point of SAM's interactive
protocol (Kirillov et al. 2023, section 7.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from engine.learn.data import LabelledImage
from engine.models.segmenter import Segmenter
from schemas.records import Prompts

_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class PointResult:
    """What one click gave: IoU of the best of three, of the output the model scores best, and that score."""

    best_iou: float
    picked_iou: float
    picked_score: float


def innermost_point(mask_HW: np.ndarray) -> tuple[float, float]:
    """xy (column and row) of the mask pixel farthest from the boundary; the image's edge counts as boundary."""
    depth = cv2.distanceTransform(np.pad(mask_HW.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[
        1:-1, 1:-1
    ]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column), float(row)


def evaluate_points(segmenter: Segmenter, images: Iterable[LabelledImage]) -> list[PointResult]:
    """One click for every mask of every image, decoded at full resolution."""
    results = []
    for image in images:
        pixels = image.load()
        embedding = segmenter.embed([pixels])
        for start in range(0, len(image.masks), _PROMPTS_AT_ONCE):
            chunk = image.masks[start : start + _PROMPTS_AT_ONCE]
            truths = [mask.decode() for mask in chunk]
            points = torch.tensor([innermost_point(truth) for truth in truths], dtype=torch.float32)[:, None]
            labels = torch.ones(len(chunk), 1, dtype=torch.int64)
            decoded = segmenter.decode(
                embedding, Prompts(torch.zeros(len(chunk), dtype=torch.int64), points, labels)
            )
            for index, truth in enumerate(truths):
                masks = (
                    segmenter.upscale(decoded.logits_NMhw[index], pixels.shape[:2]).cpu().numpy()
                    > segmenter.mask_threshold
                )
                iou = [(m & truth).sum() / max(1, (m | truth).sum()) for m in masks]
                picked = int(decoded.iou_NM[index].argmax())
                results.append(
                    PointResult(
                        float(max(iou)),
                        float(iou[picked]),
                        float(decoded.iou_NM[index, picked]),
                    )
                )
    return results
