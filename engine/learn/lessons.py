"""One image at a time taught or judged: its features, its masks on the grid, and the rounds of prompts.

Shape suffixes: M masks, S side of the model's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.functional import resize

from engine.learn.crops import draw_crop
from engine.learn.cut_graph import cut_off, give_back
from engine.learn.distillation import EncodedImage, distil
from engine.learn.embedded import RecentlyUsed, count_bytes, halve, input_scale, to_model
from engine.learn.learnable import learns_encoder
from engine.learn.prompt_rounds import PromptDrawer, Taught, teach
from engine.learn.trainee import PromptedModel, bf16_is_fast
from engine.learn.training_images import MaskTargets, TrainingImage, draw_targets
from engine.models.segmenter import Segmenter
from schemas.records import Embedding
from schemas.settings import FinetuneSettings

_MOST_BYTES = 4 << 30
_JUDGED_ROUNDS = 3


@dataclass(frozen=True)
class _Prepared:
    """What does not change between updates: the masks on the grid, and the embedding where the encoder is frozen."""

    targets: MaskTargets
    embedding: Embedding | None

    @property
    def bytes(self) -> int:
        return self.targets.bytes + (count_bytes(self.embedding) if self.embedding else 0)


class Lessons:
    """Teaches a model image by image; what stays the same is kept in memory while there is room.

    Args:
        segmenter: the model as it was: the frozen encoder, and the frames.
        model: the one that learns.
        settings: how.
    """

    def __init__(self, segmenter: Segmenter, model: PromptedModel, settings: FinetuneSettings) -> None:
        self._segmenter, self._model, self._settings = segmenter, model, settings
        self._before = PromptedModel(segmenter.model, segmenter.package)  # what learns is a copy
        self._images: list[TrainingImage] = []
        self._places: dict[tuple[str, bool], int] = {}
        self._prepared = RecentlyUsed(self._prepare, lambda of: of.bytes, _MOST_BYTES)

    def teach(self, image: TrainingImage, rng: np.random.Generator, weight: float) -> float:
        """All rounds of some of an image's masks. Adds to the gradients, and returns the mean loss times `weight`."""
        image, of = self._show(image, rng)
        count = len(of.targets.task_M)
        if not count:
            return 0.0
        taught = self._pick(of, image, rng.permutation(count)[: self._settings.masks])
        features = self._encode(self._model, of, image)
        leaves = cut_off(features)
        drawer = PromptDrawer(taught, self._cell, self._settings, rng)
        rounds, total = self._settings.rounds, 0.0
        logits: torch.Tensor | None = None
        for turn in range(rounds):
            if logits is None:
                prompt = drawer.first()
            elif turn == rounds - 1 and rounds > 2:
                prompt = drawer.repeat(logits)
            else:
                prompt = drawer.correct(logits)
            with self._arithmetic():
                logits_MOhw, iou_MO = self._model.decode(leaves[0], leaves[1:], prompt)
            loss, logits, _ = teach(logits_MOhw.float(), iou_MO.float(), taught, self._settings)
            (loss * (weight / rounds)).backward()
            total += float(loss.detach()) * weight / rounds
        give_back(features, leaves)
        return total

    def hold(self, image: TrainingImage, rng: np.random.Generator, weight: float) -> float:
        """The answers of before to clicks anywhere in an image, see `distil`. Adds to the gradients, and returns the loss times
        `weight`."""
        image, of = self._show(image, rng)
        features = self._encode(self._model, of, image)
        leaves = cut_off(features)
        with torch.no_grad():
            before = self._encode(self._before, of, image)
        size = of.embedding.image_sizes[0] if of.embedding else image.load().shape[:2]
        extent = self._segmenter.mask_extent((size[0], size[1]))
        learner = EncodedImage(self._model, leaves[0], leaves[1:])
        teacher = EncodedImage(self._before, before[0], before[1:])
        loss = distil(learner, teacher, extent, self._cell, rng, self._arithmetic()) * weight
        loss.backward()
        give_back(features, leaves)
        return float(loss.detach())

    @torch.no_grad()
    def judge(self, images: Sequence[TrainingImage]) -> float:
        """Mean IoU of the best output after a point and two corrections, on the grid; 0 without images.

        The same points are drawn each time.
        """
        ious = []
        for place, image in enumerate(images):
            of = self._look_up(image)
            count = len(of.targets.task_M)
            if not count:
                continue
            index_M = np.linspace(0, count - 1, min(count, self._settings.masks)).round().astype(int)
            taught = self._pick(of, image, index_M)
            features = self._encode(self._model, of, image)
            drawer = PromptDrawer(taught, self._cell, self._settings, np.random.default_rng([23, place]))
            prompt = drawer.first(point=True)
            for turn in range(_JUDGED_ROUNDS):
                with self._arithmetic():
                    logits_MOhw, iou_MO = self._model.decode(features[0], features[1:], prompt)
                _, logits, iou_M = teach(logits_MOhw.float(), iou_MO.float(), taught, self._settings)
                ious.append(iou_M.mean().item())
                if turn + 1 < _JUDGED_ROUNDS:
                    prompt = drawer.correct(logits)
        return float(np.mean(ious)) if ious else 0.0

    @property
    def _cell(self) -> float:
        return self._segmenter.image_size / self._segmenter.grid_size

    def _show(self, image: TrainingImage, rng: np.random.Generator) -> tuple[TrainingImage, _Prepared]:
        """An image as an update sees it: all of it, or, where the encoder learns, a part of it."""
        if not learns_encoder(self._settings):
            return image, self._look_up(image)
        part = draw_crop(image, rng, self._settings.masks)
        return part, _Prepared(draw_targets(self._segmenter, part), None)

    def _look_up(self, image: TrainingImage) -> _Prepared:
        key = (image.key, image.human)
        if key not in self._places:
            self._places[key] = len(self._images)
            self._images.append(image)
        return self._prepared[self._places[key]]

    def _prepare(self, place: int) -> _Prepared:
        image = self._images[place]
        embedding = None
        if not learns_encoder(self._settings):
            embedding = halve(self._segmenter.embed([image.load()]))
        return _Prepared(draw_targets(self._segmenter, image), embedding)

    def _pick(self, of: _Prepared, image: TrainingImage, index_M: np.ndarray) -> Taught:
        return Taught.pick(of.targets, index_M, image.human, self._segmenter.device)

    def _encode(self, model: PromptedModel, of: _Prepared, image: TrainingImage) -> list[torch.Tensor]:
        """The embedding, and high-resolution features behind it."""
        if of.embedding is not None:
            embedding, fine = to_model(of.embedding, self._segmenter.device)
            return [embedding, *fine]
        pixels_13SS, valid_11SS = _as_input(self._segmenter, image.load())
        with self._arithmetic():
            embedding, fine = model.encode(pixels_13SS, valid_11SS)
        return [level.float() for level in (embedding, *fine)]

    def _arithmetic(self) -> torch.autocast:
        device = self._segmenter.device
        fast = bf16_is_fast(device) if device.type == "cpu" else self._segmenter.precision == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _as_input(segmenter: Segmenter, pixels_HW3: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """An image in the frame of the model's input, 0..255, and where it is not padding."""
    height, width = pixels_HW3.shape[:2]
    scale_2 = input_scale(segmenter, (height, width))
    new = [max(1, round(height * float(scale_2[1]))), max(1, round(width * float(scale_2[0])))]
    pixels_3HW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1).float()
    side = segmenter.image_size
    input_13SS, valid_11SS = torch.zeros(1, 3, side, side), torch.zeros(1, 1, side, side)
    input_13SS[0, :, : new[0], : new[1]] = resize(pixels_3HW, new, antialias=True)
    valid_11SS[..., : new[0], : new[1]] = 1
    return input_13SS.to(segmenter.device), valid_11SS.to(segmenter.device)
