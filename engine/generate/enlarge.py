"""Full-resolution measures and pixels of low-resolution masks, computed only where they can differ.

Enlarging logits is separable and linear: pixels = rows @ logits @ columns.T, and every pixel is a
weighted mean of a few neighbouring cells. So where all cells of a block lie above (or below) a cut,
all its pixels do, and nothing needs computing; only blocks that a cut runs through are enlarged. The
result is that of enlarging everything, up to the rounding of a few products.

Shape suffixes: N masks, h w mask grid, H W image, Y X blocks down and across, I blocks that are
computed, R C pixels of a block, K cells that they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from engine.models.segmenter import Segmenter

_BLOCK = 8  # cells
_CHUNK_PIXELS = 1 << 20  # pixels enlarged at once: what stays in a CPU's cache
_OUTSIDE = -1e30  # logit of what pads a block, under every cut


@dataclass(frozen=True)
class Measures:
    """What masks are at full resolution.

    Attributes:
        stability_N: IoU of the cuts above and below the threshold; NaN if both are empty.
        area_N: pixels.
        boxes_N4: x0 y0 x1 y1, exclusive ends; 0 0 0 0 for an empty mask.
    """

    stability_N: torch.Tensor
    area_N: torch.Tensor
    boxes_N4: torch.Tensor


@dataclass(frozen=True)
class _Axis:
    """One axis cut into B blocks.

    Attributes:
        starts_B: first pixel of each block.
        ends_B: the pixel after its last.
        cells_BK1: the K cells that its pixels depend on, and the padding cell behind the grid.
        weights_BRK1: of those cells in each pixel; what a block has less than R takes the padding.
        windows: first cell, and the one after the last, on the host.
    """

    starts_B: torch.Tensor
    ends_B: torch.Tensor
    cells_BK1: torch.Tensor
    weights_BRK1: torch.Tensor
    windows: list[tuple[int, int]]


class Enlargement:
    """From the mask grid to the pixels of images of one size, as `Segmenter.upscale` does it."""

    def __init__(self, segmenter: Segmenter, image_size: tuple[int, int]) -> None:
        """Prepare the weights of both axes.

        Args:
            segmenter: whose masks are enlarged.
            image_size: (height, width), pixels.
        """
        self.image_size = image_size
        self._rows, self._columns = (
            _cut_axis(matrix.to(segmenter.device)) for matrix in _axis_matrices(segmenter, image_size)
        )

    def measure(self, logits_Nhw: torch.Tensor, threshold: float, offset: float) -> Measures:
        """Stability, area and box of each mask, exactly those of the enlarged logits."""
        n = len(logits_Nhw)
        device = logits_Nhw.device
        height, width = self.image_size
        high_N, area_N, low_N = (torch.zeros(n, dtype=torch.int64, device=device) for _ in range(3))
        first_N2 = torch.tensor([width, height], device=device).repeat(n, 1)
        last_N2 = torch.zeros(n, 2, dtype=torch.int64, device=device)

        for index_I, row_I, column_I, pixels_IRC in self._blocks(
            logits_Nhw, threshold - offset, threshold + offset
        ):
            y_I, x_I = self._rows.starts_B[row_I], self._columns.starts_B[column_I]
            if pixels_IRC is None:
                y_end_I, x_end_I = self._rows.ends_B[row_I], self._columns.ends_B[column_I]
                inside_I = (y_end_I - y_I) * (x_end_I - x_I)
                for total_N in (high_N, area_N, low_N):
                    total_N.index_add_(0, index_I, inside_I)
                first_I2, last_I2 = torch.stack([x_I, y_I], 1), torch.stack([x_end_I, y_end_I], 1)
            else:
                # Comparisons as floats: sums of booleans are far slower on a CPU.
                above_IRC = torch.empty_like(pixels_IRC)
                for total_N, cut in ((high_N, threshold + offset), (low_N, threshold - offset)):
                    inside_I = torch.gt(pixels_IRC, cut, out=above_IRC).sum((1, 2))
                    total_N.index_add_(0, index_I, inside_I.long())
                torch.gt(pixels_IRC, threshold, out=above_IRC)
                in_rows_IR, in_columns_IC = above_IRC.sum(2), above_IRC.sum(1)
                inside_I = in_rows_IR.sum(1).long()
                area_N.index_add_(0, index_I, inside_I)
                (y_first_I, y_last_I), (x_first_I, x_last_I) = _ends(in_rows_IR), _ends(in_columns_IC)
                first_I2 = torch.stack([x_I + x_first_I, y_I + y_first_I], 1)
                last_I2 = torch.stack([x_I + x_last_I, y_I + y_last_I], 1)
                some_I = inside_I > 0
                index_I, first_I2, last_I2 = index_I[some_I], first_I2[some_I], last_I2[some_I]
            index_I2 = index_I[:, None].expand(-1, 2)
            first_N2.scatter_reduce_(0, index_I2, first_I2, "amin")
            last_N2.scatter_reduce_(0, index_I2, last_I2, "amax")
        boxes_N4 = torch.cat([first_N2, last_N2], 1) * (area_N > 0)[:, None]
        return Measures(high_N / low_N, area_N, boxes_N4)

    def draw(self, logits_Nhw: torch.Tensor, threshold: float, boxes_N4: torch.Tensor) -> list[np.ndarray]:
        """Each mask's pixels inside its box, bool, on the host.

        Args:
            logits_Nhw: mask logits on the grid.
            threshold: logit of the mask's edge.
            boxes_N4: from `measure`.
        """
        boxes = boxes_N4.tolist()
        crops = [np.zeros((y1 - y0, x1 - x0), bool) for x0, y0, x1, y1 in boxes]
        rows, columns = (
            list(zip(axis.starts_B.tolist(), axis.ends_B.tolist(), strict=True))
            for axis in (self._rows, self._columns)
        )
        for index_I, row_I, column_I, pixels_IRC in self._blocks(logits_Nhw, threshold, threshold):
            masks_IRC = None if pixels_IRC is None else (pixels_IRC > threshold).cpu().numpy()
            places = zip(index_I.tolist(), row_I.tolist(), column_I.tolist(), strict=True)
            for item, (index, row, column) in enumerate(places):
                (top, bottom), (left, right) = rows[row], columns[column]
                x0, y0, x1, y1 = boxes[index]
                y, y_end, x, x_end = max(top, y0), min(bottom, y1), max(left, x0), min(right, x1)
                if y < y_end and x < x_end:
                    block = (
                        True
                        if masks_IRC is None
                        else masks_IRC[item, y - top : y_end - top, x - left : x_end - left]
                    )
                    crops[index][y - y0 : y_end - y0, x - x0 : x_end - x0] = block
        return crops

    def _blocks(
        self, logits_Nhw: torch.Tensor, low: float, high: float
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Blocks with pixels above `low`: mask, row and column of each, and their pixels_IRC.

        Pixels are None for blocks that lie above `high` as a whole.
        """
        lowest_NYX, highest_NYX = self._extremes(logits_Nhw)
        whole_NYX = lowest_NYX > high
        index_I, row_I, column_I = whole_NYX.nonzero().unbind(1)
        yield index_I, row_I, column_I, None
        cells_Nhw = functional.pad(logits_Nhw, (0, 1, 0, 1), value=_OUTSIDE)
        places = ((highest_NYX > low) & ~whole_NYX).nonzero()
        pixels = self._rows.weights_BRK1.shape[1] * self._columns.weights_BRK1.shape[1]
        _, height, width = cells_Nhw.shape
        cells = cells_Nhw.flatten()
        for place_I3 in places.split(max(_CHUNK_PIXELS // pixels, 1)):
            index_I, row_I, column_I = place_I3.unbind(1)
            rows_IK = index_I[:, None] * height + self._rows.cells_BK1[row_I]
            window_IKK = cells[rows_IK[:, :, None] * width + self._columns.cells_BK1[column_I][:, None, :]]
            rows_IRK = self._rows.weights_BRK1.index_select(0, row_I)
            columns_ICK = self._columns.weights_BRK1.index_select(0, column_I)
            yield index_I, row_I, column_I, rows_IRK @ window_IKK @ columns_ICK.transpose(1, 2)

    def _extremes(self, logits_Nhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest cell that the pixels of each block depend on, twice NYX."""
        rows = [logits_Nhw[:, first:last] for first, last in self._rows.windows]
        lowest_NYw = torch.stack([row.amin(1) for row in rows], 1)
        highest_NYw = torch.stack([row.amax(1) for row in rows], 1)
        columns = self._columns.windows
        return (
            torch.stack([lowest_NYw[..., first:last].amin(2) for first, last in columns], 2),
            torch.stack([highest_NYw[..., first:last].amax(2) for first, last in columns], 2),
        )


def _axis_matrices(segmenter: Segmenter, image_size: tuple[int, int]) -> list[torch.Tensor]:
    """Weights of the grid's rows and columns in each row (Hh) and column (Ww) of the image, fp32."""
    identity = torch.eye(segmenter.grid_size)
    if segmenter.package == "sam2":
        return [_interpolate(identity, size) for size in image_size]
    # segment-anything enlarges to its input's size, cuts off the padding, and resizes again.
    cell = segmenter.image_size / segmenter.grid_size
    input_size = [round(extent * cell) for extent in segmenter.mask_extent(image_size)]
    to_input = _interpolate(identity, segmenter.image_size)
    return [_interpolate(to_input[:side], size) for side, size in zip(input_size, image_size, strict=True)]


def _interpolate(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """The matrix with its rows resized to `size` rows."""
    return functional.interpolate(matrix[None, None], (size, matrix.shape[1]), mode="bilinear")[0, 0]


def _cut_axis(matrix: torch.Tensor) -> _Axis:
    """Cut the pixels of one axis into blocks by the first cell they depend on."""
    grid = matrix.shape[1]
    used = (matrix != 0).long()
    first, last = used.argmax(1), grid - 1 - used.flip(1).argmax(1)
    blocks, counts = (first // _BLOCK).unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    starts = ends - counts
    size = int((last[ends - 1] - blocks * _BLOCK).max()) + 1
    cells = (blocks * _BLOCK).clamp(max=grid - size).tolist()
    weights = matrix.new_zeros(len(blocks), int(counts.max()), size + 1)
    weights[..., size] = 1
    for weights_RK1, cell, start, end in zip(weights, cells, starts.tolist(), ends.tolist(), strict=True):
        weights_RK1[: end - start, :size] = matrix[start:end, cell : cell + size]
        weights_RK1[: end - start, size] = 0
    cells_BK = torch.tensor(cells)[:, None] + torch.arange(size)
    cells_BK1 = functional.pad(cells_BK, (0, 1), value=grid).to(matrix.device)
    return _Axis(starts, ends, cells_BK1, weights, [(cell, cell + size) for cell in cells])


def _ends(counts_IR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First position of each row that is not zero, and the one after the last."""
    some_IR = (counts_IR > 0).float()
    size = counts_IR.shape[1]
    position_R = torch.arange(size, device=counts_IR.device)
    return size - (some_IR * (size - position_R)).amax(1).long(), (some_IR * (position_R + 1)).amax(1).long()
