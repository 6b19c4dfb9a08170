"""Uncertainty-aware fine-tuning: masks of people and the model's own, in interactive rounds.

SUM (Liu et al., NeurIPS 2024). In several processes (started by torchrun) each takes its share of every update's
images and the gradients are summed, so that the result is that of one process. An update's draws depend on the
seed and its number alone: a run that was killed ends as an undisturbed one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.learn.checkpoints import load_checkpoint, save_checkpoint
from engine.learn.data import spread_evenly
from engine.learn.learnable import learnt_state, make_learner, parameter_groups, whole_weights
from engine.learn.lessons import Lessons
from engine.learn.processes import add_up, agree, find_place, share_gradients
from engine.learn.stand_ins import StandIns
from engine.learn.training_images import TrainingImage
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError
from schemas.settings import FinetuneSettings

_WARM_UP = 20
_JUDGED_IMAGES = 40


@dataclass(frozen=True)
class Finetuned:
    """What came of it.

    Attributes:
        weights: all of the model's, by the package's names.
        task_prompt_4C: what is added for each task; None where none was taught.
        step: after how many updates the held-out groups were told best; these are the weights of then.
        history: of each look at them: `step`, `loss`, `iou` on them.
        lost: image_ids of the pool that this process drew and could not open; others were learnt from in their place.
    """

    weights: dict[str, torch.Tensor]
    task_prompt_4C: torch.Tensor | None
    step: int
    history: list[dict[str, float]]
    lost: list[str]


@dataclass(frozen=True)
class _Sources:
    """Images to draw from: with masks of people, with masks of the model, and those where it is held to its answers."""

    human: list[TrainingImage]
    pseudo: list[TrainingImage]
    held: list[TrainingImage]


def finetune(
    segmenter: Segmenter,
    human: Sequence[TrainingImage],
    pseudo: Sequence[TrainingImage],
    settings: FinetuneSettings,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Finetuned:
    """Teach a model what people labelled, and what it knew already.

    A seventh of the human groups is held out: in the second half of the updates it says which weights are best (those at the
    start among them), and when to stop.

    Args:
        segmenter: the model to begin with; it is left as it is.
        human: masks of people.
        pseudo: the model's own masks with their maps. All of them that people have not answered for take part in the
            distillation, also those without a mask.
        settings: how.
        checkpoint: file that a killed run goes on from.
        progress: called with (updates done, updates in all, the latest look at the held-out groups).

    Raises:
        ConfigError: there is nothing to learn from, the checkpoint is another run's, a labelled file cannot be read, or too few
            images of the pool can be opened.
    """
    rank, world = find_place()
    fit, held = _hold_out(human, settings.seed)
    sources = _Sources(
        fit,
        [image for image in pseudo if image.masks],
        [image for image in pseudo if settings.distillation and not image.answered],
    )
    if not fit and not sources.pseudo:
        raise ConfigError("There is nothing to learn from: no masks of people, and none of the model's own.")
    model = make_learner(segmenter, settings)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings), lr=settings.rate, weight_decay=settings.decay
    )
    lessons = Lessons(segmenter, model, settings)
    identity = _identify(segmenter, human, pseudo, settings)
    saved = load_checkpoint(checkpoint, identity, segmenter.device) if checkpoint else None
    stand_ins = StandIns(saved.get("lost", ()) if saved else ())
    held = stand_ins.leave_out(held)
    first, history = 0, [{"step": 0.0, "loss": 0.0, "iou": agree(lessons.judge(held), segmenter.device)}]
    best: dict[str, Any] = {"iou": history[0]["iou"], "step": 0, "state": learnt_state(model)}
    if saved:
        model.load_state_dict(saved["state"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        first, history, best = saved["step"], saved["history"], saved["best"]
    total = torch.zeros((), device=segmenter.device)
    for step in range(first, settings.steps):
        if _gave_up(history, settings):
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * group["share"] * _schedule(step, settings.steps)
        optimizer.zero_grad(set_to_none=True)
        for place, (taught, held_to) in enumerate(_draw_images(sources, settings, step)):
            if place % world == rank:
                rng = np.random.default_rng([settings.seed, 21, step, place])
                if taught:
                    lesson = partial(lessons.teach, rng=rng, weight=1 / settings.images)
                    others = sources.human if taught.human else sources.pseudo
                    total += stand_ins.give(lesson, taught, others, [settings.seed, 24, step, place])
                if held_to:
                    lesson = partial(lessons.hold, rng=rng, weight=settings.distillation / settings.images)
                    total += stand_ins.give(lesson, held_to, sources.held, [settings.seed, 25, step, place])
        share_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        done = step + 1
        if done % settings.check_every == 0 or done == settings.steps:
            add_up(total)
            looked = {
                "step": float(done),
                "loss": float(total) / (done - int(history[-1]["step"])),
                "iou": agree(lessons.judge(held), segmenter.device),
            }
            total.zero_()
            history.append(looked)
            if not held or (_is_settled(done, settings) and looked["iou"] > best["iou"]):
                best = {"iou": looked["iou"], "step": done, "state": learnt_state(model)}
            if checkpoint and rank == 0:
                state = {"step": done, "history": history, "best": best, "state": learnt_state(model)}
                state |= {"optimizer": optimizer.state_dict(), "lost": sorted(stand_ins.lost)}
                save_checkpoint(checkpoint, identity, state)
        if progress:
            progress(done, settings.steps, history[-1])
    model.load_state_dict(best["state"], strict=False)
    task_prompt = (
        model.task_prompt.detach().cpu() if settings.task_prompt != "none" else segmenter.task_prompt_4C
    )
    return Finetuned(whole_weights(model), task_prompt, int(best["step"]), history, sorted(stand_ins.lost))


def _hold_out(human: Sequence[TrainingImage], seed: int) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """(fitted to, held out): a seventh of the groups, or none where there are fewer than four."""
    groups = sorted({image.group for image in human})
    count = max(1, round(len(groups) / 7)) if len(groups) >= 4 else 0
    held = set(np.random.default_rng([seed, 20]).permutation(groups)[:count].tolist())
    judged = [image for image in human if image.group in held]
    return [image for image in human if image.group not in held], spread_evenly(judged, _JUDGED_IMAGES)


def _draw_images(
    sources: _Sources, settings: FinetuneSettings, step: int
) -> list[tuple[TrainingImage | None, TrainingImage | None]]:
    """(taught, held to the answers of before) in each place of an update: of people and of the model in the asked proportion,
    as far as there are any."""
    rng = np.random.default_rng([settings.seed, 22, step])
    wanted = settings.images * settings.human_share
    humans = int(wanted) + int(rng.random() < wanted % 1)
    if not sources.human or not (sources.pseudo or sources.held):
        humans = settings.images if sources.human else 0

    def draw(images: list[TrainingImage]) -> TrainingImage | None:
        return images[int(rng.integers(len(images)))] if images else None

    own = [(draw(sources.pseudo), draw(sources.held)) for _ in range(settings.images - humans)]
    return [(draw(sources.human), None) for _ in range(humans)] + own


def _is_settled(step: float, settings: FinetuneSettings) -> bool:
    """Whether half of the updates are done. Held-out images resemble those that are learnt from, so they do not show what is
    forgotten of the rest, which is most at the full rate."""
    return 2 * step >= settings.steps


def _gave_up(history: list[dict[str, float]], settings: FinetuneSettings) -> bool:
    """Whether the last looks brought nothing; without held-out groups (every look says 0), never."""
    ious = [
        looked["iou"] for looked in history if not looked["step"] or _is_settled(looked["step"], settings)
    ]
    patience = settings.patience
    return ious[0] > 0 and len(ious) > patience and max(ious[-patience:]) <= max(ious[:-patience])


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _identify(
    segmenter: Segmenter,
    human: Sequence[TrainingImage],
    pseudo: Sequence[TrainingImage],
    settings: FinetuneSettings,
) -> str:
    """All that decides the result."""
    data = [[image.key, len(image.masks)] for image in (*human, *pseudo)]
    return json.dumps([segmenter.model_id, settings.model_dump(), data])
