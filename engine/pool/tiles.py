"""Overlapping tiles of a large image: geometry alone."""

from __future__ import annotations

import math

from schemas.errors import ConfigError


def tile_boxes(height: int, width: int, tile_size: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Cut an image into overlapping tiles of equal size.

    Args:
        height, width: of the image, pixels, at least 1.
        tile_size: longest side of a tile, pixels; 0 = one tile, the whole image.
        overlap: least overlap of neighbouring tiles as a part of `tile_size`, in [0, 0.5).

    Returns:
        Boxes xyxy in image pixels (right and bottom exclusive), row by row. Together they cover the
        image, none reaches outside, all are `min(height, tile_size)` by `min(width, tile_size)`, and
        neighbours share at least `floor(overlap * tile_size)` pixels. A side that fits in one tile is
        not cut.

    Raises:
        ConfigError: a size below 1 or an overlap out of range.
    """
    if height < 1 or width < 1 or tile_size < 0:
        raise ConfigError(f"Cannot tile {height} x {width} pixels by {tile_size}: sizes start at 1.")
    if not 0 <= overlap < 0.5:
        raise ConfigError(f"tile_overlap = {overlap} is outside [0, 0.5). Write for example 0.25.")
    if tile_size == 0:
        return [(0, 0, width, height)]
    return [
        (x, y, min(x + tile_size, width), min(y + tile_size, height))
        for y in _starts(height, tile_size, overlap)
        for x in _starts(width, tile_size, overlap)
    ]


def _starts(length: int, tile_size: int, overlap: float) -> list[int]:
    """Evenly spread starts, so that no tile is a sliver."""
    if length <= tile_size:
        return [0]
    step = tile_size - math.floor(overlap * tile_size)
    count = math.ceil((length - tile_size) / step) + 1
    return [(length - tile_size) * i // (count - 1) for i in range(count)]
