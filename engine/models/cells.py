"""Image cells as each prompt's tokens change them, without storing them prompt by prompt.

In a layer of the two-way transformer (Kirillov et al., "Segment Anything", ICCV 2023, appendix A) the
cells read a few vectors from the tokens, heads x tokens of them, and are normalised. So, however many
layers deep, in real arithmetic

    cells_NLC = scale_N1L · shared_SLC + weight_NKLᵀ · basis_NKC + constant_C

where all that is prompt by prompt is short in one direction. Layer norm keeps this form: centring is
linear and moves to shared and basis; the variance follows from inner products of the two; dividing by
its root changes scale and weight alone. Projected cells are shared ones and a small update.

Shape suffixes: N prompts, S sources (1, or one for each prompt), T tokens, L image cells, C channels,
H heads, D channels of a head, E = D + 1, X = H T, K = X for each layer that wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Stage:
    """What the cells are between two layers, but for what each prompt changes.

    Attributes:
        shared_SLC: their shared part.
        outs: for each layer that wrote, where the values of its tokens lead, HEC. The last of the E is
            constant: it goes with a one behind the values, as the weights of a head sum to one.
        constant_C: added to all cells.
        position_LC: their positional encoding.
    """

    shared_SLC: torch.Tensor
    outs: tuple[torch.Tensor, ...]
    constant_C: torch.Tensor
    position_LC: torch.Tensor


class Reading:
    """Tokens attend to cells: the part that the prompts of a source share."""

    def __init__(self, attention: Any, stage: Stage) -> None:
        self.attention, self.outs = attention, stage.outs
        self.keys = _Projection(attention.num_heads, attention.k_proj, stage, stage.position_LC)
        values = _Projection(
            attention.num_heads, attention.v_proj, stage, torch.zeros_like(stage.position_LC[:1])
        )
        self.value_SHLD = values.shared_SHDL.mT.contiguous()
        self.value_weight_HDC = values.weight_HDC
        self.constant_1H1D = None if values.added_1HDL is None else values.added_1HDL.mT


class Writing:
    """Cells attend to tokens and are normalised: the part that the prompts of a source share.

    Attributes:
        after: the stage behind it.
    """

    def __init__(self, attention: Any, norm: torch.nn.LayerNorm, stage: Stage) -> None:
        self.attention, self.outs, self.eps = attention, stage.outs, norm.eps
        self.queries = _Projection(attention.num_heads, attention.q_proj, stage, stage.position_LC)
        out_HDC = _heads(attention.num_heads, attention.out_proj.weight.mT)
        constant_C = (attention.out_proj.bias + stage.constant_C) / attention.num_heads
        out_HEC = torch.cat([out_HDC, constant_C.expand(len(out_HDC), 1, -1)], 1)
        centred_SLC, *self.centred_outs = (
            x - x.mean(-1, keepdim=True) for x in (stage.shared_SLC, *stage.outs, out_HEC)
        )
        self.square_S1L = centred_SLC.square().sum(-1)[:, None]
        # Of the shared part with where the values of each layer lead, SHEL.
        self.products = [out_HEC @ centred_SLC.mT[:, None] for out_HEC in self.centred_outs]
        self.after = Stage(
            centred_SLC * norm.weight,
            tuple(out_HEC * norm.weight for out_HEC in self.centred_outs),
            norm.bias,
            stage.position_LC,
        )


class Cells:
    """The cells of N prompts: of one source, or each of its own.

    Attributes:
        scale_N1L: None before the first norm, for one.
        weight_NKL: None before anything was written.
    """

    def __init__(self) -> None:
        self.scale_N1L: torch.Tensor | None = None
        self.weight_NKL: torch.Tensor | None = None
        self._values: list[torch.Tensor] = []  # NHTE of each layer that wrote

    def pick(self, index_K: torch.Tensor) -> Cells:
        """Those of some of the prompts."""
        picked = Cells()
        picked._values = [value_NHTE[index_K] for value_NHTE in self._values]
        if self.weight_NKL is not None and self.scale_N1L is not None:
            picked.weight_NKL, picked.scale_N1L = self.weight_NKL[index_K], self.scale_N1L[index_K]
        return picked

    def basis(self, outs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Directions of the update, NKC, with the `outs` of a stage."""
        pairs = zip(self._values, outs, strict=True)
        return torch.cat([(value_NHTE @ out_HEC).flatten(1, 2) for value_NHTE, out_HEC in pairs], 1)

    def read(self, reading: Reading, query_NHTD: torch.Tensor) -> torch.Tensor:
        """What the tokens read, NHTD."""
        weight_NXL = self._match(query_NHTD, reading.keys, reading.outs).softmax(-1)
        heads = query_NHTD.shape[1:3]
        if self.scale_N1L is None or self.weight_NKL is None:
            return weight_NXL.unflatten(1, heads) @ reading.value_SHLD
        read_NXC = (weight_NXL @ self.weight_NKL.mT) @ self.basis(reading.outs)
        weight_NXL = weight_NXL * self.scale_N1L
        read_NHTD = weight_NXL.unflatten(1, heads) @ reading.value_SHLD
        return read_NHTD + reading.constant_1H1D + read_NXC.unflatten(1, heads) @ reading.value_weight_HDC.mT

    def write(self, writing: Writing, key_NHTD: torch.Tensor, value_NHTD: torch.Tensor) -> None:
        """Let the cells read the tokens, and normalise them."""
        match_NXL = self._match(key_NHTD, writing.queries, writing.outs)
        weight_NKL = match_NXL.unflatten(1, key_NHTD.shape[1:3]).softmax(2).flatten(1, 2)
        self._values.append(torch.cat([value_NHTD, torch.ones_like(value_NHTD[..., :1])], -1))
        if self.weight_NKL is not None:
            weight_NKL = torch.cat([self.weight_NKL, weight_NKL], 1)
        basis_NKC = self.basis(writing.centred_outs)
        # In fp32: a variance is a small difference of large sums where much cancels.
        with torch.autocast(weight_NKL.device.type, enabled=False):
            weight_NKL, basis_NKC = weight_NKL.float(), basis_NKC.float()
            both_N1L = torch.zeros_like(weight_NKL[:, :1])
            parts = zip(weight_NKL.chunk(len(self._values), 1), self._values, writing.products, strict=True)
            for weight_NXL, value_NHTE, product_SHEL in parts:
                product_NXL = _multiply(value_NHTE.float(), product_SHEL.float())
                both_N1L += product_NXL.mul_(weight_NXL).sum(1, keepdim=True)
            own_NKL = (basis_NKC @ basis_NKC.mT) @ weight_NKL
            own_N1L = own_NKL.mul_(weight_NKL).sum(1, keepdim=True)
            scale_N1L = 1.0 if self.scale_N1L is None else self.scale_N1L
            square_N1L = own_N1L + scale_N1L * (2 * both_N1L + scale_N1L * writing.square_S1L.float())
            inverse_N1L = (square_N1L.clamp(min=0) / basis_NKC.shape[-1] + writing.eps).rsqrt()
            self.weight_NKL = weight_NKL.mul_(inverse_N1L)
            self.scale_N1L = scale_N1L * inverse_N1L

    def _match(
        self, tokens_NHTD: torch.Tensor, cells: _Projection, outs: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Scores of an attention between tokens and cells, NXL."""
        tokens_NHTD = tokens_NHTD / math.sqrt(tokens_NHTD.shape[-1])
        match_NXL = _multiply(tokens_NHTD, cells.shared_SHDL)
        if self.scale_N1L is None or self.weight_NKL is None or cells.added_1HDL is None:
            return match_NXL
        added_NXL = _multiply(tokens_NHTD, cells.added_1HDL)
        match_NXL = torch.addcmul(added_NXL, match_NXL, self.scale_N1L)
        tokens_NXC = (tokens_NHTD @ cells.weight_HDC).flatten(1, 2)
        return torch.baddbmm(match_NXL, tokens_NXC @ self.basis(outs).mT, self.weight_NKL)


class _Projection:
    """The cells of a stage, projected to the heads of an attention.

    Attributes:
        weight_HDC: the projection.
        shared_SHDL: of the shared part, before scaling.
        added_1HDL: of what is added after it; None while nothing is scaled, when it is in the shared part.
    """

    def __init__(self, heads: int, linear: torch.nn.Linear, stage: Stage, position_LC: torch.Tensor) -> None:
        self.weight_HDC = _heads(heads, linear.weight)
        added_LC = position_LC + stage.constant_C
        if not stage.outs:
            shared_SLC, self.added_1HDL = linear(stage.shared_SLC + added_LC), None
        else:
            shared_SLC = functional.linear(stage.shared_SLC, linear.weight)
            self.added_1HDL = linear(added_LC).mT.contiguous().unflatten(0, (heads, -1))[None]
        self.shared_SHDL = shared_SLC.mT.contiguous().unflatten(1, (heads, -1))


def _multiply(tokens_NHTD: torch.Tensor, cells_SHDL: torch.Tensor) -> torch.Tensor:
    """Inner products, NXL; the cells of a single source are not repeated for each prompt."""
    if len(cells_SHDL) != 1:
        return (tokens_NHTD @ cells_SHDL).flatten(1, 2)
    product_HXL = tokens_NHTD.transpose(0, 1).flatten(1, 2) @ cells_SHDL[0]
    n, _, n_tokens, _ = tokens_NHTD.shape
    return product_HXL.unflatten(1, (n, n_tokens)).transpose(0, 1).flatten(1, 2)


def _heads(heads: int, weight: torch.Tensor) -> torch.Tensor:
    """A weight cut along its first axis into heads."""
    return weight.reshape(heads, -1, weight.shape[-1])
