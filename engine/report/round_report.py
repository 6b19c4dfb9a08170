"""The page of a round, written whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.report.round_page import RoundReport, read_report, render_page
from engine.store import Store
from engine.store.whole_file import check_folder, written_whole
from engine.triage.accept_error import estimate_accept_error
from schemas.errors import ConfigError
from schemas.settings import TriageSettings

_GOOD_IOU = TriageSettings().good_iou  # where no round says it


def write_round_report(
    store: Store,
    out: Path,
    round_id: str | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> RoundReport:
    """Write the page of a round: the newest unless one is named, or of the newest model of a store without rounds.

    Args:
        out: the HTML file.
        progress: called with steps done, steps in all and the next one.

    Returns:
        What the page shows.

    Raises:
        ConfigError: there is nothing to report, no such round, or `out` cannot be written.
    """
    check_page(out)
    report = read_report(store, round_id, progress)
    triaged = report.data.scope.step("triage")
    # A mask is wrong where it is not as good as the round's triage wanted it.
    good_iou = float(triaged.numbers.get("good_iou", _GOOD_IOU)) if triaged else _GOOD_IOU
    accept_error = estimate_accept_error(store, report.data.scope.model, good_iou)
    with written_whole(out) as part:
        part.write_text(render_page(report, accept_error), encoding="utf-8")
    return report


def check_page(out: Path) -> None:
    """Raise ConfigError where the page cannot be written."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out} does not end in .html. Write for example {out}.html.")
    check_folder(out)
