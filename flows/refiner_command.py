"""The command `gapmap fit-refiner`: labelled images in, a refiner that draws a model's uncertainty maps out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.head_commands import AnswersOption, DataOption, ReplaceOption
from schemas.fitting_settings import RefinerSettings


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
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = RefinerSettings.steps,
    images: Annotated[int, typer.Option(min=1, help="Images of an update.")] = RefinerSettings.images,
    masks: Annotated[
        int, typer.Option(min=1, help="Masks of an image in an update, at most.")
    ] = RefinerSettings.masks,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate.")] = RefinerSettings.rate,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = RefinerSettings.seed,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Fit the refiner that says where in its masks a model is unsure.

    It learns to redraw the model's masks as people drew them; where it and the model leave it open which side a cell is on is uncertain. Of each set a
    fifth of the groups is left for evaluation (gapmap evaluate maps). Stop it whenever you like: the same command
    goes on from the last checkpoint.

    Example: gapmap fit-refiner --model sam-nano --data labelled/ --scenes 300
    """
    from engine.fitted_refiner import make_refiner
    from engine.models.allocator import keep_freed_memory
    from engine.store import Store
    from flows.console import steps_progress

    keep_freed_memory()
    settings = RefinerSettings(steps=steps, images=images, masks=masks, rate=rate, seed=seed)
    opened = Store(store) if store else None
    with steps_progress("the refiner") as bar:
        made = make_refiner(
            model,
            data or [],
            opened,
            scenes,
            settings,
            out=out,
            replace=replace,
            device=device,
            progress=lambda what, done, total: bar(done, total, what),
        )
    typer.echo(
        f"refiner: {made.path}   masks of held-out groups: IoU {made.fit.iou_before:.3f} as the model draws them, "
        f"{made.fit.iou_after:.3f} redrawn; cross entropy of cells around them {made.fit.loss_before:.3f} and {made.fit.loss_after:.3f}"
    )
