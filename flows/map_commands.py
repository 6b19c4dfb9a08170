"""The commands about uncertainty maps: is certainty right, and what does a map look like."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.head_commands import DataOption
from flows.interactive_command import KeptOutOption, part_sets
from flows.store_commands import StoreOption


def evaluate_maps(
    data: DataOption = None,
    model: Annotated[str, typer.Option(help="Registry name, or path or URL of a checkpoint.")] = "sam-nano",
    maps: Annotated[
        str | None,
        typer.Option(
            help="File of the refiner, or self (the model is asked itself). Default: the refiner beside the weights, else self."
        ),
    ] = None,
    kept_out: KeptOutOption = False,
    images: Annotated[int, typer.Option(min=1, help="Images of a set, at most, evenly spread.")] = 60,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture (PNG) to write.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Are the certain pixels right? Uncertainty maps held against human masks.

    Example: gapmap evaluate maps --data labelled/ --plot validity.png
    """
    from engine.evaluate.interactive import choose_images
    from engine.evaluate.map_validity import evaluate_maps as evaluate
    from engine.learn.data import read_sets
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.uncertainty.refiner_files import find_refiner
    from flows.console import steps_progress
    from schemas.errors import ConfigError

    if maps == "none":
        raise ConfigError("Without maps there is nothing to evaluate. Name a refiner's file, or self.")
    if not data:
        raise ConfigError("There is nothing to evaluate on. Give labelled images: --data FOLDER")
    sets = choose_images(part_sets(read_sets(data), kept_out), images)
    keep_freed_memory()
    segmenter = load_segmenter(model, device=device)
    refiner = find_refiner(segmenter, maps)
    assert refiner is not None
    with steps_progress("drawing maps") as progress:
        results = evaluate(segmenter, refiner, sets, progress)
    result = {"model": segmenter.model_id, "map_source": refiner.source, "results": results}
    if plot:
        from engine.report.map_plots import draw_validity

        draw_validity(result, plot)
        typer.echo(f"plot: {plot}", err=True)
    if json:
        typer.echo(json_text.dumps(result))
    else:
        _print_table(result)


def show(
    mask_id: Annotated[str, typer.Argument(help="Which mask; its first digits are enough.")],
    store: StoreOption,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write. Default: MASK_ID.png")
    ] = None,
) -> None:
    """Draw one mask: its image, the mask, and where it is uncertain, side by side.

    Example: gapmap show 3f2a9c01 --store masks/
    """
    from engine.report.mask_picture import draw_mask_picture
    from engine.store import Store

    opened = Store(store)
    opened.check_exists()
    typer.echo(f"picture: {draw_mask_picture(opened, mask_id, out)}")


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = (
        "set",
        "masks",
        "certain: right",
        "rest: right",
        "rest: share",
        "separation",
        "of |σ - 0.5|",
        "of SUM's",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for name, of in result["results"].items():
        shares = [_percent(of[key]) for key in ("certain_right", "rest_right", "rest_share")]
        areas = [
            "-" if of[key] is None else f"{of[key]:.3f}"
            for key in ("separation", "separation_confidence", "separation_change")
        ]
        table.add_row(name, str(of["masks"]), *shares, *areas)
    console = Console(markup=False)
    console.print(
        f"{result['model']}, maps by {result['map_source']}; cells around masks, certain = c > 0.6:"
    )
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
