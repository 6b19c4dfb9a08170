"""One update of a model: prompts drawn from the masks, one or two rounds of them, and what is taught."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engine.learn.augment import View, draw_box, draw_points
from engine.learn.losses import dice_loss, focal_loss, mask_iou
from engine.learn.trainee import PromptedModel, bf16_is_fast


def train_step(
    model: PromptedModel,
    optimizer: torch.optim.Optimizer,
    views: list[View],
    rng: np.random.Generator,
    device: str,
) -> np.ndarray:
    """One update on a batch of views, in one or two rounds of prompts; returns mean (loss, iou, iou error, masks)."""
    pixels = (
        torch.from_numpy(np.stack([view.pixels for view in views])).to(device).permute(0, 3, 1, 2).float()
    )
    valid = torch.zeros(len(views), 1, *pixels.shape[-2:], device=device)
    for index, view in enumerate(views):
        valid[index, :, : view.valid_hw[0], : view.valid_hw[1]] = 1
    targets = [_target(view, device) for view in views]
    prompts = [_first_prompt(rng, view, device) for view in views]
    rounds = 2 if rng.random() < 0.3 else 1
    total, report = torch.zeros((), device=device), np.zeros(4)
    # One autocast region: its cache of cast weights lives as long as the region does.
    with torch.autocast(
        torch.device(device).type, dtype=torch.bfloat16, enabled=bf16_is_fast(torch.device(device))
    ):
        embedding, fine = model.encode(pixels, valid)
        for turn in range(rounds):
            for index, prompt in enumerate(prompts):
                logits, iou = model.decode(
                    embedding[index : index + 1], [f[index : index + 1] for f in fine], prompt
                )
                loss, figures, best = _loss(
                    logits.float(), iou.float(), targets[index], ambiguous=prompt["ambiguous"]
                )
                total = total + loss / (len(prompts) * rounds)
                report += figures / (len(prompts) * rounds)
                if turn + 1 < rounds:
                    prompts[index] = _next_prompt(rng, views[index], prompt, best.detach(), device)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
    optimizer.step()
    report[0] = total.item()
    return report


def _loss(
    logits_M4hw: torch.Tensor, iou_M4: torch.Tensor, target_M1hw: torch.Tensor, *, ambiguous: bool
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """The best of the three outputs is taught (and the single output, where the prompt says enough), and every IoU."""
    target = target_M1hw.expand_as(logits_M4hw)
    masks_M4 = 20 * focal_loss(logits_M4hw, target) + dice_loss(logits_M4hw, target)
    truth_M4 = mask_iou(logits_M4hw, target)
    best_M = masks_M4[:, 1:].argmin(1, keepdim=True)
    # A little for the others keeps all three outputs alive while one of them is still winning everywhere.
    taught = (
        masks_M4[:, 1:].gather(1, best_M).mean()
        + 0.05 * masks_M4[:, 1:].mean()
        + (0.2 if ambiguous else 0.6) * masks_M4[:, 0].mean()
    )
    error = (iou_M4 - truth_M4).square()
    picked = logits_M4hw[:, 1:].gather(1, best_M[..., None, None].expand(-1, -1, *logits_M4hw.shape[-2:]))
    figures = np.array(
        [0.0, truth_M4[:, 1:].amax(1).mean().item(), (iou_M4 - truth_M4).abs().mean().item(), len(truth_M4)]
    )
    return taught + error.mean(), figures, picked


def _first_prompt(rng: np.random.Generator, view: View, device: str) -> dict:
    """One point (most often), up to eight points, a box, or a box and a point; one kind for all masks of a view."""
    kind = rng.choice(["point", "points", "box", "both"], p=[0.6, 0.15, 0.18, 0.07])
    count = int(rng.integers(2, 9)) if kind == "points" else 1
    points = torch.from_numpy(np.stack([draw_points(rng, mask, count) for mask in view.masks_MSS])).to(device)
    boxes = torch.from_numpy(np.stack([draw_box(rng, mask) for mask in view.masks_MSS])).to(device)
    return {
        "points": None if kind == "box" else points,
        "labels": None if kind == "box" else torch.ones(points.shape[:2], dtype=torch.int64, device=device),
        "boxes": boxes if kind in ("box", "both") else None,
        "masks": None,
        "ambiguous": kind == "point",
    }


def _next_prompt(
    rng: np.random.Generator, view: View, prompt: dict, logits_M1hw: torch.Tensor, device: str
) -> dict:
    """A correction: a point where the best mask is wrong, and that mask's logits as mask prompt."""
    size = view.pixels.shape[0]
    enlarged = nn.functional.interpolate(logits_M1hw.float(), (size, size), mode="bilinear") > 0
    points, labels = [], []
    for mask, now in zip(view.masks_MSS, enlarged[:, 0].cpu().numpy(), strict=True):
        wrong = mask ^ now
        wrong[view.valid_hw[0] :], wrong[:, view.valid_hw[1] :] = False, False
        point = draw_points(rng, wrong if wrong.any() else mask, 1)
        points.append(point)
        labels.append([int(mask[int(point[0, 1]), int(point[0, 0])])])
    new_points, new_labels = (
        torch.from_numpy(np.stack(points)).to(device),
        torch.tensor(labels, device=device),
    )
    if prompt["points"] is not None:
        new_points, new_labels = (
            torch.cat([prompt["points"], new_points], 1),
            torch.cat([prompt["labels"], new_labels], 1),
        )
    return {
        **prompt,
        "points": new_points,
        "labels": new_labels,
        "masks": logits_M1hw.float(),
        "ambiguous": False,
    }


def _target(view: View, device: str) -> torch.Tensor:
    """Share of each low-resolution cell that the mask covers, M1hw."""
    masks = torch.from_numpy(view.masks_MSS).to(device).float()[:, None]
    return nn.functional.avg_pool2d(masks, 4)
