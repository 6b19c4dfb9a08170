"""The command `gapmap fit-heads`: labelled images in, heads that score a model's masks out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.fitting_settings import HeadSettings

DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="COCO file, or folder with an annotations.json; may be given several times.",
        show_default=False,
    ),
]
AnswersOption = Annotated[
    str | None, typer.Option(help="Store whose answers of people are a labelled set, too. Default: none.")
]
TokensOption = Annotated[
    str,
    typer.Option(
        envvar="GAPMAP_TOKENS",
        help="Store that keeps tokens and true IoU, so that fitting again takes seconds: a folder or any fsspec URL.",
    ),
]
AutomaticOption = Annotated[
    int,
    typer.Option(
        min=0,
        help="Points of the grid of an image, at most, whose automatic masks take part; 0 for none, which saves a labelling "
        "of each image.",
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Write over the file beside the weights, which label uses.")
]


def fit_heads(
    model: Annotated[str, typer.Option(help="Registry name, or path or URL of a checkpoint.")] = "sam-nano",
    larger: Annotated[
        str | None,
        typer.Option(help="The model that uncertain work goes to. Default: none, and no model_gap."),
    ] = None,
    data: DataOption = None,
    store: AnswersOption = None,
    scenes: Annotated[int, typer.Option(min=0, help="Procedural scenes to fit to, besides.")] = 0,
    evaluate_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="More COCO sets for the card, never fitted to, 60 images of each at most; may be given several times."
        ),
    ] = None,
    calibrate_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Sets to calibrate predicted_iou on, by name (a folder's, or scenes): such as the model itself did not "
            "learn from. Default: all."
        ),
    ] = None,
    tokens: TokensOption = "gapmap-tokens",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: NAME.heads.safetensors beside the weights, where label finds it."
        ),
    ] = None,
    replace: ReplaceOption = False,
    objects: Annotated[int, typer.Option(min=1, help="Objects of an image, at most.")] = HeadSettings.objects,
    automatic: AutomaticOption = HeadSettings.automatic,
    seed: Annotated[
        int,
        typer.Option(help="Of splits and initial weights; which prompts are drawn does not depend on it."),
    ] = HeadSettings.seed,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Fit the heads that say why a model is unsure of a mask, and how good the mask is.

    A fifth of each set's groups is kept out, and tells in the card how good the heads are. Stop it whenever
    you like: what was asked of the models is kept.

    Example: gapmap fit-heads --model sam-nano --larger sam2-mini --data labelled/ --scenes 500
    """
    from engine.fitted_heads import make_heads
    from engine.models.allocator import keep_freed_memory
    from engine.store import Store
    from flows.console import phases_progress

    keep_freed_memory()
    with phases_progress() as progress:
        heads, card = make_heads(
            model,
            larger,
            data or [],
            Store(store) if store else None,
            scenes,
            Store(tokens),
            HeadSettings(objects, automatic, seed),
            evaluate_on=evaluate_on or (),
            calibrate_on=calibrate_on or (),
            out=out,
            replace=replace,
            device=device,
            progress=progress,
        )
    typer.echo(f"heads: {heads}   card: {card}")
