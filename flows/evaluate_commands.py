"""The commands `gapmap evaluate …`: how good a model's scores are, held against human masks."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.head_commands import AutomaticOption, DataOption, TokensOption
from flows.interactive_command import interactive

evaluate = typer.Typer(
    name="evaluate", help="Hold a model and its scores against human masks.", no_args_is_help=True
)
evaluate.command()(interactive)

_WORDS = {
    "sam_score": "SamScore",
    "entropy": "entropy",
    "H_Theta": "H_Θ",
    "delta": "Δ",
    "delta_star": "Δ*",
    "predicted_iou": "predicted IoU",
}


@evaluate.command()
def uncertainty(
    data: DataOption = None,
    model: Annotated[str, typer.Option(help="Registry name, or path or URL of a checkpoint.")] = "sam-nano",
    larger: Annotated[
        str | None, typer.Option(help="The model that uncertain work goes to. Default: none, no model gap.")
    ] = None,
    heads: Annotated[
        Path | None, typer.Option(help="File of the heads. Default: those beside the weights.")
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Fit heads to the data itself, each seed anew, and evaluate on its kept-out groups.",
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, max=50, help="Rounds that the mean and the spread are of.")
    ] = 5,
    baselines: Annotated[
        bool, typer.Option(help="Also the Monte-Carlo entropies: 48 decodes an object and model.")
    ] = True,
    ablation: Annotated[
        bool,
        typer.Option(
            help="Also heads that see only some of their inputs, fitted to four fifths of the data."
        ),
    ] = True,
    automatic: AutomaticOption = 64,
    tokens: TokensOption = "gapmap-tokens",
    objects: Annotated[int, typer.Option(min=1, help="Objects of an image, at most.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures (PNG).")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Which score finds the masks that a fix would mend: the tables of UncertainSAM for any model.

    Images whose groups the heads were fitted to are left out. Relative AUC is 1 where the largest true gain is mended
    first; chance is shown beside.

    Example: gapmap evaluate uncertainty --model sam-nano --larger sam2-mini --data salient/ --data car-parts/ --json
    """
    from engine.evaluate.uncertainty_run import UncertaintyRun
    from engine.learn.data import read_sets
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.store import Store
    from engine.uncertainty.head_files import find_heads, fitted_digests, heads_path
    from flows.console import steps_progress
    from schemas.errors import ConfigError

    if not data:
        raise ConfigError("There is nothing to evaluate on. Give labelled images: --data FOLDER")
    sets = read_sets(data)
    keep_freed_memory()
    segmenter = load_segmenter(model, device=device)
    found, path = None, heads or heads_path(segmenter)
    if not refit:
        found = find_heads(segmenter, str(heads) if heads else None)
        if found is None:
            raise ConfigError(
                f"There are no heads of {segmenter.model_id}. Fit some (gapmap fit-heads --help), name their file "
                "with --heads, or fit them to this data with --refit."
            )
    run = UncertaintyRun(
        segmenter,
        load_segmenter(larger, device=device) if larger and larger != "none" else None,
        found,
        frozenset(fitted_digests(path) if found and path else ()),
        Store(tokens),
        seeds=seeds,
        objects=objects,
        baselines=baselines,
        ablation=ablation,
        automatic=automatic,
    )
    result = run.evaluate(sets, steps_progress)
    if plots:
        from engine.report.uncertainty_plots import draw_uncertainty

        for path in draw_uncertainty(result, plots):
            typer.echo(f"plot: {path}", err=True)
    if json:
        typer.echo(json_text.dumps(result))
    else:
        _print_tables(result)


def _print_tables(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    areas = result["relative_auc"]
    table = Table("method", *(f"{gap} gap" for gap in areas), "r with IoU", box=None, pad_edge=False)
    methods = sorted({m for of in areas.values() for m in of}, key=lambda m: -(areas["task"][m]["mean"] or 0))
    for method in methods:
        cells = [
            f"{_percent(of[method]['mean'])} ± {_percent(of[method]['std'])}" if method in of else ""
            for of in areas.values()
        ]
        r = result["correlation"].get(method)
        table.add_row(_WORDS.get(method, method), *cells, _show(r))
    console.print(
        f"{result['model']}, larger {result['larger'] or 'none'}: {result['n']} predictions. Relative AUC, %:"
    )
    console.print(table)
    console.print(
        f"predicted IoU: r {_show(result['correlation']['predicted_iou'])}, "
        f"calibration error {_show(result['calibration_error'], 3)}"
    )
    for inputs, of in result.get("token_ablation", {}).items():
        console.print(
            f"heads that see {inputs:20}", *(f"{gap} {_percent(v['mean'])}" for gap, v in of.items())
        )
    if automatic := result.get("automatic"):
        r = automatic["correlation"]
        console.print(
            f"{automatic['n']} automatic masks on labelled objects: r predicted IoU {_show(r['predicted_iou'])}, "
            f"SamScore {_show(r['sam_score'])}; calibration error {_show(automatic['calibration_error'], 3)}"
        )


def _show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return _show(None if value is None else 100 * value, 1)
