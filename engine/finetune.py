"""A new version of a model from labels and pseudo-labels: learn, write, say how it came about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.learn.data import LabelledImage
from engine.learn.finetuning import finetune
from engine.learn.splits import learnable_images
from engine.learn.training_images import human_images, pseudo_labelled_images
from engine.models.export import describe_model, write_model
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.report.learning_plots import draw_learning
from engine.store import Store
from schemas.errors import ConfigError
from schemas.settings import FinetuneSettings

CHECKPOINT = "finetune.checkpoint"
"""What a killed run goes on from, in the folder of the models; also one that was killed before its version was recorded."""


@dataclass(frozen=True)
class ModelVersion:
    """A fine-tuned model: where its weights are, and its row of the `models` table."""

    path: Path
    record: Mapping[str, Any]


def finetune_model(
    segmenter: Segmenter,
    sets: Mapping[str, Sequence[LabelledImage]],
    store: Store | None,
    settings: FinetuneSettings,
    out: Path,
    *,
    most_uncertain: float = 1.0,
    answered_until: datetime | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> ModelVersion:
    """Fine-tune a model and write the new version to OUT/VERSION/NAME.safetensors, and how it went to learning.png there.

    Killed at any moment, the same call goes on from the last checkpoint. That is left in the folder: it is to be removed
    once the version is recorded, so that nothing is lost in between.

    Args:
        segmenter: the model to begin with.
        sets: labelled images by name of their set; what is kept out of each (see `split_groups`) is not
            learnt from.
        store: holds the model's own masks with maps; None to learn from people alone. Files of the sets that lie in its pool
            take no part.
        settings: how.
        out: folder of the model's versions.
        most_uncertain: masks of the store with a higher `uncertainty` are left out.
        answered_until: what `find_latest_answer` said before the sets were read; answers pulled later are new to the version.
        progress: called with (updates done, updates in all, the latest look at the held-out groups).

    Raises:
        ConfigError: there is nothing to learn from, a set has no image that may be learnt from, or the folder holds
            another run that was not finished.
    """
    learnt = {name: learnable_images(images) for name, images in sets.items()}
    for name, images in learnt.items():
        if not images:
            raise ConfigError(
                f"The set {name!r} has no labelled image that may be learnt from. Leave it out."
            )
    human = human_images([image for images in learnt.values() for image in images])
    pseudo = []
    if store is not None:
        labelled = [image for images in sets.values() for image in images]
        pseudo = pseudo_labelled_images(
            store,
            segmenter.model_id,
            labelled=labelled,
            most_uncertain=most_uncertain,
            images=settings.steps * settings.images,  # a run draws no more
            seed=settings.seed,
        )
    checkpoint = out / CHECKPOINT
    made = finetune(segmenter, human, pseudo, settings, checkpoint=checkpoint, progress=progress)
    about: dict[str, Any] = {
        "parent": segmenter.model_id,
        "data": {
            "human": {name: len(images) for name, images in learnt.items()},
            "pseudo": {
                "images": sum(bool(image.masks) for image in pseudo),
                "masks": sum(len(image.masks) for image in pseudo),
                "held": sum(not image.answered for image in pseudo),
            },
        },
        "settings": settings.model_dump(),
        "metrics": {"step": made.step, "history": made.history, "lost": len(made.lost)},
    }
    path = write_model(made.weights, made.task_prompt_4C, out, segmenter.name, segmenter.image_size, about)
    title = f"{segmenter.model_id}, fine-tuned"
    draw_learning(made.history, made.step, path.with_name("learning.png"), title=title)
    new = load_segmenter(path, device=segmenter.device)
    # Beside the file's metadata, not in it: the same lessons make the same version, however late they were read.
    until = {"answered_until": answered_until and answered_until.isoformat()}
    said = {**about, "data": {**about["data"], **until}}
    texts = {key: json.dumps(said[key], sort_keys=True) for key in ("data", "settings", "metrics")}
    return ModelVersion(path, {**describe_model(new), "parent": segmenter.model_id, **texts})
