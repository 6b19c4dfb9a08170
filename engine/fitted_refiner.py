"""A refiner of a model from labelled images: fitted, and written beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.learn.fitting_sets import choose_output, read_fitting_sets
from engine.learn.refiner_fitting import RefinerFit, fit_refiner
from engine.models.loading import load_segmenter
from engine.store import Store
from engine.uncertainty.refiner_files import refiner_path, write_refiner
from schemas.fitting_settings import RefinerSettings


@dataclass(frozen=True)
class FittedRefiner:
    """Where a refiner lies, and what it does to masks of held-out groups."""

    path: Path
    fit: RefinerFit


def make_refiner(
    model: str,
    data: Sequence[Path],
    store: Store | None,
    scenes: int,
    settings: RefinerSettings,
    *,
    out: Path | None = None,
    replace: bool = False,
    device: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> FittedRefiner:
    """Fit a refiner to a model and write it. Killed at any moment, the same call goes on from the last checkpoint, beside the file.

    Args:
        model: registry name, or path or URL of a checkpoint.
        data, store, scenes: see `read_fitting_sets`.
        settings: how.
        out: file to write; None for NAME.refiner.safetensors beside the weights.
        replace: write over that where it is there.
        device: see `load_segmenter`.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        ConfigError: there is nothing to learn from, or nowhere to write.
        StaleCheckpointError: a run with other labels or settings was killed.
    """
    learnt = read_fitting_sets(data, store, scenes, progress).learnt
    segmenter = load_segmenter(model, device=device)
    path = choose_output(out, refiner_path(segmenter), "--maps", replace=replace)
    checkpoint = path.with_name(path.name + ".checkpoint")
    images = [image for of in learnt.values() for image in of]
    fitted = fit_refiner(segmenter, images, settings, checkpoint=checkpoint, progress=progress)
    about = {
        "data": {name: len(of) for name, of in learnt.items()},
        "pairs": fitted.pairs,
        "held_pairs": fitted.held_pairs,
        "held_iou_before": round(fitted.iou_before, 4),
        "held_iou_after": round(fitted.iou_after, 4),
        "held_loss_before": round(fitted.loss_before, 4),
        "held_loss_after": round(fitted.loss_after, 4),
        "steps": fitted.steps,
    }
    write_refiner(fitted.weights, segmenter.model_id, path, about)
    checkpoint.unlink(missing_ok=True)
    return FittedRefiner(path, fitted)
