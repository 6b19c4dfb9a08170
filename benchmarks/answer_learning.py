"""A model that learns from answers as a round lets it, and how well it then does with one click."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from simulated_people import Answer

from engine.evaluate.points import evaluate_points
from engine.learn.data import LabelledImage
from engine.learn.finetuning import finetune
from engine.learn.training_images import TrainingImage, TrainingMask
from engine.models.export import write_model
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.settings import FinetuneSettings


def collect_lessons(
    pool: Sequence[LabelledImage], image_N: np.ndarray, answers: Sequence[Answer], asked: Sequence[int]
) -> list[TrainingImage]:
    """What was answered, image by image; one group, so that none of it is held out. An object that was answered twice is one mask."""
    by_image: dict[int, dict[int, TrainingMask]] = {}
    for n in asked:
        said = answers[n]
        if said.counts is not None:
            height, width = pool[image_N[n]].masks[0].plain_rle["size"]  # type: ignore[misc]
            by_image.setdefault(int(image_N[n]), {})[said.thing] = TrainingMask(
                said.counts, (height, width), 0
            )
    return [
        TrainingImage(pool[i].name, "pool", True, tuple(of.values()), pool[i].load)
        for i, of in by_image.items()
    ]


def learn_answers(
    segmenter: Segmenter, lessons: Sequence[TrainingImage], settings: FinetuneSettings
) -> Segmenter:
    """A model that was fine-tuned from this one; this one where nothing was to be learnt."""
    if not lessons:
        return segmenter
    made = finetune(segmenter, lessons, [], settings)
    with tempfile.TemporaryDirectory() as folder:
        about = {"parent": segmenter.model_id}
        size = segmenter.image_size
        path = write_model(made.weights, made.task_prompt_4C, Path(folder), segmenter.name, size, about)
        return load_segmenter(path, device="cpu")


def score_model(segmenter: Segmenter, sets: Mapping[str, Sequence[LabelledImage]]) -> dict[str, float]:
    """Mean IoU after one click of the output that the model picks: by set, and the mean of fluorescence and unknown kinds.

    The unknown kinds each by itself, too; `SET, best` is of the best of the three outputs.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for kind, images in sets.items():
        for image in images:
            pairs = [(result.picked_iou, result.best_iou) for result in evaluate_points(segmenter, [image])]
            for name in {kind, kind if kind == "fluorescence" else image.modality}:
                found.setdefault(name, []).extend(pairs)
    means = {name: np.mean(of, 0).tolist() for name, of in found.items()}
    scores = {name: picked for name, (picked, _) in means.items()}
    scores |= {f"{name}, best": best for name, (_, best) in means.items()}
    return {"miou": (scores["fluorescence"] + scores["unknown"]) / 2} | scores
