"""How much the three outputs of a prompt agree: cheap enough to be asked of every mask that is kept.

Shape suffixes: N prompts, h w low-resolution mask grid.
"""

from __future__ import annotations

import torch

_COARSE = 64  # cells a side are enough to tell a part from the whole


def compare_outputs(
    logits_N3hw: torch.Tensor, threshold: float, extent: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU between the outputs of each prompt, and the share of the image that each covers.

    Args:
        logits_N3hw: mask logits on the grid; every few cells are looked at, 64 a side at most.
        threshold: logit of a mask's edge.
        extent: rows and columns of the grid that the image covers (`Segmenter.mask_extent`).

    Returns:
        overlap_N33, 0..1 (0 between empty masks), and coverage_N3, 0..1; fp32.
    """
    step = -(-logits_N3hw.shape[-1] // _COARSE)
    rows, columns = (max(1, round(side)) for side in extent)
    on_N3L = (logits_N3hw[..., :rows:step, :columns:step] > threshold).float().flatten(2)
    shared_N33 = on_N3L @ on_N3L.mT
    area_N3 = shared_N33.diagonal(dim1=1, dim2=2)
    union_N33 = area_N3[:, :, None] + area_N3[:, None] - shared_N33
    return shared_N33 / union_N33.clamp(min=1), area_N3 / on_N3L.shape[-1]
