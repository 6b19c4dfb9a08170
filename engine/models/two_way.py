"""The two-way transformer of either package, without repeating per prompt what does not depend on the prompt.

The arithmetic is that of `TwoWayTransformer` (Kirillov et al., "Segment Anything", ICCV 2023, appendix
A), exact but for rounding, in another order:

- What the first layer makes of the image alone is made once an image, not once a prompt.
- Later, tokens are few and image cells many. So the image side's projections move over to the token
  side: (X W) k = X (W k). What is then multiplied with the image is heads x tokens wide (56 for a
  point) instead of the attention's 128, and nothing of the attention's width is ever stored.

Shape suffixes: N prompts, S sources (images, or prompts that bring a mask), T tokens, L image cells,
C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional


def transform_tokens(
    transformer: Any,
    source_SLC: torch.Tensor,
    position_LC: torch.Tensor,
    source_index_N: torch.Tensor | None,
    tokens_NTC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let tokens and image cells attend to each other.

    Args:
        transformer: either package's `TwoWayTransformer`, in evaluation mode.
        source_SLC: image cells, the dense prompt added.
        position_LC: their positional encoding.
        source_index_N: source of each prompt; None when all have the one source, or each its own.
        tokens_NTC: output tokens and sparse prompts.

    Returns:
        hidden_NTC, the tokens; cells_NLC, the image cells as each prompt's tokens changed them.
    """
    first, *others = transformer.layers
    hidden_NTC = first.norm1(_attend(first.self_attn, tokens_NTC, tokens_NTC))
    shared = _Shared(first, source_SLC, position_LC, source_index_N)
    hidden_NTC = first.norm2(hidden_NTC + shared.read(hidden_NTC + tokens_NTC))
    hidden_NTC = first.norm3(hidden_NTC + first.mlp(hidden_NTC))
    cells_NLC = first.norm4(shared.write(hidden_NTC + tokens_NTC, hidden_NTC))
    placed_NLC = cells_NLC + position_LC
    for layer in others:
        query_NTC = hidden_NTC + tokens_NTC
        hidden_NTC = layer.norm1(hidden_NTC + _attend(layer.self_attn, query_NTC, hidden_NTC))
        read_NTC = _read_cells(
            layer.cross_attn_token_to_image, hidden_NTC + tokens_NTC, placed_NLC, cells_NLC
        )
        hidden_NTC = layer.norm2(hidden_NTC + read_NTC)
        hidden_NTC = layer.norm3(hidden_NTC + layer.mlp(hidden_NTC))
        cells_NLC = layer.norm4(
            _write_cells(
                layer.cross_attn_image_to_token, hidden_NTC + tokens_NTC, hidden_NTC, placed_NLC, cells_NLC
            )
        )
        placed_NLC = cells_NLC + position_LC
    read_NTC = _read_cells(
        transformer.final_attn_token_to_image, hidden_NTC + tokens_NTC, placed_NLC, cells_NLC
    )
    return transformer.norm_final_attn(hidden_NTC + read_NTC), cells_NLC


class _Shared:
    """Cross attention of the first layer: the image's keys, values and queries, once a source."""

    def __init__(
        self,
        layer: Any,
        source_SLC: torch.Tensor,
        position_LC: torch.Tensor,
        source_index_N: torch.Tensor | None,
    ) -> None:
        self._to_image, self._to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        placed_SLC = source_SLC + position_LC
        key_SHLD = _split(self._to_image, self._to_image.k_proj(placed_SLC))
        value_SHLD = _split(self._to_image, self._to_image.v_proj(source_SLC))
        query_SHLD = _split(self._to_token, self._to_token.q_proj(placed_SLC))
        images = [key_SHLD.mT.contiguous(), value_SHLD.contiguous(), query_SHLD.mT.contiguous(), source_SLC]
        if source_index_N is not None:
            images = [image[source_index_N] for image in images]
        self._key_HDL, self._value_HLD, self._query_HDL, self._source_LC = images

    def read(self, query_NTC: torch.Tensor) -> torch.Tensor:
        """Tokens attend to the image; NTC."""
        attention = self._to_image
        query_NHTD = _split(attention, attention.q_proj(query_NTC))
        weight_NHTL = _softmax(query_NHTD @ self._key_HDL, query_NHTD.shape[-1], -1)
        return attention.out_proj(_join(weight_NHTL @ self._value_HLD))

    def write(self, key_NTC: torch.Tensor, value_NTC: torch.Tensor) -> torch.Tensor:
        """The image attends to tokens; the source with what it read, NLC."""
        attention = self._to_token
        key_NHTD = _split(attention, attention.k_proj(key_NTC))
        weight_NHTL = _softmax(key_NHTD @ self._query_HDL, key_NHTD.shape[-1], 2)
        return _spread(attention, weight_NHTL, value_NTC, self._source_LC)


def _read_cells(
    attention: Any, query_NTC: torch.Tensor, placed_NLC: torch.Tensor, cells_NLC: torch.Tensor
) -> torch.Tensor:
    """Tokens attend to image cells of their own; NTC."""
    query_NHTD = _split(attention, attention.q_proj(query_NTC))
    # The keys' bias adds the same to all cells, which a softmax does not see.
    query_NHTC = query_NHTD @ _heads(attention, attention.k_proj.weight)
    score_NXL = query_NHTC.flatten(1, 2) @ placed_NLC.mT
    weight_NXL = _softmax(score_NXL, query_NHTD.shape[-1], -1)
    read_NHTC = (weight_NXL @ cells_NLC).unflatten(1, query_NHTC.shape[1:3])
    read_NHTD = read_NHTC @ _heads(attention, attention.v_proj.weight).mT
    return attention.out_proj(_join(read_NHTD) + attention.v_proj.bias)  # weights sum to one


def _write_cells(
    attention: Any,
    key_NTC: torch.Tensor,
    value_NTC: torch.Tensor,
    placed_NLC: torch.Tensor,
    cells_NLC: torch.Tensor,
) -> torch.Tensor:
    """Image cells attend to tokens; the cells with what they read, NLC."""
    key_NHTD = _split(attention, attention.k_proj(key_NTC))
    key_NHTC = key_NHTD @ _heads(attention, attention.q_proj.weight)
    bias_HD1 = attention.q_proj.bias.reshape(attention.num_heads, -1, 1)
    score_NXL = key_NHTC.flatten(1, 2) @ placed_NLC.mT + (key_NHTD @ bias_HD1).flatten(1, 2)
    weight_NHTL = _softmax(score_NXL.unflatten(1, key_NHTC.shape[1:3]), key_NHTD.shape[-1], 2)
    return _spread(attention, weight_NHTL, value_NTC, cells_NLC)


def _spread(
    attention: Any, weight_NHTL: torch.Tensor, value_NTC: torch.Tensor, cells_NLC: torch.Tensor
) -> torch.Tensor:
    """Cells plus the tokens' values, each with the output projection already applied; NLC."""
    value_NHTD = _split(attention, attention.v_proj(value_NTC))
    weight_HDC = attention.out_proj.weight.mT.reshape(attention.num_heads, value_NHTD.shape[-1], -1)
    value_NXC = (value_NHTD @ weight_HDC).flatten(1, 2)
    base_NLC = (cells_NLC + attention.out_proj.bias).expand(len(value_NXC), -1, -1)
    return torch.baddbmm(base_NLC, weight_NHTL.flatten(1, 2).mT, value_NXC)


def _attend(attention: Any, query_NTC: torch.Tensor, value_NTC: torch.Tensor) -> torch.Tensor:
    """Self-attention of the tokens: keys are the queries' input."""
    query, key, value = (
        _split(attention, attention.q_proj(query_NTC)),
        _split(attention, attention.k_proj(query_NTC)),
        _split(attention, attention.v_proj(value_NTC)),
    )
    return attention.out_proj(_join(functional.scaled_dot_product_attention(query, key, value)))


def _softmax(score: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    return (score / math.sqrt(width)).softmax(dim)


def _heads(attention: Any, weight: torch.Tensor) -> torch.Tensor:
    """A projection's weight as HDC."""
    return weight.reshape(attention.num_heads, -1, weight.shape[1])


def _split(attention: Any, x_NTC: torch.Tensor) -> torch.Tensor:
    """NTC -> NHTD."""
    return x_NTC.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _join(x_NHTD: torch.Tensor) -> torch.Tensor:
    """NHTD -> NTC."""
    return x_NHTD.transpose(1, 2).flatten(2)
