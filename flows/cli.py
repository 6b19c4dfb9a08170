"""The command line: `gapmap …`. Each command is one thing a user does; the work is done elsewhere."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.errors import GapmapError

app = typer.Typer(
    name="gapmap",
    help="Mask a pool of images with SAM or SAM 2, keep every mask with its scores in Parquet, ask about them in SQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="GAPMAP_STORE",
        help="Where the tables are: a folder, s3://bucket/prefix, any fsspec URL.",
    ),
]


class Format(StrEnum):
    """How a query's result is written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


@app.command()
def label(
    pool: Annotated[
        str,
        typer.Argument(
            help="Folder, bucket, zip or list of images: any fsspec URL; globs allowed (quote them)."
        ),
    ],
    store: StoreOption,
    model: Annotated[
        str, typer.Option(help="Registry name (see: gapmap models), or path or URL of a checkpoint.")
    ] = "sam-nano",
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
    points_per_side: Annotated[
        int | None, typer.Option(help="Grid of point prompts, per side. Default: 32.")
    ] = None,
    pred_iou_thresh: Annotated[
        float | None, typer.Option(help="Drop masks the model scores lower. Default: the model's own.")
    ] = None,
    stability_score_thresh: Annotated[
        float | None, typer.Option(help="Drop masks less stable than this. Default: the model's own.")
    ] = None,
    box_nms_thresh: Annotated[
        float | None, typer.Option(help="Box IoU above which the lower score goes. Default: 0.7.")
    ] = None,
    crop_n_layers: Annotated[
        int | None, typer.Option(help="Layers of overlapping crops besides the whole image. Default: 0.")
    ] = None,
    min_mask_region_area: Annotated[
        int | None, typer.Option(help="Remove smaller holes and islands, pixels. Default: 0.")
    ] = None,
    tile_size: Annotated[
        int | None,
        typer.Option(help="Cut images with a longer side into tiles of this side, pixels. Default: never."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob below the pool; may be given several times.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob to leave out; may be given several times.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images committed together.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Images encoded together.")] = 4,
    limit: Annotated[
        int | None, typer.Option(help="Stop after this many images; the next run goes on.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try images again that could not be read before.")
    ] = False,
) -> None:
    """Mask every image of a pool; what is in the store already is not done again.

    Stop it whenever you like, even with kill -9: the same command goes on where it was.

    Example: gapmap label photos/ --store masks/
    """
    quiet_prefect()
    from flows.console import LabelBar
    from schemas.settings import GenerateSettings, PoolSettings
    from tasks.progress import listening

    chosen: dict[str, Any] = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "box_nms_thresh": box_nms_thresh,
        "crop_n_layers": crop_n_layers,
        "min_mask_region_area": min_mask_region_area,
        "tile_size": tile_size,
    }
    generate = GenerateSettings(**{key: value for key, value in chosen.items() if value is not None})
    files = PoolSettings(include=tuple(include or ()), exclude=tuple(exclude or ()))
    with LabelBar() as bar, listening(bar):
        from flows.pseudolabel import pseudolabel

        summary = pseudolabel(
            absolute(pool),
            absolute(store),
            model,
            generate=generate,
            files=files,
            shard_size=shard_size,
            batch_size=batch_size,
            limit=limit,
            device=device,
            retry_errors=retry_errors,
        )
    bar.summarise(summary)


@app.command()
def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="One SELECT over the views images, masks, models. Use - to read it from standard input."
        ),
    ],
    store: StoreOption,
    format: Annotated[Format, typer.Option("--format", help="How to write the result.")] = Format.table,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="File or URL to write to. Default: standard output.")
    ] = None,
) -> None:
    """Ask the store in SQL (DuckDB), read-only and fenced off from other files.

    Example: gapmap query "SELECT mask_id, uncertainty FROM masks ORDER BY uncertainty DESC LIMIT 10" --store masks/
    """
    from engine.store import Store
    from flows.console import query_progress

    text = sys.stdin.read() if sql == "-" else sql
    opened = Store(store)
    opened.check_exists()
    with query_progress() as progress:
        opened.write_query(text, format.value, out or sys.stdout, progress)


@app.command()
def export(
    out: Annotated[str, typer.Argument(help="File or URL to write.")],
    store: StoreOption,
    format: Annotated[str, typer.Option("--format", help="coco: one JSON that pycocotools loads.")] = "coco",
    where: Annotated[
        str | None, typer.Option(help="SQL condition on masks, such as 'sam_score > 0.8'.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="name@version, where the store holds several models.")
    ] = None,
) -> None:
    """Write masks as a COCO file.

    Example: gapmap export masks.json --store masks/ --where "uncertainty < 0.2"
    """
    from engine.store import Store, export_coco
    from flows.console import steps_progress

    if format != "coco":
        raise typer.BadParameter(f"{format!r} is not a format. Known: coco.", param_hint="--format")
    opened = Store(store)
    opened.check_exists()
    with steps_progress("writing") as progress:
        images, masks = export_coco(opened, out, where=where, model=model, progress=progress)
    typer.echo(f"{masks} masks of {images} images written to {out}")


@app.command()
def compact(store: StoreOption) -> None:
    """Merge the store's small files, and sweep what killed runs left behind. Safe while others read and write."""
    from engine.store import Store
    from flows.console import steps_progress

    opened = Store(store)
    opened.check_exists()
    with steps_progress("merging") as progress:
        merged = opened.compact(progress=progress)
    typer.echo(f"{merged} shards merged, {opened.sweep()} files of killed or replaced shards swept")


@app.command()
def sheet(
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    store: StoreOption,
    images: Annotated[
        int, typer.Option(min=1, max=200, help="How many images, those with the most uncertain masks first.")
    ] = 12,
    model: Annotated[str | None, typer.Option(help="name@version; default: the newest in the store.")] = None,
) -> None:
    """Draw a contact sheet: images with their masks, coloured by uncertainty.

    Example: gapmap sheet sheet.png --store masks/
    """
    from engine.store import Store
    from tasks.sheet import draw_sheet

    draw_sheet(Store(store), out, images=images, model=model)
    typer.echo(f"contact sheet: {out}")


@app.command()
def models() -> None:
    """List the models that have a name: where each comes from, its size, and whether it is on this machine."""
    from engine.models.registry import MODELS

    for entry in MODELS.values():
        size = entry.path.stat().st_size if entry.path.is_file() else entry.size_bytes
        here = "here" if entry.path.is_file() else "fetched at first use" if entry.url else "missing"
        megabytes = f"{size / 1e6:6.0f} MB" if size else " " * 9
        typer.echo(f"{entry.name:18} {entry.package:17} {megabytes}  {entry.licence:11} {here}")


@app.command()
def doctor(
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is wrong.")] = False,
) -> None:
    """Check this machine: packages that do not go together, device, weights, cache, Prefect server."""
    from flows.doctor import examine

    wrong = 0
    for finding in examine():
        wrong += not finding.fine
        if not finding.fine:
            typer.secho(f"  bad  {finding.name}: {finding.detail}\n       {finding.remedy}", fg="red")
        elif not quiet:
            typer.echo(f"  ok   {finding.name}: {finding.detail}")
    if wrong:
        raise typer.Exit(1)


def quiet_prefect() -> None:
    """Settings for a flow in process, where the user has not chosen others: no chatter, no telemetry."""
    for name, value in {
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy machine takes longer than the usual 20
    }.items():
        os.environ.setdefault(name, value)


def absolute(address: str) -> str:
    """A local path made absolute, so that the rows name files wherever the next command is run; URLs stay."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; a GapmapError ends it with its message alone, an interruption with how to go on."""
    from pydantic import ValidationError

    try:
        return app(args=arguments)
    except GapmapError as error:
        typer.secho(f"gapmap: {error}", fg="red", err=True)
    except ValidationError as error:
        for fault in error.errors():
            name = "--" + "-".join(str(part) for part in fault["loc"]).replace("_", "-")
            typer.secho(f"gapmap: {name}: {fault['msg']} (given: {fault['input']!r})", fg="red", err=True)
    except KeyboardInterrupt:
        typer.secho(
            "gapmap: stopped. What was committed stays; the same command goes on from there.", err=True
        )
        sys.exit(130)
    sys.exit(1)


if __name__ == "__main__":
    main()
