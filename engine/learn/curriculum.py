"""What a small model is shown, and in which order.

The order is what makes it learn: dense small objects in zoomed crops first, which teaches that a point
means the thing under it, then everything mixed, then whole images at the full input size.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.learn.augment import View, draw_view
from engine.learn.data import LabelledImage, learnable_images, make_training_scenes, read_coco

_SCENE_SIZE = 384
_AHEAD = 3


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
    scenes: int = 3000
    dense: float = 0.3


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


def read_sources(recipe: Recipe, data: list[Path], workers: int) -> list[list[LabelledImage]]:
    """Images that may be learnt from: crowds (dense labelled sets and crowd scenes), scenes, photos; in this order.

    Of the labelled sets, what `learnable_images` leaves out is not touched.
    """
    dense: list[LabelledImage] = []
    photos: list[LabelledImage] = []
    for path in data:
        training = [image.preload() for image in learnable_images(read_coco(path))]
        (dense if any(image.modality for image in training) else photos).extend(training)
    scenes = make_training_scenes(recipe.scenes, _SCENE_SIZE, workers)
    crowds = [scene for scene in scenes if scene.modality == "crowd"]
    return [dense + crowds[: max(len(dense), 50)], scenes, photos or scenes]


def describe_data(sources: list[list[LabelledImage]]) -> dict[str, object]:
    """How many labelled images (not scenes) there are to learn from, and a digest of their names."""
    names = sorted(
        {image.name for source in sources for image in source if not image.name.startswith("scene-")}
    )
    return {
        "labelled_images": len(names),
        "labelled_digest": hashlib.sha256("\n".join(names).encode()).hexdigest()[:12],
    }


class Batches:
    """The views of every step; a step's views depend on the seed and the step alone, so a resumed run sees the same."""

    def __init__(
        self,
        recipe: Recipe,
        sources: list[list[LabelledImage]],
        phases: tuple[Phase, ...],
        *,
        letterbox: bool,
    ) -> None:
        self.recipe, self.sources, self.phases, self.letterbox = recipe, sources, phases, letterbox

    def from_step(self, first: int) -> Iterator[tuple[int, list[View]]]:
        """(step, views) from step `first` on, made a few steps ahead in a thread."""
        with ThreadPoolExecutor(1) as ahead:
            waiting: deque[Future[list[View]]] = deque()
            for step in range(first, self.recipe.steps):
                for coming in range(step + len(waiting), min(step + _AHEAD, self.recipe.steps)):
                    waiting.append(ahead.submit(self._views, coming))
                yield step, waiting.popleft().result()

    def _views(self, step: int) -> list[View]:
        rng = np.random.default_rng([self.recipe.seed, 0, step])
        phase = next(p for p in self.phases if step < p.until * self.recipe.steps)
        views: list[View] = []
        while len(views) < self.recipe.images:
            source = self.sources[int(rng.choice(3, p=phase.mix))]
            image = source[int(rng.integers(len(source)))]
            view = (
                draw_view(rng, image, phase.size, phase.zoom, self.recipe.masks, letterbox=self.letterbox)
                if image.masks
                else None
            )
            if view is not None:
                views.append(view)
        return views
