"""The profile of a mask's logits: how steeply they fall at its edge, how sure its inside is, and what shape they cut out.

Shape suffixes: X masks, r c coarse grid of the image, F measures.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional

_STEPS = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)  # logits by which the threshold is moved
_RIM = 2  # cells a mask is dilated by
_AT_ONCE = 96  # masks

PROFILE = (
    "area_4_below",
    "area_2_below",
    "area_1_below",
    "area_1_above",
    "area_2_above",
    "area_4_above",
    "probability",
    "peak",
    "raggedness",
    "thinness",
    "rim",
    "rim_probability",
    "far_probability",
    "spread",
    "elongation",
    "touch",
    "expected_iou",
)
"""Names of the measures, in their order."""


def describe_profiles(coarse_Xrc: torch.Tensor) -> torch.Tensor:
    """profile_XF of masks, fp32, finite, F in the order of `PROFILE`.

    | measure | what it is |
    |---|---|
    | `area_…` | log(1 + a), a the area at a threshold so many logits lower or higher, in areas of the mask |
    | `probability` | mean probability inside the mask, 0..1 |
    | `peak` | highest logit, in tens |
    | `raggedness` | length of the edge in square roots of the area: 4 for a square, more the rougher |
    | `thinness` | log(1 + length of the edge over the area) |
    | `rim` | log(1 + cells within two of the mask that are not its own) |
    | `rim_probability`, `far_probability` | mean probability in the rim; log(1 + probability behind it over the area) |
    | `spread` | log of the second moment over that of a disc of the same area: 0 for a disc, more for scattered masks |
    | `elongation` | 0 for a round mask, 1 for a line |
    | `touch` | share of the edge that is the image's edge, 0..1 |
    | `expected_iou` | IoU with a truth of which each cell is a part with its probability |

    Args:
        coarse_Xrc: logits above the mask threshold, any precision (`engine.masks.overlap.coarsen`).
    """
    # On a processor so few at a time that they stay in its cache, which is five times as fast.
    at_once = _AT_ONCE if coarse_Xrc.device.type == "cpu" else max(1, len(coarse_Xrc))
    parts = [_add_up(part_Xrc.float()) for part_Xrc in coarse_Xrc.split(at_once)]
    sums = _Sums(*map(torch.cat, zip(*parts, strict=True)))
    inside_X, near_X, everywhere_X = sums.probability_X3.T
    covered_X, near_cells_X, pairs_X, slanted_X = sums.cells_X4.T
    on_Xr, on_Xc = sums.on_Xr, sums.on_Xc
    border_X = on_Xr[:, 0] + on_Xr[:, -1] + on_Xc[:, 0] + on_Xc[:, -1]
    area_X = covered_X.clamp(min=1)
    edge_X = 4 * covered_X - 2 * pairs_X  # four sides a cell, less two for each pair of neighbours
    rim_X = near_cells_X - covered_X
    # Second moments; a cell is a square, which has some of its own.
    y_r, x_c = (_places(side_Xs) for side_Xs in (on_Xr, on_Xc))
    y_X, x_X = on_Xr @ y_r / area_X, on_Xc @ x_c / area_X
    yy_X = on_Xr @ y_r.square() / area_X - y_X.square() + 1 / 12
    xx_X = on_Xc @ x_c.square() / area_X - x_X.square() + 1 / 12
    xy_X = slanted_X / area_X - x_X * y_X
    moment_X = (yy_X + xx_X).clamp(min=1 / 6)
    return torch.stack(
        [
            *(sums.above_XT / area_X[:, None]).log1p().T,
            inside_X / area_X,
            sums.peak_X / 10,
            edge_X / area_X.sqrt(),
            (edge_X / area_X).log1p(),
            rim_X.log1p(),
            (near_X - inside_X) / rim_X.clamp(min=1),
            ((everywhere_X - near_X) / area_X).log1p(),
            (moment_X * 2 * math.pi / area_X).log(),
            ((yy_X - xx_X).square() + 4 * xy_X.square()).sqrt() / moment_X,
            border_X / edge_X.clamp(min=1),
            inside_X / (area_X + everywhere_X - inside_X),
        ],
        1,
    )


class _Sums(NamedTuple):
    """What is added up over the cells of masks.

    Attributes:
        above_XT: cells above each of the moved thresholds.
        probability_X3: in the mask, in and near it, and everywhere.
        cells_X4: in the mask; in and near it; pairs of neighbours in it; and x y of those in it.
        on_Xr, on_Xc: cells of each row and of each column in it.
        peak_X: the highest logit.
    """

    above_XT: torch.Tensor
    probability_X3: torch.Tensor
    cells_X4: torch.Tensor
    on_Xr: torch.Tensor
    on_Xc: torch.Tensor
    peak_X: torch.Tensor


def _add_up(logits_Xrc: torch.Tensor) -> _Sums:
    buffer_Xrc, chance_Xrc = torch.empty_like(logits_Xrc), logits_Xrc.sigmoid()

    def total(values_Xrc: torch.Tensor) -> torch.Tensor:
        return values_Xrc.sum((1, 2))

    def product(first_Xrc: torch.Tensor, second_Xrc: torch.Tensor) -> torch.Tensor:
        _, rows, columns = first_Xrc.shape
        return torch.mul(first_Xrc, second_Xrc, out=buffer_Xrc[:, :rows, :columns])

    above_XT = torch.stack([total(torch.gt(logits_Xrc, step, out=buffer_Xrc)) for step in _STEPS], 1)
    # Compared into floats at once: by way of booleans it takes four times as long.
    on_Xrc = torch.gt(logits_Xrc, 0, out=torch.empty_like(logits_Xrc))
    near_Xrc, on_Xr = _dilate(on_Xrc), on_Xrc.sum(2)
    probabilities = (
        total(product(chance_Xrc, on_Xrc)),
        total(product(chance_Xrc, near_Xrc)),
        total(chance_Xrc),
    )
    pairs_X = total(product(on_Xrc[:, 1:], on_Xrc[:, :-1])) + total(
        product(on_Xrc[..., 1:], on_Xrc[..., :-1])
    )
    slanted_X = (on_Xrc @ _places(on_Xrc)) @ _places(on_Xr)
    return _Sums(
        above_XT,
        torch.stack(probabilities, 1),
        torch.stack([on_Xr.sum(1), total(near_Xrc), pairs_X, slanted_X], 1),
        on_Xr,
        on_Xrc.sum(1),
        logits_Xrc.amax((1, 2)),
    )


def _places(like: torch.Tensor) -> torch.Tensor:
    """0, 1 … along the last axis."""
    return torch.arange(like.shape[-1], device=like.device, dtype=torch.float32)


def _dilate(on_Xrc: torch.Tensor) -> torch.Tensor:
    """1 at cells within `_RIM` along either axis of one that is on, else 0. By shifts of bytes, in a tenth of the time of a pooling."""
    rows, columns = on_Xrc.shape[1:]
    # Padded, so that nothing is shifted into another row or mask.
    near_Xrc = functional.pad(on_Xrc.to(torch.uint8), (_RIM,) * 4)
    for stride in (1, columns + 2 * _RIM):
        flat_L = near_Xrc.flatten()
        near_Xrc = near_Xrc.clone()
        for shift in (stride * step for step in range(1, _RIM + 1)):
            near_Xrc.view(-1)[shift:] |= flat_L[:-shift]
            near_Xrc.view(-1)[:-shift] |= flat_L[shift:]
    return near_Xrc[:, _RIM : _RIM + rows, _RIM : _RIM + columns].float()
