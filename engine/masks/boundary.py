"""Boundary IoU: overlap of what lies near the masks' edges.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR
2021). Dilation 0.02 of the image diagonal unless told.
"""

from __future__ import annotations

import math

import cv2
import numpy as np


def boundary_iou(mask_a_HW: np.ndarray, mask_b_HW: np.ndarray, dilation_ratio: float = 0.02) -> float:
    """IoU of two masks' boundaries, 0..1; 0 if neither has one. The cost is that of the box around both.

    A mask's boundary is what of it lies within a distance of its edge; the image's border counts as an edge.

    Args:
        mask_a_HW, mask_b_HW: bool, the whole image.
        dilation_ratio: distance (chessboard, at least 1 pixel) as a share of the image diagonal.
    """
    distance = _distance(mask_a_HW.shape, dilation_ratio)
    inside = _box(mask_a_HW | mask_b_HW)
    a, b = _band(mask_a_HW[inside], distance), _band(mask_b_HW[inside], distance)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def _distance(shape: tuple[int, ...], dilation_ratio: float) -> int:
    return max(round(dilation_ratio * math.hypot(*shape)), 1)


def _box(mask_HW: np.ndarray) -> tuple[slice, slice]:
    """What may be cut out without changing the band: outside of the image is background, too."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _band(mask_hw: np.ndarray, distance: int) -> np.ndarray:
    if not mask_hw.size:
        return mask_hw
    # A square of 2d+1 pixels is d steps of a 3x3 one.
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    inner = cv2.erode(mask_hw.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask_hw & ~inner.astype(bool)
