"""Losses on low-resolution mask logits, one value a mask."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_FAR = 0.1  # so that nothing is drawn where nobody looks


def focal_loss(
    logits_NMhw: torch.Tensor,
    target_NMhw: torch.Tensor,
    certainty_NMhw: torch.Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> torch.Tensor:
    """Mean focal loss over the pixels of each mask, NM (Lin et al. 2017); targets in 0..1.

    Args:
        certainty_NMhw: 0..1, how much each pixel counts (SUM, Liu et al. 2024, uncertainty-aware focal loss); None: fully.
    """
    probability = logits_NMhw.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits_NMhw, target_NMhw, reduction="none")
    agreement = probability * target_NMhw + (1 - probability) * (1 - target_NMhw)
    weight = alpha * target_NMhw + (1 - alpha) * (1 - target_NMhw)
    loss = weight * (1 - agreement) ** gamma * entropy
    return (loss if certainty_NMhw is None else loss * certainty_NMhw).flatten(2).mean(2)


def dice_loss(
    logits_NMhw: torch.Tensor, target_NMhw: torch.Tensor, certain_NMhw: torch.Tensor | None = None
) -> torch.Tensor:
    """1 - soft Dice of each mask, NM; targets in 0..1.

    Args:
        certain_NMhw: bool, the pixels that count (SUM: certainty above a threshold); None: all.
    """
    probability, target = logits_NMhw.sigmoid().flatten(2), target_NMhw.flatten(2)
    if certain_NMhw is not None:
        counts = certain_NMhw.flatten(2)
        probability, target = probability * counts, target * counts
    overlap = (probability * target).sum(2)
    return 1 - (2 * overlap + 1) / (probability.sum(2) + target.sum(2) + 1)


def cell_loss(logits_NMhw: torch.Tensor, target_NMhw: torch.Tensor, near_NMhw: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the cells near each mask, and a tenth of that of all, NM; a cell is a target's if it covers half of it.

    Unlike focal and dice loss it is least where a probability is how often a cell is the target's.

    Args:
        near_NMhw: bool, the cells that are asked about later.
    """
    entropy_NMhw = F.binary_cross_entropy_with_logits(
        logits_NMhw, (target_NMhw > 0.5).to(logits_NMhw.dtype), reduction="none"
    )
    near = near_NMhw.flatten(2)
    return (entropy_NMhw.flatten(2) * near).sum(2) / near.sum(2) + _FAR * entropy_NMhw.flatten(2).mean(2)


@torch.no_grad()
def mask_iou(logits_NMhw: torch.Tensor, target_NMhw: torch.Tensor) -> torch.Tensor:
    """IoU of the masks cut at logit 0 with the targets cut at 0.5, NM."""
    mask, target = logits_NMhw > 0, target_NMhw > 0.5
    union = (mask | target).flatten(2).sum(2)
    return (mask & target).flatten(2).sum(2) / union.clamp(min=1)
