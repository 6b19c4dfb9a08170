"""The command `gapmap report`: a round as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.store_commands import StoreOption

_PAGE = Path("gapmap-report.html")


def report(
    store: StoreOption,
    round_id: Annotated[
        str | None,
        typer.Option("--round", help="Which round. Default: the newest; without any, the newest model."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file to write; it needs no other file.")
    ] = _PAGE,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open it in the browser, where this machine has one.")
    ] = False,
) -> None:
    """Write everything about a round as one HTML page: what was labelled, decided, answered and learnt, and what it cost.

    Example: gapmap report --store masks/ --open
    """
    from engine.report.round_page import summarise_round
    from engine.report.round_report import write_round_report
    from engine.store import Store
    from flows.console import steps_progress

    with steps_progress("report") as progress:
        made = write_round_report(Store(store), out, round_id, progress=progress)
    for name, reason in made.gallery.missing:
        typer.echo(f"{name} is not shown: {reason}", err=True)
    typer.echo(summarise_round(made))
    typer.echo(f"report: {out}")
    if open_page and not _open(out):
        typer.echo(f"There is no browser on this machine: copy {out.absolute()} to one that has.", err=True)


def _open(page: Path) -> bool:
    import webbrowser

    try:
        return webbrowser.open(page.absolute().as_uri())
    except webbrowser.Error:
        return False
