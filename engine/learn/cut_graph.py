"""The graph behind an encoder's features, cut off for the rounds of prompts and given their gradients in the end.

Each round's graph is then let go at once, and the encoder is gone back through one time for all rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def cut_off(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The features without their graph; they gather gradients if those do (an encoder that is frozen has no graph)."""
    return [level.detach().requires_grad_(level.requires_grad) for level in features]


def give_back(features: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
    """What the leaves gathered goes through the encoder; levels that are frozen, or were not used, are passed over."""
    gathered = [
        (level, leaf.grad) for level, leaf in zip(features, leaves, strict=True) if leaf.grad is not None
    ]
    if gathered:
        torch.autograd.backward([level for level, _ in gathered], [grad for _, grad in gathered])
