"""Fitting a refiner: the model's own decoder, taught to redraw its masks as people drew them.

SUM (Liu et al., NeurIPS 2024, appendix): the image encoder is frozen; given are the logits of one of the model's
masks, its box and its point; the target is the human mask it is of. There it learns by focal and dice loss; here by cross entropy
around the mask, so that its probabilities mean something.

Shape suffixes: N pairs, h w mask grid, 2 x y, 4 box.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from engine.learn.checkpoints import load_checkpoint, save_checkpoint
from engine.learn.data import LabelledImage
from engine.learn.embedded import RecentlyUsed, input_scale, to_model
from engine.learn.losses import cell_loss, mask_iou
from engine.learn.refiner_pairs import LEAST_IOU, Pairs, make_pairs
from engine.learn.trainee import PromptedModel
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError
from schemas.fitting_settings import RefinerSettings

_OUTPUT = 0  # the decoder's single mask


@dataclass(frozen=True)
class RefinerFit:
    """A fitted refiner: its weights by the model's names, and what it does to held-out groups' masks.

    Attributes:
        weights: state of the model's `decoder_modules`.
        iou_before, iou_after: mean IoU with the human masks on the mask grid, of the model and of the refiner.
        loss_before, loss_after: mean cross entropy of the cells around them (`cell_loss`), likewise.
        pairs, held_pairs: how many it was fitted to, and how many these figures are of.
        steps: after how many it was best.
    """

    weights: dict[str, torch.Tensor]
    iou_before: float
    iou_after: float
    loss_before: float
    loss_after: float
    pairs: int
    held_pairs: int
    steps: int


def fit_refiner(
    segmenter: Segmenter,
    images: Sequence[LabelledImage],
    settings: RefinerSettings,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> RefinerFit:
    """Fit a refiner of a model to labelled images; a seventh of the groups says when it is best.

    Args:
        segmenter: whose masks are redrawn.
        images: that may be learnt from.
        settings: how.
        checkpoint: file that a killed run goes on from; it is written whenever the held-out groups are looked at.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        ConfigError: fewer than two groups, or no mask of the model is near enough to a human one.
    """
    rng = np.random.default_rng([settings.seed, 4])
    groups = sorted({image.group for image in images})
    if len(groups) < 2:
        raise ConfigError(
            "A refiner needs images of two groups at least: one to learn from, one to judge by."
        )
    held = set(rng.permutation(groups)[: max(1, round(len(groups) / 7))].tolist())

    def make(i: int) -> Pairs:
        return make_pairs(
            segmenter, images[i], objects=settings.objects, points=settings.points, seed=settings.seed
        )

    pairs = RecentlyUsed(make, lambda of: of.bytes, settings.most_bytes)
    counts = []
    for i in range(len(images)):
        counts.append(len(pairs[i]))
        if progress:
            progress("masking labelled images", i + 1, len(images))
    usable = [i for i, image in enumerate(images) if counts[i] and image.group not in held]
    judges = [i for i, image in enumerate(images) if counts[i] and image.group in held]
    if not usable or not judges:
        raise ConfigError(
            f"{segmenter.model_id} comes near too few of the human masks (IoU {LEAST_IOU}) to learn from its "
            "masks. Give more labelled images, or take a model that knows such images better."
        )
    trainee = PromptedModel(deepcopy(segmenter.model), segmenter.package).to(segmenter.device)
    modules = [trainee.prompt_encoder, trainee.mask_decoder]
    parameters = [p.requires_grad_() for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.01)
    before, after = _judge(trainee, segmenter, pairs, judges)
    best = (after, 0, _state(segmenter, trainee))  # (IoU, loss), after how many updates, weights
    identity = _identify(segmenter, images, settings)
    first = 0
    saved = load_checkpoint(checkpoint, identity, segmenter.device) if checkpoint else None
    if saved:
        trainee.net.load_state_dict(saved["weights"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        first, best = saved["step"], (saved["best_scores"], saved["best_step"], saved["best"])
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = settings.rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        draw = np.random.default_rng([settings.seed, 5, step])
        chosen = draw.choice(usable, settings.images)
        optimizer.zero_grad(set_to_none=True)
        for i in chosen.tolist():
            of = pairs[i]
            some_N = draw.permutation(len(of))[: settings.masks]
            logits_N1hw = _redraw(trainee, segmenter, of, some_N)
            target_N1hw = torch.from_numpy(of.target_Nhw[some_N])[:, None].to(segmenter.device)
            near_N1hw = of.near(some_N).to(segmenter.device)
            loss = cell_loss(logits_N1hw - segmenter.mask_threshold, target_N1hw, near_N1hw)
            (loss.mean() / len(chosen)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        if done % settings.check_every == 0 or done == settings.steps:
            _, after = _judge(trainee, segmenter, pairs, judges)
            if after[1] < best[0][1]:
                best = (after, done, _state(segmenter, trainee))
            if checkpoint:
                state = {"step": done, "best_scores": best[0], "best_step": best[1], "best": best[2]}
                state |= {"weights": _state(segmenter, trainee), "optimizer": optimizer.state_dict()}
                save_checkpoint(checkpoint, identity, state)
        if progress:
            progress(f"fitting, held-out loss {before[1]:.3f} → {best[0][1]:.3f}", done, settings.steps)
    return RefinerFit(
        best[2],
        before[0],
        best[0][0],
        before[1],
        best[0][1],
        sum(counts[i] for i in usable),
        sum(counts[i] for i in judges),
        best[1],
    )


def _redraw(trainee: PromptedModel, segmenter: Segmenter, pairs: Pairs, some_N: np.ndarray) -> torch.Tensor:
    """The refiner's logits for some pairs of an image, N1hw."""
    device = segmenter.device
    scale_2 = input_scale(segmenter, pairs.embedding.image_sizes[0])
    features, fine = to_model(pairs.embedding, device)
    prompt = {
        "points": torch.from_numpy(pairs.points_N2[some_N] * scale_2)[:, None].to(device),
        "labels": torch.ones(len(some_N), 1, dtype=torch.int64, device=device),
        "boxes": torch.from_numpy(pairs.boxes_N4[some_N] * np.tile(scale_2, 2)).to(device),
        "masks": pairs.logits_Nhw[some_N, None].float().to(device),
    }
    with torch.autocast("cuda", torch.bfloat16, enabled=segmenter.precision == "bf16"):
        logits_N4hw, _ = trainee.decode(features, fine, prompt)
    return logits_N4hw[:, _OUTPUT : _OUTPUT + 1].float()


@torch.no_grad()
def _judge(
    trainee: PromptedModel, segmenter: Segmenter, pairs: RecentlyUsed[Pairs], images: Sequence[int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean IoU with the human masks and mean loss: before, and after redrawing."""
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for i in images:
        of = pairs[i]
        some_N = np.linspace(0, len(of) - 1, min(len(of), 16)).round().astype(int)
        target_N1hw, near_N1hw = torch.from_numpy(of.target_Nhw[some_N])[:, None], of.near(some_N)
        drawn_N1hw = of.logits_Nhw[some_N, None].float()
        for logits_N1hw, rows in (
            (drawn_N1hw, before),
            (_redraw(trainee, segmenter, of, some_N).cpu(), after),
        ):
            logits_N1hw = logits_N1hw - segmenter.mask_threshold
            scores = mask_iou(logits_N1hw, target_N1hw), cell_loss(logits_N1hw, target_N1hw, near_N1hw)
            rows.append(torch.cat(scores, 1))
    means = [torch.cat(rows).mean(0).tolist() for rows in (before, after)]
    return (means[0][0], means[0][1]), (means[1][0], means[1][1])


def _identify(segmenter: Segmenter, images: Sequence[LabelledImage], settings: RefinerSettings) -> str:
    """All that decides the result; how much memory may be used does not."""
    chosen = {key: value for key, value in asdict(settings).items() if key != "most_bytes"}
    return json.dumps([segmenter.model_id, "cell_loss", chosen, [image.key for image in images]])


def _state(segmenter: Segmenter, trainee: PromptedModel) -> dict[str, torch.Tensor]:
    """The decoder's weights by the model's own names, copied to the CPU."""
    state = trainee.net.state_dict()
    starts = tuple(f"{name}." for name in segmenter.decoder_modules)
    return {name: value.detach().cpu().clone() for name, value in state.items() if name.startswith(starts)}
