"""A better prompt from what a mask knows of itself: points in the part it is certain of, and the mask on the model's grid.

Shape suffixes: P points, L pixels, H W image, h w mask grid.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.generate.views import Box
from engine.masks.map_crop import MapCrop
from engine.models.segmenter import Segmenter
from engine.uncertainty.maps import UNCERTAIN

DENSE_POINTS = 8
"""Points of a dense prompt, as many as UncertainSAM's."""
_CONFIDENCE = 8.0  # logit of a cell that the mask covers wholly
_MOST_PIXELS = 4000


def dense_points(mask_HW: np.ndarray, box: Box, uncertainty_map: MapCrop | None) -> np.ndarray:
    """Points spread over the certain part of a mask; xy, float64, `DENSE_POINTS` x 2, image pixels (0 = centre of the first).

    The first lies deepest inside, each next one farthest from those before.

    Args:
        mask_HW: bool, not empty.
        box: of the mask.
        uncertainty_map: where the mask is unsure; None: all of it counts as certain.
    """
    x0, y0, x1, y1 = box
    inside_hw = mask_HW[y0:y1, x0:x1]
    if uncertainty_map is not None:
        unsure_hw = uncertainty_map.sample(tuple(map(float, box)), inside_hw.shape) > UNCERTAIN  # type: ignore[arg-type]
        if (inside_hw & ~unsure_hw).any():
            inside_hw = inside_hw & ~unsure_hw
    depth_hw = cv2.distanceTransform(np.pad(inside_hw.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    # Not at the very edge, where half of the pixels are somebody else's.
    row_L, column_L = np.nonzero(depth_hw > min(2.0, depth_hw.max() / 2))
    step = -(-len(row_L) // _MOST_PIXELS)
    place_L2 = np.stack([column_L, row_L], 1)[::step].astype(float)
    first = np.unravel_index(int(depth_hw.argmax()), depth_hw.shape)
    chosen = [np.array([first[1], first[0]], float)]
    away_L = np.full(len(place_L2), np.inf)
    while len(chosen) < DENSE_POINTS:
        away_L = np.minimum(away_L, ((place_L2 - chosen[-1]) ** 2).sum(1))
        chosen.append(place_L2[int(away_L.argmax())])
    return np.stack(chosen) + np.array([x0, y0])


def grid_mask(mask_HW: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    """A mask as the logits of a mask prompt, float32 hw.

    Args:
        mask_HW: bool, of all that the model is shown.
        segmenter: whose grid it is.
    """
    side = segmenter.grid_size
    rows, columns = (max(1, min(round(of), side)) for of in segmenter.mask_extent(mask_HW.shape))
    covered_hw = cv2.resize(mask_HW.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    logits_hw = np.full((side, side), -_CONFIDENCE, np.float32)
    logits_hw[:rows, :columns] = _CONFIDENCE * (2 * covered_hw - 1)
    return logits_hw
