"""From image cells in two factors to mask logits, with the modules of either package's mask decoder.

The packages enlarge the cells of every prompt by two transposed convolutions whose kernels do not
overlap. So each is a product, cell by cell; the first is linear in the cells and therefore is a shared
part and a small update as well (see `cells`). Channels stay last until the masks are drawn.

Shape suffixes: N prompts, M masks, S sources (1, or one for each prompt), L image cells, C channels,
F channels of the first enlargement times its 2 x 2 pixels, G of the second, e side of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from engine.models.cells import Cells, Stage

# What is drawn at once stays in a core's cache.
_CPU_CELLS = 512


class Upscaling:
    """What the masks of all prompts of the sources share."""

    def __init__(self, mask_decoder: Any, stage: Stage, high_res: Sequence[torch.Tensor]) -> None:
        """Prepare.

        Args:
            mask_decoder: either package's `MaskDecoder`.
            stage: of the cells behind the transformer.
            high_res: features of the sources at strides 4 and 8 (SAM 2), or none.
        """
        enlarge_1, self._norm, self._activate_1, enlarge_2, self._activate_2 = mask_decoder.output_upscaling
        weight_CF, bias_F = _product(enlarge_1)
        self._weight_CG, bias_G = _product(enlarge_2)
        self._outs = [out_HEC @ weight_CF for out_HEC in stage.outs]
        self._shared_SLF = stage.shared_SLC @ weight_CF
        self._added_SLF = (stage.constant_C @ weight_CF + bias_F)[None, None]
        self._fine_SLPG = bias_G[None, None, None]
        if high_res:
            stride_4, stride_8 = high_res
            # By cell, then by pixel of the first and of the second enlargement inside it.
            coarse = stride_8.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 3, 5, 1)
            fine = stride_4.unflatten(3, (-1, 2, 2)).unflatten(2, (-1, 2, 2)).permute(0, 2, 5, 3, 6, 4, 7, 1)
            self._added_SLF = self._added_SLF + coarse.flatten(3).flatten(1, 2)
            self._fine_SLPG = self._fine_SLPG + fine.flatten(5).flatten(3, 4).flatten(1, 2)

    def draw(
        self, cells: Cells, weights_NMC: torch.Tensor, index_K: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mask logits.

        Args:
            cells: behind the transformer.
            weights_NMC: of the pixels' channels in each mask.
            index_K: positions of the prompts to draw; None for all of them.

        Returns:
            logits_KMhw on the mask grid, four times as fine as the cells.
        """
        shared_SLF, added_SLF, fine_SLPG = self._shared_SLF, self._added_SLF, self._fine_SLPG
        if index_K is not None:
            cells, weights_NMC = cells.pick(index_K), weights_NMC[index_K]
            shared_SLF, added_SLF, fine_SLPG = (
                x if len(x) == 1 else x[index_K] for x in (shared_SLF, added_SLF, fine_SLPG)
            )
        scale_N1L, weight_NKL = cells.scale_N1L, cells.weight_NKL
        if scale_N1L is None or weight_NKL is None:
            raise ValueError("Cells are drawn behind the transformer.")
        basis_NKF = cells.basis(self._outs)
        count = shared_SLF.shape[1]
        tile = max(_CPU_CELLS // max(len(basis_NKF), 1), 1) if shared_SLF.device.type == "cpu" else count
        drawn = []
        for start in range(0, count, tile):
            part = slice(start, start + tile)
            added = added_SLF if added_SLF.shape[1] == 1 else added_SLF[:, part]
            x_NLF = torch.addcmul(added, shared_SLF[:, part], scale_N1L[..., part].mT)
            x_NLF = torch.baddbmm(x_NLF, weight_NKL[..., part].mT, basis_NKF)
            x_NLPC = x_NLF.unflatten(2, (4, -1))
            norm = self._norm
            x_NLPC = functional.layer_norm(x_NLPC, x_NLPC.shape[-1:], norm.weight, norm.bias, norm.eps)
            x_NLPG = self._activate_1(x_NLPC) @ self._weight_CG
            x_NLPG += fine_SLPG if fine_SLPG.shape[1] == 1 else fine_SLPG[:, part]
            pixels_NLC = self._activate_2(x_NLPG).unflatten(3, (4, -1)).flatten(1, 3)
            drawn.append(weights_NMC @ pixels_NLC.mT)
        side = math.isqrt(count)
        # From cell, pixel, pixel to rows; two pixels are moved as one number, which a CPU does ten times as fast.
        pairs = torch.cat(drawn, 2).float().view(torch.int64).unflatten(2, (side, side, 2, 2, 2))
        rows = pairs.permute(0, 1, 2, 4, 6, 3, 5).reshape(*pairs.shape[:2], 4 * side, 2 * side)
        return rows.view(torch.float32)


def _product(enlarge: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A transposed convolution of 2 x 2 and stride 2 as a product: weight C x (2 · 2 · out), and bias."""
    return enlarge.weight.permute(0, 2, 3, 1).flatten(1), enlarge.bias.repeat(4)
