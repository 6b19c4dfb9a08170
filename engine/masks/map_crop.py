"""Uncertainty maps as they are kept: the surroundings of a mask, coarse, in 256 steps.

Shape suffixes: h w cells of a map, 4 frame x0 y0 x1 y1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

Frame = tuple[float, float, float, float]


@dataclass(frozen=True)
class MapCrop:
    """Uncertainty around one mask; what lies outside counts as certain.

    Attributes:
        frame: x0 y0 x1 y1 of the outer edges of the cells, image pixels, not rounded.
        values_hw: uint8, 0 = certain, 255 = as unsure as can be.
    """

    frame: Frame
    values_hw: np.ndarray

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> MapCrop | None:
        """A row of the table `maps`, or one that was joined with it; None where it has no map."""
        if row["values"] is None:
            return None
        values_hw = np.frombuffer(row["values"], np.uint8).reshape(row["rows"], row["columns"])
        return MapCrop((row["x0"], row["y0"], row["x1"], row["y1"]), values_hw)

    def shift(self, x: int, y: int) -> MapCrop:
        """The same in a frame whose origin lies x pixels further left and y further up."""
        x0, y0, x1, y1 = self.frame
        return MapCrop((x0 + x, y0 + y, x1 + x, y1 + y), self.values_hw)

    def sample(self, frame: Frame, size: tuple[int, int]) -> np.ndarray:
        """Uncertainty on another grid, float32 HW, 0..1: linear between centres of cells, 0 outside.

        Args:
            frame: x0 y0 x1 y1 that the grid covers, image pixels.
            size: (rows, columns) of the grid.
        """
        h, w = self.values_hw.shape
        (x0, y0, x1, y1), (left, top, right, bottom) = self.frame, frame
        # Cells of the map to a cell of the grid, and where the grid's first centre lies among the map's.
        scale_x, scale_y = (right - left) / size[1] * w / (x1 - x0), (bottom - top) / size[0] * h / (y1 - y0)
        first_x = (left - x0) * w / (x1 - x0) + 0.5 * scale_x - 0.5
        first_y = (top - y0) * h / (y1 - y0) + 0.5 * scale_y - 0.5
        columns = (first_x + scale_x * np.arange(size[1])).astype(np.float32)
        rows = (first_y + scale_y * np.arange(size[0])).astype(np.float32)
        inside_x, inside_y = (
            (place > -0.5) & (place < end - 0.5) for place, end in ((columns, w), (rows, h))
        )
        sampled = np.zeros(size, np.float32)
        if inside_x.any() and inside_y.any():
            grid_x, grid_y = np.meshgrid(columns[inside_x], rows[inside_y])
            sampled[np.ix_(inside_y, inside_x)] = cv2.remap(
                self.values_hw.astype(np.float32) / 255,
                grid_x,
                grid_y,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        return sampled


def join_crops(crops: Sequence[MapCrop]) -> MapCrop:
    """One map for what several show parts of, in the finest of their cells.

    Where they overlap, the larger uncertainty counts.
    """
    if len(crops) == 1:
        return crops[0]
    x0, y0 = (min(crop.frame[i] for crop in crops) for i in (0, 1))
    x1, y1 = (max(crop.frame[i] for crop in crops) for i in (2, 3))
    cell_x = min((crop.frame[2] - crop.frame[0]) / crop.values_hw.shape[1] for crop in crops)
    cell_y = min((crop.frame[3] - crop.frame[1]) / crop.values_hw.shape[0] for crop in crops)
    size = max(1, round((y1 - y0) / cell_y)), max(1, round((x1 - x0) / cell_x))
    joined = np.max([crop.sample((x0, y0, x1, y1), size) for crop in crops], axis=0)
    return MapCrop((x0, y0, x1, y1), np.rint(joined * 255).astype(np.uint8))
