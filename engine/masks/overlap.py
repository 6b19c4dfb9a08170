"""The three outputs of a prompt on a coarse grid: small enough to keep for every mask that passes a filter.

Shape suffixes: N prompts, h w low-resolution mask grid, r c coarse grid of the image.
"""

from __future__ import annotations

import torch

_COARSE = 64  # cells a side are enough to tell a part from the whole


def coarsen(logits_N3hw: torch.Tensor, threshold: float, extent: tuple[float, float]) -> torch.Tensor:
    """Logits_N3rc above the mask threshold at every few cells of the image, fp16; padding is left out.

    Args:
        logits_N3hw: mask logits on the grid; 64 cells a side are taken at most.
        threshold: logit of a mask's edge, which is 0 in the result.
        extent: rows and columns of the grid that the image covers (`Segmenter.mask_extent`).
    """
    step = -(-logits_N3hw.shape[-1] // _COARSE)
    rows, columns = (max(1, round(side)) for side in extent)
    return (logits_N3hw[..., :rows:step, :columns:step] - threshold).half()


def compare_outputs(coarse_N3rc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU between the outputs of each prompt, and the share of the image that each covers.

    Args:
        coarse_N3rc: from `coarsen`.

    Returns:
        overlap_N33, 0..1 (0 between empty masks), and coverage_N3, 0..1; fp32.
    """
    on_N3L = (coarse_N3rc > 0).float().flatten(2)
    shared_N33 = on_N3L @ on_N3L.mT
    area_N3 = shared_N33.diagonal(dim1=1, dim2=2)
    union_N33 = area_N3[:, :, None] + area_N3[:, None] - shared_N33
    return shared_N33 / union_N33.clamp(min=1), area_N3 / on_N3L.shape[-1]
