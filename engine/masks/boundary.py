"""Boundary IoU: overlap of what lies near the masks' edges.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR
2021). Dilation 0.02 of the image diagonal unless told.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def mask_boundary(mask_HW: np.ndarray, dilation_ratio: float = 0.02) -> np.ndarray:
    """Pixels of a mask within a distance of its edge; the image's border counts as an edge.

    Args:
        mask_HW: bool, the whole image.
        dilation_ratio: distance (chessboard, at least 1 pixel) as a share of the image diagonal.

    Returns:
        bool, HW.
    """
    distance = max(round(dilation_ratio * math.hypot(*mask_HW.shape)), 1)
    # A square of 2d+1 pixels is d steps of a 3x3 one.
    inner = ndimage.minimum_filter(mask_HW.astype(np.uint8), size=2 * distance + 1, mode="constant", cval=0)
    return mask_HW & ~inner.astype(bool)


def boundary_iou(mask_a_HW: np.ndarray, mask_b_HW: np.ndarray, dilation_ratio: float = 0.02) -> float:
    """IoU of two masks' boundaries, 0..1; 0 if neither has one."""
    a, b = mask_boundary(mask_a_HW, dilation_ratio), mask_boundary(mask_b_HW, dilation_ratio)
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0
