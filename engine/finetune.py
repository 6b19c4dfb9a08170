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
from engine.uncertainty.head_files import SUFFIX as HEADS
from engine.uncertainty.refiner_files import SUFFIX as REFINER
from schemas.errors import ConfigError
from schemas.settings import FinetuneSettings

CHECKPOINT = "finetune.checkpoint"
"""What a killed run goes on from, in the folder of the models; also one that was killed before its version was recorded, or had a
refiner and heads."""
_NEWEST = """
    SELECT *, model IN (SELECT model FROM promotions WHERE action = 'refused') AS refused FROM models
    WHERE parent IS NOT NULL AND name = $name ORDER BY created_at DESC LIMIT 1
"""


@dataclass(frozen=True)
class FinetunedModel:
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
) -> FinetunedModel:
    """Fine-tune a model and write the new version to OUT/VERSION/NAME.safetensors, and how it went to learning.png there.

    Killed at any moment, the same call goes on from the last checkpoint. That is left in the folder: it is to be removed
    once the version is recorded and has its refiner and heads, so that nothing is lost in between.

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
    return FinetunedModel(path, {**describe_model(new), "parent": segmenter.model_id, **texts})


def warn_of_learning(record: Mapping[str, Any]) -> list[str]:
    """What whoever taught a version with a store should know, from its row of `models`: a sentence for each thing that was amiss.
    Rows of others may not say all of it."""
    data, settings, metrics = (json.loads(record.get(key) or "{}") for key in ("data", "settings", "metrics"))
    warnings = []
    if lost := metrics.get("lost"):
        warnings.append(
            f"{lost} images of the pool could not be opened: others were learnt from in their place."
        )
    if settings.get("distillation") and data.get("pseudo", {}).get("held") == 0:
        warnings.append(
            "Nothing kept the model from forgetting: the store has no image of it that people have not labelled. "
            "Label a pool of other images too."
        )
    return warnings


def find_unfitted(store: Store, name: str, out: Path) -> dict[str, Any] | None:
    """The newest version of a model, as its row of `models`, where the run that made it was killed before it had a refiner and heads;
    None where all is done, no run was killed, or the version was refused.

    Args:
        name: what the model is called, whatever its version.
        out: folder of the model's versions. A version that was to be left without has no checkpoint there.
    """
    if not (out / CHECKPOINT).is_file():
        return None
    rows = store.read(lambda snapshot: snapshot.rows(_NEWEST, {"name": name}))
    if not rows or rows[0]["refused"]:
        return None
    weights = Path(rows[0]["source"])
    fitted = [weights.with_name(weights.stem + suffix).is_file() for suffix in (REFINER, HEADS)]
    return rows[0] if weights.is_file() and not all(fitted) else None
