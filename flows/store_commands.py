"""The commands about a store that is there: ask, export, merge, draw."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="GAPMAP_STORE",
        help="Where the tables are: a folder, s3://bucket/prefix, any fsspec URL.",
    ),
]


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Whose masks, by name or name@version. Default: of the model that labelled last."
    ),
]


def absolute_address(address: str) -> str:
    """A local path made absolute, so that rows name files wherever the next command is run; URLs stay."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def check_writable(store: str) -> None:
    """Make the folder of a local store, and see whether a file can be written there; URLs are left to who writes.

    Raises:
        ConfigError: it cannot.
    """
    from engine.store.files import StoreFiles
    from schemas.errors import ConfigError

    files = StoreFiles(store)
    if not files.is_local:
        return
    try:
        Path(files.root).mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=files.root).close()
    except OSError as error:
        raise ConfigError(
            f"The store {files.label} cannot be written ({error}). Name a folder where you may write files."
        ) from None


class _Format(StrEnum):
    """How a query's result is written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="One SELECT over the views images, masks, maps, embeddings, decisions, reviews, labels, rounds, models, promotions (and tokens, where heads were fitted). Use - to read it from standard input."
        ),
    ],
    store: StoreOption,
    format: Annotated[
        _Format | None,
        typer.Option(
            "--format",
            help="How to write the result. Default: as the ending of --out says, and without a file a table.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="File or URL to write to, .csv, .json or .parquet. Default: standard output.",
        ),
    ] = None,
) -> None:
    """Ask the store in SQL (DuckDB), read-only and fenced off from other files.

    Example: gapmap query "SELECT mask_id, uncertainty FROM masks WHERE replaced_by IS NULL ORDER BY uncertainty DESC LIMIT 10" --store masks/
    """
    from engine.store import Store, format_of
    from flows.console import query_progress

    chosen = format.value if format else format_of(out) if out else "table"
    text = sys.stdin.read() if sql == "-" else sql
    opened = Store(store)
    opened.check_exists()
    with query_progress() as progress:
        opened.write_query(text, chosen, out or sys.stdout, progress)


def export(
    out: Annotated[str, typer.Argument(help="File or URL to write.")],
    store: StoreOption,
    format: Annotated[str, typer.Option("--format", help="coco: one JSON that pycocotools loads.")] = "coco",
    where: Annotated[
        str | None,
        typer.Option(
            help="SQL condition on the columns of masks and on source (model or people), such as 'sam_score > 0.8'; of images by "
            "\"image_id IN (SELECT image_id FROM images WHERE uri LIKE '%.jpg')\"."
        ),
    ] = None,
    model: ModelOption = None,
) -> None:
    """Write masks as a COCO file, which the other commands take as --data.

    People's word counts: masks that they took away are left out, those that they mended are theirs, and those that they drew are
    there as well. Each annotation says as source whether it is the model's or people's.

    Example: gapmap export masks.json --store masks/ --where "source = 'people' OR uncertainty < 0.2"
    """
    from engine.store import Store, export_coco
    from engine.store.model_choice import newest_model
    from flows.console import steps_progress

    if format != "coco":
        raise typer.BadParameter(f"{format!r} is not a format. Known: coco.", param_hint="--format")
    opened = Store(store)
    opened.check_exists()
    chosen = newest_model(opened, model)
    with steps_progress("writing") as progress:
        images, masks = export_coco(opened, out, where=where, model=chosen, progress=progress)
    typer.echo(f"{masks} masks of {images} images by {chosen} written to {out}")


def compact(store: StoreOption) -> None:
    """Merge the store's small files, and sweep what killed runs left behind. Safe while others read and write."""
    from engine.store import Store
    from flows.console import steps_progress

    opened = Store(store)
    opened.check_exists()
    with steps_progress("merging") as progress:
        merged = opened.compact(progress=progress)
    typer.echo(
        f"{merged} shards and files of records merged, {opened.sweep()} files of killed or replaced ones deleted"
    )


def sheet(
    out: Annotated[Path, typer.Argument(help="PNG or JPEG to write.")],
    store: StoreOption,
    images: Annotated[
        int, typer.Option(min=1, max=200, help="How many images, those with the most uncertain masks first.")
    ] = 12,
    model: ModelOption = None,
) -> None:
    """Draw a contact sheet: images with their masks, coloured by uncertainty.

    Example: gapmap sheet sheet.png --store masks/
    """
    from engine.report.stored_sheet import draw_sheet
    from engine.store import Store

    for line in draw_sheet(Store(store), out, images=images, model=model):
        typer.echo(line, err=True)
    typer.echo(f"contact sheet: {out}")
