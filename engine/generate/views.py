"""Which parts of an image are shown to the model, and where each is prompted.

A tile is the whole image, or one of its overlapping tiles where the image is large. Each tile is
shown whole, and again in overlapping crops where the settings ask for crop layers. A view is one
such crop with its points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from segment_anything.utils.amg import build_all_layer_point_grids, generate_crop_boxes

from engine.pool.tiles import tile_boxes
from schemas.errors import ConfigError
from schemas.settings import GenerateSettings

Box = tuple[int, int, int, int]


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
    is their image. No crop comes twice.

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
        seen: set[Box] = set()
        for (x0, y0, x1, y1), layer in zip(crops, layers, strict=True):
            crop = (left + x0, top + y0, left + x1, top + y1)
            # An image of a few pixels has crops without any, and crops that are the same.
            if x1 > x0 and y1 > y0 and crop not in seen:
                seen.add(crop)
                views.append(View(image, tile, crop, grids[layer] * (x1 - x0, y1 - y0)))
    return views
