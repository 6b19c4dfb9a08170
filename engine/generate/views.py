"""Which parts of an image are shown to the model, and where each is prompted.

A tile is the whole image, or one of its overlapping tiles where the image is large. Each tile is
shown whole, and again in overlapping crops where the settings ask for crop layers. A view is one
such crop with its points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from segment_anything.utils.amg import build_all_layer_point_grids, generate_crop_boxes

from engine.pool.tiles import tile_boxes
from schemas.errors import ConfigError
from schemas.settings import GenerateSettings

Box = tuple[int, int, int, int]
# How far below the threshold the predicted IoU around a point may lie; chosen on sam-nano (docs/decoder.md).
_MARGIN = 0.08


@dataclass(frozen=True)
class View:
    """One crop of one image.

    Attributes:
        image: index of the image in its batch.
        tile: x0 y0 x1 y1 (exclusive ends) of its tile, image pixels.
        crop: the same of the crop itself.
        points_P2: xy of the prompts, pixels of the crop, float64.
    """

    image: int
    tile: Box
    crop: Box
    points_P2: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the crop, pixels."""
        x0, y0, x1, y1 = self.crop
        return y1 - y0, x1 - x0


def plan_views(image: int, image_size: tuple[int, int], settings: GenerateSettings) -> list[View]:
    """Views of one image, tile after tile, the larger crops first.

    Points and crops are those of `segment_anything.SamAutomaticMaskGenerator`; within a tile, which
    is their image.

    Args:
        image: index that the views carry.
        image_size: (height, width), pixels.
        settings: grid, crop layers and tiles.

    Raises:
        ConfigError: the grid of a crop layer would have no points.
    """
    scale = settings.crop_n_points_downscale_factor
    if settings.points_per_side < scale**settings.crop_n_layers:
        raise ConfigError(
            f"Crop layer {settings.crop_n_layers} would have no points: points_per_side "
            f"({settings.points_per_side}) is divided by {scale} once a layer. Use a larger points_per_side, "
            "fewer crop_n_layers, or a smaller crop_n_points_downscale_factor."
        )
    grids = build_all_layer_point_grids(settings.points_per_side, settings.crop_n_layers, scale)
    views = []
    for tile in tile_boxes(*image_size, settings.tile_size, settings.tile_overlap):
        left, top, right, bottom = tile
        crops, layers = generate_crop_boxes(
            (bottom - top, right - left), settings.crop_n_layers, settings.crop_overlap_ratio
        )
        for (x0, y0, x1, y1), layer in zip(crops, layers, strict=True):
            if x1 > x0 and y1 > y0:  # an image of a few pixels has crops without any
                crop = (left + x0, top + y0, left + x1, top + y1)
                views.append(View(image, tile, crop, grids[layer] * (x1 - x0, y1 - y0)))
    return views


def coarse_points(view: View) -> np.ndarray:
    """Which points of the view's grid are asked first: every second one of every second row; bool_P."""
    side = math.isqrt(len(view.points_P2))
    coarse_RC = np.zeros((side, side), bool)
    coarse_RC[::2, ::2] = True
    return coarse_RC.ravel()


def promising_points(view: View, promise_P: np.ndarray, pred_iou_thresh: float) -> np.ndarray:
    """Which of the other points may have a mask that passes; bool_P.

    Predicted IoU changes little from a point to the next. So where the mean of the coarse points
    around one is far below the threshold, it has nothing to add.

    Args:
        view: whose points they are.
        promise_P: best predicted IoU of the coarse points; what the others hold is not looked at.
        pred_iou_thresh: the filter's threshold.
    """
    coarse_P = coarse_points(view)
    side = math.isqrt(len(coarse_P))
    promise_RC = np.where(coarse_P, promise_P, 0).reshape(side, side)
    around = [_sum_around(x_RC).ravel() for x_RC in (promise_RC, coarse_P.reshape(side, side).astype(float))]
    return ~coarse_P & (around[0] / around[1] >= pred_iou_thresh - _MARGIN)


def _sum_around(x_RC: np.ndarray) -> np.ndarray:
    """Sum of the 3 x 3 points around each."""
    rows, columns = x_RC.shape
    padded = np.pad(x_RC, 1)
    shifts = [(y, x) for y in range(3) for x in range(3)]
    return np.sum([padded[y : y + rows, x : x + columns] for y, x in shifts], axis=0)
