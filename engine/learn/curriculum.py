"""What a small model is shown, and in which order.

The order is what makes it learn: dense small objects in zoomed crops first, which teaches that a point
means the thing under it, then everything mixed, then whole images at the full input size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.learn.augment import View, draw_view
from engine.learn.data import LabelledImage, draw_training_scene, read_coco
from engine.learn.examples import Examples, draw_examples
from engine.learn.splits import keep_out_everywhere, learnable_images

_SCENE_SIZE = 384
_VIEWS_OF_A_SCENE = 4  # a scene takes as long to paint as three views to draw


@dataclass(frozen=True)
class Phase:
    """A stretch of the curriculum. `until` and the zoom range are shares; `mix` weighs crowd, scenes, photos."""

    until: float
    size: int
    zoom: tuple[float, float]
    mix: tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training run, besides the data and the weights it starts from."""

    model: str
    steps: int = 3000
    images: int = 4
    masks: int = 8
    rate: float = 6e-4
    decay: float = 0.02
    seed: int = 0
    dense: float = 0.3


@dataclass(frozen=True)
class Sources:
    """Labelled images to learn from: `dense` ones, full of alike things, and `photos`. Scenes are painted beside them."""

    dense: tuple[LabelledImage, ...]
    photos: tuple[LabelledImage, ...]


def curriculum(image_size: int, dense: float) -> tuple[Phase, ...]:
    """The phases for a model of this input size; sizes are multiples of 32.

    Args:
        dense: share of the steps that shows crowds alone; 0 for a model that starts from a trained one.
    """
    half = max(64, round(image_size * 0.6 / 64) * 64)
    return (
        Phase(dense, half, (0.2, 0.6), (0.8, 0.2, 0.0)),
        Phase(dense + (1 - dense) * 0.57, half, (0.3, 1.2), (0.35, 0.45, 0.2)),
        Phase(1.00, image_size, (0.5, 1.6), (0.35, 0.4, 0.25)),
    )


def read_sources(data: Iterable[Path]) -> Sources:
    """Images of COCO files that may be learnt from; what `learnable_images` leaves out is not decoded."""
    dense: list[LabelledImage] = []
    photos: list[LabelledImage] = []
    sets = keep_out_everywhere({str(path): read_coco(path) for path in data})
    for images in sets.values():
        training = [image.preload() for image in learnable_images(images)]
        (dense if any(image.modality for image in training) else photos).extend(training)
    return Sources(tuple(dense), tuple(photos))


def describe_data(sources: Sources) -> dict[str, object]:
    """How many labelled images there are to learn from, and a digest of their names."""
    names = sorted({image.name for image in (*sources.dense, *sources.photos)})
    return {
        "labelled_images": len(names),
        "labelled_digest": hashlib.sha256("\n".join(names).encode()).hexdigest()[:12],
    }


class Batches(torch.utils.data.Dataset):
    """The examples of each step, which depend on the seed and the step alone: a resumed run sees the same.

    Args:
        recipe: how many, and the seed.
        sources: labelled images.
        phases: of the curriculum.
        letterbox: frame of the views, see `draw_view`.
    """

    def __init__(
        self, recipe: Recipe, sources: Sources, phases: tuple[Phase, ...], *, letterbox: bool
    ) -> None:
        self._recipe, self._sources, self._phases, self._letterbox = recipe, sources, phases, letterbox

    def __getitem__(self, step: int) -> Examples:
        rng = np.random.default_rng([self._recipe.seed, 0, step])
        phase = next(p for p in self._phases if step < p.until * self._recipe.steps)
        kinds = rng.choice(3, p=phase.mix, size=self._recipe.images)
        # Half of the crowds are scenes, so that alike things are more than what was labelled.
        painted = (kinds == 0) & (rng.random(len(kinds)) < (0.5 if self._sources.dense else 1.0))
        crowds = self._paint(rng, int(painted.sum()), "crowd")
        others = kinds == 1 if self._sources.photos else kinds > 0
        scenes = self._paint(rng, int(others.sum()), None)
        of_kind = (self._sources.dense, scenes, self._sources.photos or scenes)
        views = [
            self._draw_view(rng, crowds if paint else of_kind[kind], phase)
            for kind, paint in zip(kinds.tolist(), painted.tolist(), strict=True)
        ]
        return draw_examples(rng, views)

    def _paint(self, rng: np.random.Generator, views: int, layout: str | None) -> list[LabelledImage]:
        """Scenes with masks, enough for so many views."""
        scenes: list[LabelledImage] = []
        while len(scenes) * _VIEWS_OF_A_SCENE < views:
            scene = draw_training_scene(rng, _SCENE_SIZE, layout)
            scenes += [scene] if scene.masks else []
        return scenes

    def _draw_view(self, rng: np.random.Generator, images: Sequence[LabelledImage], phase: Phase) -> View:
        while True:
            image = images[int(rng.integers(len(images)))]
            view = draw_view(
                rng, image, phase.size, phase.zoom, self._recipe.masks, letterbox=self._letterbox
            )
            if view is not None:
                return view
