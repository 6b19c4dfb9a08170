"""Points on an object as UncertainSAM asks with them: a central one, and a dense prompt.

Kaiser et al., ICML 2025, section 4. Coordinates are image pixels, 0 the centre of the first one, as `Prompts` takes them.
"""

from __future__ import annotations

import cv2
import numpy as np

DENSE_POINTS = 8


def draw_prompts(mask_HW: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Dense prompts of one object whose first points are its single-point prompts; xy, float32, count x 8 x 2.

    The first point of all is the foreground pixel nearest the centroid of the eroded mask; all others are random
    foreground pixels.
    """
    rows, columns = np.nonzero(mask_HW)
    chosen = rng.integers(len(rows), size=(count, DENSE_POINTS))
    points_NP2 = np.stack([columns[chosen], rows[chosen]], 2).astype(np.float32)
    points_NP2[0, 0] = central_point(mask_HW)
    return points_NP2


def central_point(mask_HW: np.ndarray) -> np.ndarray:
    """xy of the foreground pixel nearest the centroid of the eroded mask (UncertainSAM's first point), float32."""
    padded = np.pad(mask_HW.astype(np.uint8), 2)  # what touches the image's edge is eroded there, too
    eroded_HW = cv2.erode(padded, np.ones((5, 5), np.uint8))[2:-2, 2:-2]
    rows, columns = np.nonzero(eroded_HW if eroded_HW.any() else mask_HW)
    nearest = int(np.hypot(rows - rows.mean(), columns - columns.mean()).argmin())
    return np.array([columns[nearest], rows[nearest]], np.float32)
