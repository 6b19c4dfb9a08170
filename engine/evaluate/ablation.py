"""What each part of SUM is worth: one model fine-tuned in ten ways, each judged on the same masks.

SUM (Liu et al., NeurIPS 2024, tables 3 to 6). Variants differ in one thing each and share seeds, labels and pseudo-labels.
What is done is kept in a folder: a killed ablation goes on where it was, and several processes may share the variants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.evaluate.bootstrap import ALL_TASKS, paired_bootstrap
from engine.evaluate.interactive import evaluate_interactive
from engine.evaluate.mask_results import MaskResult
from engine.learn.checkpoints import identify_images
from engine.learn.data import LabelledImage
from engine.learn.finetuning import finetune
from engine.learn.training_images import TrainingImage
from engine.models.export import write_model
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.settings import FinetuneSettings

POINTS = (1, 3, 5)
BASE, SUM = "base", "sum"


@dataclass(frozen=True)
class Variant:
    """A way of fine-tuning.

    Attributes:
        title: what a table calls it.
        pseudo: which pseudo-labels: `none`, `maps` (of the refiner), `confidence` (SAM's own, as the map), or `redrawn`
            (the refiner's masks themselves).
        changes: fields of `FinetuneSettings` that differ from SUM's.
    """

    title: str
    pseudo: str
    changes: Mapping[str, Any]


_PLAIN = {
    "uncertainty_loss": False,
    "uncertainty_sampling": False,
    "task_prompt": "none",
    "distillation": 0.0,
}
VARIANTS: dict[str, Variant] = {
    "vanilla": Variant("people's masks alone", "none", _PLAIN),
    "mix": Variant("both, all pixels alike", "maps", _PLAIN),
    "redrawn": Variant("refiner's masks as labels", "redrawn", _PLAIN),
    "no-distillation": Variant("SUM, free to forget", "maps", {"distillation": 0.0}),
    "no-task": Variant("SUM without task prompt", "maps", {"task_prompt": "none"}),
    "no-loss": Variant("SUM, losses unweighted", "maps", {"uncertainty_loss": False}),
    "no-sampling": Variant("SUM, points unweighted", "maps", {"uncertainty_sampling": False}),
    "every-round": Variant("SUM, task told every round", "maps", {"task_prompt": "every"}),
    "confidence": Variant("SUM, confidence as the map", "confidence", {}),
    SUM: Variant("SUM", "maps", {}),
}
"""All but the model as it was, `base`."""


def run_variant(
    name: str,
    segmenter: Segmenter,
    human: Sequence[TrainingImage],
    pseudo: Mapping[str, Sequence[TrainingImage]],
    sets: Mapping[str, Sequence[LabelledImage]],
    settings: FinetuneSettings,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[MaskResult]:
    """Fine-tune in one way and judge; what was done before with the same data and settings is read from the folder.

    Args:
        name: `base`, or a key of `VARIANTS`.
        segmenter: the model to begin with.
        human: masks of people, to learn from.
        pseudo: pseudo-labels by their kind, as far as the variant needs them.
        sets: masks to judge on, none of them learnt from.
        settings: SUM's; the variant changes them.
        folder: keeps checkpoints, weights and results.
        progress: called with (what is done, steps done, steps in all).
    """
    variant = VARIANTS.get(name)
    model, digest = segmenter, _digest(segmenter, human, pseudo, sets, settings, variant)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{digest}.json"
    if path.exists():
        rows = json.loads(path.read_text())["results"]
        return [MaskResult(**row | {"clicks": tuple(map(tuple, row["clicks"]))}) for row in rows]
    history: list[dict[str, float]] = []
    if variant:
        changed = FinetuneSettings(**{**settings.model_dump(), **variant.changes})
        checkpoint = folder / f"{name}-{digest}.checkpoint"
        made = finetune(
            segmenter,
            human,
            pseudo.get(variant.pseudo, ()),
            changed,
            checkpoint=checkpoint,
            progress=_tell(progress, f"{name}: learning"),
        )
        about = {"parent": segmenter.model_id, "variant": name, "settings": changed.model_dump()}
        weights = write_model(
            made.weights, made.task_prompt_4C, folder / name, segmenter.name, segmenter.image_size, about
        )
        checkpoint.unlink(missing_ok=True)
        model, history = load_segmenter(weights, device=segmenter.device), made.history
    results = evaluate_interactive(model, sets, POINTS, progress=_judging(progress, name))
    text = json.dumps(
        {"model": model.model_id, "history": history, "results": [asdict(row) for row in results]}
    )
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    return results


def tabulate(
    results: Mapping[str, Sequence[MaskResult]], *, learnt: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each variant: its mean IoU and boundary IoU over all masks, and what it gained over the base.

    Args:
        results: by variant; `base` among them.
        learnt: names of the sets that people's masks were learnt from. What was lost is told of the others.

    Returns:
        Rows {variant, title, points: {count: {miou, mbiou, gain, low, high, boundary_gain}}, sets: {set: [gain of IoU at
        each of `POINTS`]}, worst_unseen}: shares, gains as differences of the means with their 95 % interval
        (`paired_bootstrap`); `worst_unseen` the lowest gain among sets that are not `learnt`, None where there is none.
    """
    base = list(results[BASE])
    rows = []
    for name, found in results.items():
        differences = {
            (of.points, of.metric): of
            for of in paired_bootstrap(list(found), base, seed=0)
            if of.task == ALL_TASKS
        }
        by_points = {}
        for points in POINTS:
            of = [result for result in found if result.points == points]
            iou, boundary = differences[points, "miou"], differences[points, "mbiou"]
            by_points[points] = {
                "miou": _mean([result.iou for result in of]),
                "mbiou": _mean([result.biou for result in of]),
                "gain": iou.mean,
                "low": iou.low,
                "high": iou.high,
                "boundary_gain": boundary.mean,
            }
        sets = {data: _set_gains(found, base, data) for data in dict.fromkeys(row.data for row in base)}
        unseen = [min(gains) for data, gains in sets.items() if data not in learnt]
        rows.append(
            {
                "variant": name,
                "title": VARIANTS[name].title if name in VARIANTS else "the model as it was",
                "points": by_points,
                "sets": sets,
                "worst_unseen": min(unseen, default=None),
            }
        )
    return rows


def _set_gains(found: Sequence[MaskResult], base: Sequence[MaskResult], data: str) -> list[float]:
    means = [
        [_mean([row.iou for row in of if row.data == data and row.points == points]) for points in POINTS]
        for of in (found, base)
    ]
    return [new - old for new, old in zip(*means, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _digest(
    segmenter: Segmenter,
    human: Sequence[TrainingImage],
    pseudo: Mapping[str, Sequence[TrainingImage]],
    sets: Mapping[str, Sequence[LabelledImage]],
    settings: FinetuneSettings,
    variant: Variant | None,
) -> str:
    """Of everything that decides a variant's result."""
    judged = [[name, image.key] for name, of in sets.items() for image in of]
    what: list[Any] = [segmenter.model_id, judged]
    if variant:
        taught = [*human, *pseudo.get(variant.pseudo, ())]
        what += [settings.model_dump(), variant.pseudo, dict(variant.changes), identify_images(taught)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _tell(
    progress: Callable[[str, int, int], None] | None, what: str
) -> Callable[[int, int, dict[str, float]], None] | None:
    if progress is None:
        return None
    return lambda done, total, _: progress(what, done, total)


def _judging(
    progress: Callable[[str, int, int], None] | None, name: str
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(f"{name}: judging", done, total)
