"""The profile of a mask's logits: how steeply they fall at its edge, how sure its inside is, and what shape they cut out.

Shape suffixes: X masks, r c coarse grid of the image, F measures.
"""

from __future__ import annotations

import math

import torch

_STEPS = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)  # logits by which the threshold is moved
_RIM = 2  # cells a mask is dilated by

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
    logits_Xrc = coarse_Xrc.float()
    rows, columns = logits_Xrc.shape[1:]
    chance_Xrc, on_Xrc = logits_Xrc.sigmoid(), (logits_Xrc > 0).float()

    def total(values_Xrc: torch.Tensor) -> torch.Tensor:
        return values_Xrc.flatten(1).sum(1)

    area_X = total(on_Xrc).clamp(min=1)
    moved = [((logits_Xrc > step).count_nonzero((1, 2)) / area_X).log1p() for step in _STEPS]
    inside_X = total(chance_Xrc * on_Xrc)
    border_X = on_Xrc[:, 0].sum(1) + on_Xrc[:, -1].sum(1) + on_Xrc[:, :, 0].sum(1) + on_Xrc[:, :, -1].sum(1)
    steps = (on_Xrc[:, 1:] - on_Xrc[:, :-1], on_Xrc[..., 1:] - on_Xrc[..., :-1])
    edge_X = sum(total(step.abs()) for step in steps) + border_X
    near_Xrc = (_band(rows, on_Xrc) @ on_Xrc @ _band(columns, on_Xrc)).gt(0).float()
    rim_Xrc = near_Xrc - on_Xrc
    rim_X = total(rim_Xrc)
    # Second moments; a cell is a square, which has some of its own.
    y_r, x_c = (torch.arange(side, device=on_Xrc.device, dtype=torch.float32) for side in (rows, columns))
    share_Xr, share_Xc = on_Xrc.sum(2) / area_X[:, None], on_Xrc.sum(1) / area_X[:, None]
    y_X, x_X = share_Xr @ y_r, share_Xc @ x_c
    yy_X = share_Xr @ y_r.square() - y_X.square() + 1 / 12
    xx_X = share_Xc @ x_c.square() - x_X.square() + 1 / 12
    xy_X = ((on_Xrc @ x_c) @ y_r) / area_X - x_X * y_X
    moment_X = (yy_X + xx_X).clamp(min=1 / 6)
    return torch.stack(
        [
            *moved,
            inside_X / area_X,
            logits_Xrc.flatten(1).amax(1) / 10,
            edge_X / area_X.sqrt(),
            (edge_X / area_X).log1p(),
            rim_X.log1p(),
            total(chance_Xrc * rim_Xrc) / rim_X.clamp(min=1),
            (total(chance_Xrc * (1 - near_Xrc)) / area_X).log1p(),
            (moment_X * 2 * math.pi / area_X).log(),
            ((yy_X - xx_X).square() + 4 * xy_X.square()).sqrt() / moment_X,
            border_X / edge_X.clamp(min=1),
            inside_X / (area_X + total(chance_Xrc * (1 - on_Xrc))),
        ],
        1,
    )


def _band(side: int, like: torch.Tensor) -> torch.Tensor:
    """1 where two places of a side are near: a product with it from either side dilates, a fifth of the time of a pooling."""
    place = torch.arange(side, device=like.device)
    return ((place[:, None] - place).abs() <= _RIM).to(like.dtype)
