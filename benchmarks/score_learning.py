"""Fine-tuning of the model's judgement of its own masks: the IoU head of the mask decoder, on tokens kept in memory.

The masks stay as they are and so do the tokens, so a prompt is decoded once for all, and learning from a hundred answers
takes a second. What it brings is a better choice among a prompt's three outputs, and a score that knows where the model fails.

Shape suffixes: N masks of the pool or of the evaluation, P prompts of each, X rows, C channels of a token (256), 3 outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.evaluate.points import innermost_point
from engine.learn.data import LabelledImage
from engine.learn.embedded import shrink_masks
from engine.models.segmenter import Segmenter
from schemas.records import Prompts

PROMPTS = 3
"""Prompts that an answer is learnt from: the mask's own point, the object's innermost pixel, and another of it."""


@dataclass(frozen=True)
class Judged:
    """IoU tokens of prompts, and how well each of their three outputs matches what was meant.

    Attributes:
        token_NPC: float32.
        iou_NP3: true IoU, 0..1; all 0 where there is no object.
    """

    token_NPC: np.ndarray
    iou_NP3: np.ndarray


@torch.inference_mode()
def judge_prompts(
    segmenter: Segmenter,
    image: LabelledImage,
    points_NP2: np.ndarray,
    truths: Sequence[np.ndarray | None],
    *,
    full_size: bool,
) -> Judged:
    """Decode P prompts of each of N objects of one image.

    Args:
        segmenter: the model.
        image: what the objects are in.
        points_NP2: x, y, image pixels.
        truths: bool HW; None for no object.
        full_size: compare in the image's pixels, as figures are; else on the mask grid, as learning does.
    """
    count, each = points_NP2.shape[:2]
    embedding = segmenter.embed([image.load()])
    tokens, ious = [], np.zeros((count, each, 3), np.float32)
    for n, truth in enumerate(truths):
        points = torch.from_numpy(points_NP2[n].astype(np.float32))[:, None]
        prompts = Prompts(
            torch.zeros(each, dtype=torch.int64), points, torch.ones(each, 1, dtype=torch.int64)
        )
        decoded = segmenter.decode(embedding, prompts)
        tokens.append(decoded.iou_token_NC.numpy())
        if truth is None:
            continue
        logits = decoded.logits_NMhw.flatten(0, 1)
        if full_size:
            drawn = (segmenter.upscale(logits, truth.shape) > segmenter.mask_threshold).numpy()
        else:
            drawn, truth = (
                logits.numpy() > segmenter.mask_threshold,
                shrink_masks(segmenter, [truth])[0] > 0.5,
            )
        both, either = (drawn & truth).sum((1, 2)), (drawn | truth).sum((1, 2))
        ious[n] = (both / np.maximum(either, 1)).reshape(each, 3)
    return Judged(np.stack(tokens), ious)


def draw_points(own_2: np.ndarray, mask_HW: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Prompts of an answer, points_P2: see `PROMPTS`; the own point alone, again and again, where there is no object."""
    if mask_HW is None:
        return np.repeat(own_2[None], PROMPTS, 0)
    rows, columns = np.nonzero(mask_HW)
    i = int(rng.integers(len(rows)))
    return np.array([own_2, innermost_point(mask_HW), (columns[i], rows[i])], np.float32)


class ScoreHead:
    """The IoU head of a model, shipped or fine-tuned.

    Args:
        head: module from token_XC to score_X4; the first is of the single mask.
    """

    def __init__(self, head: Any) -> None:
        self._head = head

    @torch.inference_mode()
    def score(self, token_XC: np.ndarray) -> np.ndarray:
        """Predicted IoU of the three outputs, score_X3."""
        return self._head(torch.from_numpy(token_XC))[:, 1:].numpy()

    def learn(
        self, token_XC: np.ndarray, iou_X3: np.ndarray, *, rate: float, steps: int, batch: int, seed: int
    ) -> ScoreHead:
        """Another that was fine-tuned from this one: squared error of the predicted IoU, AdamW, rate falling to zero."""
        head = copy.deepcopy(self._head).requires_grad_(True)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
        tokens, ious, rng = torch.from_numpy(token_XC), torch.from_numpy(iou_X3), np.random.default_rng(seed)
        for step in range(steps):
            place = torch.from_numpy(rng.integers(len(tokens), size=min(batch, len(tokens))))
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            (head(tokens[place])[:, 1:] - ious[place]).square().mean().backward()
            optimizer.step()
        return ScoreHead(head.requires_grad_(False))


def judge_pool(
    images: Sequence[LabelledImage],
    image_N: np.ndarray,
    judge: Callable[[int, np.ndarray], Judged],
    progress: Callable[[int, int], None],
) -> Judged:
    """All prompts of all masks of the pool, image by image; `judge` is given the image's place and its masks' places."""
    parts: dict[int, Judged] = {}
    places = [np.flatnonzero(image_N == i) for i in range(len(images))]
    for i, place_N in enumerate(places):
        if len(place_N):
            parts[i] = judge(i, place_N)
        progress(i + 1, len(images))
    order = np.argsort(np.concatenate([places[i] for i in parts]))
    return Judged(
        np.concatenate([of.token_NPC for of in parts.values()])[order],
        np.concatenate([of.iou_NP3 for of in parts.values()])[order],
    )
