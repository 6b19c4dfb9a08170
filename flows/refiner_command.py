"""The command `gapmap fit-refiner`: labelled images in, a refiner that draws a model's uncertainty maps out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.head_commands import AnswersOption, DataOption, ReplaceOption, choose_output

_SCENE_SIZE = 384


def fit_refiner(
    model: Annotated[str, typer.Option(help="Registry name, or path or URL of a checkpoint.")] = "sam-nano",
    data: DataOption = None,
    store: AnswersOption = None,
    scenes: Annotated[int, typer.Option(min=0, help="Procedural scenes to fit to, besides.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: NAME.refiner.safetensors beside the weights, where label finds it."
        ),
    ] = None,
    replace: ReplaceOption = False,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 1000,
    images: Annotated[int, typer.Option(min=1, help="Images of an update.")] = 4,
    masks: Annotated[int, typer.Option(min=1, help="Masks of an image in an update, at most.")] = 8,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 4e-4,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Fit the refiner that says where in its masks a model is unsure.

    It learns to redraw the model's masks as people drew them; what it would change is uncertain. Of each set the last
    fifth of the groups is left for evaluation (gapmap evaluate maps). Stop it whenever you like: the same command
    goes on from the last checkpoint.

    Example: gapmap fit-refiner --model sam-nano --data labelled/ --scenes 300
    """
    from engine.learn.answers import read_lessons
    from engine.learn.data import learnable_images, make_head_scenes
    from engine.learn.refiner_fitting import RefinerSettings
    from engine.learn.refiner_fitting import fit_refiner as fit
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.store import Store
    from engine.uncertainty.refiner_files import refiner_path, write_refiner
    from flows.console import steps_progress
    from schemas.errors import ConfigError

    sets = read_lessons(data or [], Store(store) if store else None, openable=True)
    if not sets and not scenes:
        raise ConfigError(
            "There is nothing to fit to. Give labelled images (--data FOLDER), a --store with answers, or --scenes 300."
        )
    learnt = {name: learnable_images(of) for name, of in sets.items()}
    for name, of in learnt.items():
        if not of:
            raise ConfigError(
                f"The set {name!r} has no labelled image that may be learnt from. Leave it out."
            )
    if scenes:
        learnt["scenes"] = make_head_scenes(scenes, _SCENE_SIZE, 2)
    keep_freed_memory()
    segmenter = load_segmenter(model, device=device)
    path = choose_output(out, refiner_path(segmenter), "--maps", replace=replace)
    settings = RefinerSettings(steps=steps, images=images, masks=masks, rate=rate, seed=seed)
    checkpoint = path.with_name(path.name + ".checkpoint")
    with steps_progress("fitting the refiner") as progress:
        fitted = fit(
            segmenter,
            [image for of in learnt.values() for image in of],
            settings,
            checkpoint=checkpoint,
            progress=lambda _, done, total: progress(done, total),
        )
    about = {
        "data": {name: len(of) for name, of in learnt.items()},
        "pairs": fitted.pairs,
        "held_pairs": fitted.held_pairs,
        "held_iou_before": round(fitted.iou_before, 4),
        "held_iou_after": round(fitted.iou_after, 4),
        "steps": fitted.steps,
    }
    write_refiner(fitted.weights, segmenter.model_id, path, about)
    checkpoint.unlink(missing_ok=True)
    typer.echo(
        f"refiner: {path}   masks of held-out groups: IoU {fitted.iou_before:.3f} as the model draws them, "
        f"{fitted.iou_after:.3f} redrawn"
    )
