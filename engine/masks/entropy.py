"""Mean pixel entropy of a mask's probabilities: the plain baseline of uncertainty.

Shape suffixes: N masks, h w low-resolution mask grid, 4 box x0 y0 x1 y1 (x1 and y1 exclusive).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def pixel_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Binary entropy of sigmoid(logits), bits, 0..1, any shape.

    Exact for large logits too: H = softplus(l) - l * sigmoid(l), in nats.
    """
    logits = logits.abs()  # even in l, and without cancellation on this side
    nats = functional.softplus(-logits) + logits * torch.sigmoid(-logits)
    return nats / math.log(2)


def mean_entropy(logits_Nhw: torch.Tensor, boxes_N4: torch.Tensor) -> torch.Tensor:
    """Mean pixel entropy of each mask inside its box.

    The support is the cells of the low-resolution grid that the mask's box touches, all weighing
    the same. Inside the box, because over a whole image the sure background of a small object would
    hide its unsure edge; at low resolution, because enlarging adds no information.

    Args:
        logits_Nhw: mask logits on the grid.
        boxes_N4: box of each mask in grid cells, fractional or whole.

    Returns:
        bits_N, fp32, 0..1. Boxes are widened to at least one cell.
    """
    height, width = logits_Nhw.shape[1:]
    rows_Nh = _touched_cells(boxes_N4[:, 1], boxes_N4[:, 3], height)
    columns_Nw = _touched_cells(boxes_N4[:, 0], boxes_N4[:, 2], width)
    total_N = torch.einsum("nhw,nh,nw->n", pixel_entropy(logits_Nhw.float()), rows_Nh, columns_Nw)
    return (total_N / (rows_Nh.sum(1) * columns_Nw.sum(1))).clamp(0, 1)


def _touched_cells(start_N: torch.Tensor, end_N: torch.Tensor, size: int) -> torch.Tensor:
    """1 for each cell between start and end, else 0; at least one cell."""
    first_N1 = start_N.floor().clamp(0, size - 1)[:, None]
    last_N1 = torch.maximum(end_N.ceil()[:, None] - 1, first_N1)
    cells = torch.arange(size, device=start_N.device)
    return ((cells >= first_N1) & (cells <= last_N1)).float()
