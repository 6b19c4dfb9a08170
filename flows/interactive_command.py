"""The command `gapmap evaluate interactive`: how good are a model's masks after one click, three, five?"""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.head_commands import DataOption
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from engine.evaluate.mask_results import MaskResult
    from engine.learn.data import LabelledImage


KeptOutOption = Annotated[
    bool,
    typer.Option(
        "--kept-out/--all",
        help="Of each set only what is never learnt from: a fifth of its groups, of the shipped sets "
        "those that the shipped models were kept from. Use it for sets that a model learnt from.",
    ),
]


def interactive(
    data: DataOption = None,
    model: Annotated[str, typer.Option(help="Registry name, or path or URL of a checkpoint.")] = "sam-nano",
    against: Annotated[
        str | None,
        typer.Option(
            help="Another model to compare with on the same masks; above 0 is better than it. Default: none."
        ),
    ] = None,
    points: Annotated[
        str, typer.Option(help="Numbers of clicks to report, 1 to 20, with commas between.")
    ] = "1,3,5",
    kept_out: KeptOutOption = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images of a set, at most, evenly spread. Default: all.")
    ] = None,
    masks: Annotated[
        int | None, typer.Option(min=1, help="Masks of an image, at most, evenly spread. Default: all.")
    ] = None,
    tell_task: Annotated[
        bool,
        typer.Option(
            help="Tell a model that was taught tasks what is meant (salient, entity, part), with the first click."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the draws behind the intervals of --against.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures (PNG) of the best and the worst masks of each set and task."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """How good are the masks after one click, three, five? SAM's interactive protocol on human masks.

    The first click is the mask's innermost pixel, each further one the innermost pixel of the largest error; the
    best of three outputs counts. mIoU and mean boundary IoU (mBIoU) are means over masks, apart for each set and
    task: a model may gain on parts and lose on salient objects. With --against the differences come with intervals
    (95 %, groups of images drawn again).

    Example: gapmap evaluate interactive --model mine.safetensors --against sam-nano --data labelled/ --kept-out
    """
    counts = _read_points(points)
    if not data:
        raise ConfigError("There is nothing to evaluate on. Give labelled images: --data FOLDER")

    from engine.learn.data import read_sets

    parted = part_sets(read_sets(data), kept_out)

    from engine.evaluate.bootstrap import paired_bootstrap
    from engine.evaluate.interactive import choose_images, evaluate_interactive
    from engine.evaluate.mask_results import summarise_results
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from flows.console import steps_progress

    sets = choose_images(parted, images, masks)
    keep_freed_memory()
    segmenter = load_segmenter(model, device=device)
    other = load_segmenter(against, device=device) if against else None

    def click(of: Any, keep_masks: bool) -> list[MaskResult]:
        with steps_progress(f"clicking, {of.name}") as progress:
            return evaluate_interactive(
                of, sets, counts, tell_task=tell_task, keep_masks=keep_masks, progress=progress
            )

    results = click(segmenter, pictures is not None)
    report: dict[str, Any] = {"model": segmenter.model_id, "results": summarise_results(results)}
    if other:
        differences = paired_bootstrap(results, click(other, False), seed=seed)
        report |= {"against": other.model_id, "differences": [_rounded(asdict(of)) for of in differences]}
    if pictures:
        from engine.report.click_pictures import draw_examples

        for path in draw_examples(results, sets, pictures, model=segmenter.name):
            typer.echo(f"picture: {path}", err=True)
    if json:
        typer.echo(json_text.dumps(report))
    else:
        _print_report(report, counts)


def _read_points(text: str) -> list[int]:
    from engine.evaluate.mask_results import MOST_POINTS

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= MOST_POINTS for word in words):
        raise ConfigError(
            f"--points {text!r} are no numbers of clicks. Give some from 1 to {MOST_POINTS} with commas between: "
            "--points 1,3,5"
        )
    return sorted({int(word) for word in words})


def part_sets(sets: dict[str, list[LabelledImage]], kept_out: bool) -> dict[str, list[LabelledImage]]:
    """Unknown modalities apart, and of all else only what is not learnt from, if so asked."""
    from engine.learn.splits import keep_out_everywhere, learnable_images, split_unknown

    parted: dict[str, list[LabelledImage]] = {}
    for name, of in (keep_out_everywhere(sets) if kept_out else sets).items():
        learnt = {image.name for image in learnable_images(of)} if kept_out else set()
        left = [image for image in of if image.name not in learnt]
        if of and not left:
            raise ConfigError(
                f"The set {name!r} has too few groups of images to keep any out. Evaluate all of it: --all"
            )
        parted |= split_unknown(name, left) or {name: []}
    return parted


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def _print_report(report: dict[str, Any], counts: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    heads = [f"{count} click{'s' * (count > 1)}" for count in counts]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["results"]:
        rows.setdefault((row["data"], row["task"]), []).append(row)
    table = Table("set", "task", "masks", *heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for (data, task), of in rows.items():
        table.add_row(data, task, str(of[0]["n"]), *(_pair(row["miou"], row["mbiou"]) for row in of))
    if len(rows) > 1:
        masks = sum(of[0]["n"] for of in rows.values())
        means = [
            [sum(of[k]["n"] * of[k][key] for of in rows.values()) / masks for key in ("miou", "mbiou")]
            for k in range(len(counts))
        ]
        table.add_row("all masks", "", str(masks), *(_pair(*mean) for mean in means))
    console.print(f"{report['model']}, best of three outputs; mIoU / mBIoU, %:")
    console.print(table)
    if "against" not in report:
        return
    table = Table("task", "", "masks", *heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    gains: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["differences"]:
        if row["task"] != "all" or len({of["task"] for of in report["results"]}) > 1:
            gains.setdefault((row["task"], row["metric"]), []).append(row)
    for (task, metric), of in gains.items():
        word = {"miou": "mIoU", "mbiou": "mBIoU"}[metric]
        table.add_row(task, word, str(of[0]["n"]), *(_interval(row) for row in of))
    console.print(f"\nbetter than {report['against']} by, in points (95 % interval):")
    console.print(table)


def _pair(miou: float, mbiou: float) -> str:
    return f"{100 * miou:.1f} / {100 * mbiou:.1f}"


def _interval(row: dict[str, Any]) -> str:
    mean = f"{100 * row['mean']:+.1f}"
    return mean if row["low"] is None else f"{mean} ({100 * row['low']:+.1f}…{100 * row['high']:+.1f})"
