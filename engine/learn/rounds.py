"""One update of a model: a batch of views, rounds of prompts for all their masks, and what is taught.

Shape suffixes: M masks of all views, O outputs (4: the single mask, then the three), P points, h w mask grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from engine.learn.cut_graph import cut_off, give_back
from engine.learn.examples import CELL, POINTS, Examples
from engine.learn.losses import dice_loss, focal_loss, mask_iou
from engine.learn.trainee import PromptedModel, bf16_is_fast

_KINDS = {"point": 0.6, "points": 0.15, "box": 0.18, "both": 0.07}
_ROUNDS = {1: 0.6, 2: 0.2, 3: 0.2}
_PROMPTS_AT_ONCE = 128  # masks that are prompted alike, and memory


def train_step(
    model: PromptedModel,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    rng: np.random.Generator,
    device: str | torch.device,
) -> torch.Tensor:
    """One update in one to three rounds of prompts; mean loss, IoU of the best output and error of the predicted IoU, 3."""
    examples = examples.to(device)
    arithmetic = torch.autocast(
        torch.device(device).type, dtype=torch.bfloat16, enabled=bf16_is_fast(torch.device(device))
    )
    pixels = examples.pixels_BSS3.permute(0, 3, 1, 2).float()
    with arithmetic:
        embedding, fine = model.encode(pixels, examples.valid_B1SS.float())
    features = [level.float() for level in (embedding, *fine)]
    leaves = cut_off(features)
    optimizer.zero_grad(set_to_none=True)
    cells_B1hw = examples.valid_B1SS[:, :, ::CELL, ::CELL].float()
    drawn = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    report = torch.zeros(3, device=device)
    count = len(examples.view_M)
    for first in range(0, count, _PROMPTS_AT_ONCE):
        part = slice(first, min(first + _PROMPTS_AT_ONCE, count))
        prompt = _first_prompt(rng, examples, part)
        rounds = int(rng.choice(list(_ROUNDS), p=list(_ROUNDS.values())))
        target = examples.share_M1hw[part].float() / 255
        for turn in range(rounds):
            with arithmetic:
                logits, iou = model.decode(leaves[0], leaves[1:], prompt)
            loss, figures, best = _loss(
                logits.float(), iou.float(), target, examples.weight_M[part], ambiguous=prompt["ambiguous"]
            )
            (loss / rounds).backward()
            report += torch.cat([loss.detach()[None], figures]) / rounds
            if turn + 1 < rounds:
                prompt = _next_prompt(drawn, prompt, best.detach(), target, cells_B1hw[prompt["images"]])
    give_back(features, leaves)
    nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
    optimizer.step()
    return report


def _loss(
    logits_MOhw: torch.Tensor,
    iou_MO: torch.Tensor,
    target_M1hw: torch.Tensor,
    weight_M: torch.Tensor,
    *,
    ambiguous: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best of the three outputs is taught (and the single output, where the prompt says enough), and every IoU."""
    target = target_M1hw.expand_as(logits_MOhw)
    masks_MO = 20 * focal_loss(logits_MOhw, target) + dice_loss(logits_MOhw, target)
    truth_MO = mask_iou(logits_MOhw, target)
    best_M1 = masks_MO[:, 1:].argmin(1, keepdim=True)
    # A little for the others keeps all three outputs alive while one of them is still winning everywhere.
    taught_M = (
        masks_MO[:, 1:].gather(1, best_M1)[:, 0]
        + 0.05 * masks_MO[:, 1:].mean(1)
        + (0.2 if ambiguous else 0.6) * masks_MO[:, 0]
    )
    error_MO = iou_MO - truth_MO
    loss = ((taught_M + error_MO.square().mean(1)) * weight_M).sum()
    place = best_M1[..., None, None].expand(-1, -1, *logits_MOhw.shape[-2:])
    figures_M2 = torch.stack([truth_MO[:, 1:].amax(1), error_MO.abs().mean(1)], 1).detach()
    return loss, weight_M @ figures_M2, logits_MOhw[:, 1:].gather(1, place)


def _first_prompt(rng: np.random.Generator, examples: Examples, part: slice) -> dict[str, Any]:
    """One point (most often), up to eight points, a box, or a box and a point; one kind for all of the masks."""
    kind = rng.choice(list(_KINDS), p=list(_KINDS.values()))
    count = int(rng.integers(2, POINTS + 1)) if kind == "points" else 1
    points = None if kind == "box" else examples.points_MP2[part, :count]
    return {
        "images": examples.view_M[part],
        "points": points,
        "labels": None if points is None else torch.ones_like(points[..., 0], dtype=torch.int64),
        "boxes": examples.boxes_M4[part] if kind in ("box", "both") else None,
        "masks": None,
        "ambiguous": kind == "point",
    }


def _next_prompt(
    drawn: torch.Generator,
    prompt: dict[str, Any],
    logits_M1hw: torch.Tensor,
    target_M1hw: torch.Tensor,
    valid_M1hw: torch.Tensor,
) -> dict[str, Any]:
    """A correction: a point where the best mask is wrong, and that mask's logits as mask prompt."""
    share_Mx = target_M1hw.flatten(1)
    inside_Mx = share_Mx > share_Mx.amax(1, keepdim=True) / 2  # a thin mask covers no cell by half
    wrong_Mx = inside_Mx != (logits_M1hw > 0).flatten(1)
    # Where nothing is wrong, one more point of the mask.
    weight_Mx = wrong_Mx * valid_M1hw.flatten(1) + 1e-6 * inside_Mx
    cell_M1 = torch.multinomial(weight_Mx, 1, generator=drawn)
    columns = target_M1hw.shape[-1]
    corner_M12 = torch.stack([cell_M1 % columns, cell_M1 // columns], -1)
    offset_M12 = torch.rand(corner_M12.shape, generator=drawn, device=corner_M12.device)
    points, labels = (corner_M12 + offset_M12) * CELL - 0.5, inside_Mx.gather(1, cell_M1).long()
    if prompt["points"] is not None:
        points, labels = torch.cat([prompt["points"], points], 1), torch.cat([prompt["labels"], labels], 1)
    return {**prompt, "points": points, "labels": labels, "masks": logits_M1hw, "ambiguous": False}
