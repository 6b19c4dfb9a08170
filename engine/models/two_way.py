"""The two-way transformer of either package, without repeating per prompt what does not depend on the prompt.

The arithmetic is that of `TwoWayTransformer` (Kirillov et al., "Segment Anything", ICCV 2023, appendix
A), exact but for rounding, in another order: tokens are treated as there, image cells as `cells` says.

Shape suffixes: N prompts, S sources (images, or prompts that bring a mask), T tokens, L image cells,
C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from engine.models.cells import Cells, Reading, Stage, Writing


class TwoWay:
    """A `TwoWayTransformer` in evaluation mode, with what all prompts of the sources share made once.

    Attributes:
        cells: of an image.
        stage: of the cells behind the last layer.
    """

    def __init__(self, transformer: Any, source_SLC: torch.Tensor, position_LC: torch.Tensor) -> None:
        """Prepare.

        Args:
            transformer: either package's.
            source_SLC: image cells, the dense prompt added.
            position_LC: their positional encoding.
        """
        self._transformer = transformer
        self.cells = len(position_LC)
        self.stage = Stage(source_SLC, (), torch.zeros_like(position_LC[0]), position_LC)
        self._layers = []
        for layer in transformer.layers:
            reading = Reading(layer.cross_attn_token_to_image, self.stage)
            writing = Writing(layer.cross_attn_image_to_token, layer.norm4, self.stage)
            self._layers.append((layer, reading, writing))
            self.stage = writing.after
        self._last = Reading(transformer.final_attn_token_to_image, self.stage)

    def transform(self, tokens_NTC: torch.Tensor, width: int) -> tuple[torch.Tensor, list[Cells]]:
        """Let tokens and image cells attend to each other.

        Args:
            tokens_NTC: output tokens and sparse prompts of N prompts.
            width: prompts whose cells are treated at once.

        Returns:
            hidden_NTC, the tokens; and the cells of each `width` prompts.
        """
        cells = [Cells() for _ in tokens_NTC.split(width)]
        hidden_NTC = tokens_NTC
        for index, (layer, reading, writing) in enumerate(self._layers):
            # The first layer looks at the tokens alone, and leaves out the skip.
            query_NTC = hidden_NTC if index == 0 else hidden_NTC + tokens_NTC
            attended_NTC = _attend(layer.self_attn, query_NTC, hidden_NTC)
            hidden_NTC = layer.norm1(attended_NTC if index == 0 else hidden_NTC + attended_NTC)
            hidden_NTC = layer.norm2(hidden_NTC + _read(reading, cells, width, hidden_NTC + tokens_NTC))
            hidden_NTC = layer.norm3(hidden_NTC + layer.mlp(hidden_NTC))
            _write(writing, cells, width, hidden_NTC + tokens_NTC, hidden_NTC)
        hidden_NTC = hidden_NTC + _read(self._last, cells, width, hidden_NTC + tokens_NTC)
        return self._transformer.norm_final_attn(hidden_NTC), cells


def _read(reading: Reading, cells: list[Cells], width: int, query_NTC: torch.Tensor) -> torch.Tensor:
    """Tokens attend to the cells; NTC."""
    attention = reading.attention
    query_NHTD = _split(attention, attention.q_proj(query_NTC))
    parts = query_NHTD.split(width)
    read_NHTD = torch.cat([cell.read(reading, part) for cell, part in zip(cells, parts, strict=True)])
    return attention.out_proj(_join(read_NHTD))


def _write(
    writing: Writing, cells: list[Cells], width: int, key_NTC: torch.Tensor, value_NTC: torch.Tensor
) -> None:
    """The cells attend to the tokens."""
    attention = writing.attention
    keys = _split(attention, attention.k_proj(key_NTC)).split(width)
    values = _split(attention, attention.v_proj(value_NTC)).split(width)
    for cell, key_NHTD, value_NHTD in zip(cells, keys, values, strict=True):
        cell.write(writing, key_NHTD, value_NHTD)


def _attend(attention: Any, query_NTC: torch.Tensor, value_NTC: torch.Tensor) -> torch.Tensor:
    """Self-attention of the tokens: keys are the queries' input."""
    query, key, value = (
        _split(attention, attention.q_proj(query_NTC)),
        _split(attention, attention.k_proj(query_NTC)),
        _split(attention, attention.v_proj(value_NTC)),
    )
    return attention.out_proj(_join(functional.scaled_dot_product_attention(query, key, value)))


def _split(attention: Any, x_NTC: torch.Tensor) -> torch.Tensor:
    """NTC -> NHTD."""
    return x_NTC.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _join(x_NHTD: torch.Tensor) -> torch.Tensor:
    """NHTD -> NTC."""
    return x_NHTD.transpose(1, 2).flatten(2)
