"""Clicks that stand for a person's, and one click, three masks: how well the best output matches what was meant.

The clicks are those of SAM's interactive protocol (Kirillov et al. 2023, section 7.1): first the mask pixel farthest
from the mask's boundary, then the pixel of the largest wrong region that is farthest from that region's boundary.
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
    x0, y0, width, height = cv2.boundingRect(mask_HW.view(np.uint8))
    inside = np.pad(mask_HW[y0 : y0 + height, x0 : x0 + width].astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    if not depth.size:
        return 0.0, 0.0
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x0 + column), float(y0 + row)


def correcting_point(mask_HW: np.ndarray, truth_HW: np.ndarray) -> tuple[float, float, int] | None:
    """The click that mends most: x, y and whether it is foreground (1) or background (0), as the truth has it.

    It is the innermost pixel of the largest wrong region. Regions hang together by sides or corners; what is missing
    and what is too much are regions apart. Of equally large ones, what is missing goes first, then the topmost.

    Args:
        mask_HW: bool, what the model drew.
        truth_HW: bool, what was meant.

    Returns:
        The click in image pixels, 0 the centre of the first one; None where nothing is wrong.
    """
    x0, y0, width, height = cv2.boundingRect((mask_HW ^ truth_HW).view(np.uint8))
    mask_hw, truth_hw = (of[y0 : y0 + height, x0 : x0 + width] for of in (mask_HW, truth_HW))
    largest_hw, largest, label = None, 0, 0
    for wrong_hw, is_inside in ((truth_hw & ~mask_hw, 1), (mask_hw & ~truth_hw, 0)):
        if not wrong_hw.any():
            continue
        _, region_hw, facts, _ = cv2.connectedComponentsWithStats(wrong_hw.view(np.uint8), connectivity=8)
        area_R = facts[1:, cv2.CC_STAT_AREA]
        if area_R.max() > largest:
            largest, label = int(area_R.max()), is_inside
            largest_hw = region_hw == 1 + int(area_R.argmax())
    if largest_hw is None:
        return None
    x, y = innermost_point(largest_hw)
    return x + x0, y + y0, label


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
