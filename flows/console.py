"""What a person sees while a command works: bars on standard error, and the summary after it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from flows.pseudolabel import RunSummary


_ERRORS = "SELECT uri, error_kind, error FROM images WHERE error IS NOT NULL"


class StepsShown(Protocol):
    """Takes steps done, steps in all, and how it goes."""

    def __call__(self, done: int, total: int, how: str = "", /) -> None: ...


class LabelBar:
    """The bar of `gapmap label`: images done, images/s, time left, masks, errors. A listener of tasks.progress.

    Off a terminal (a log file, cron) it is a line every so often instead.

    Args:
        every_s: seconds between such lines.
    """

    def __init__(self, every_s: float = 30.0) -> None:
        self._every_s, self._told = every_s, time.monotonic()
        self._console = Console(stderr=True, markup=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
            console=self._console,
        )
        self._task = self._bar.add_task("starting", total=None, rate="", counts="")
        self._masks = self._errors = 0

    def __enter__(self) -> LabelBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, total: int, done_before: int) -> None:
        if done_before:
            self._console.print(f"{done_before} images are in the store already")
        self._bar.reset(self._task, total=total, description="labelling")

    def advance(self, images: int, masks: int, errors: int) -> None:
        self._masks, self._errors = self._masks + masks, self._errors + errors
        task = self._bar.tasks[0]
        rate = (task.completed + images) / task.elapsed if task.elapsed else 0.0
        counts = f"{self._masks} masks" + (f", {self._errors} errors" if self._errors else "")
        self._bar.update(self._task, advance=images, rate=f"{rate:.2f} images/s", counts=counts)
        if not self._console.is_terminal and time.monotonic() - self._told >= self._every_s:
            self._told = time.monotonic()
            left = f", {timedelta(seconds=int(task.time_remaining))} left" if task.time_remaining else ""
            done = f"{task.completed:.0f}/{task.total or 0:.0f} images"
            self._console.print(f"{done}, {rate:.2f} images/s, {counts}{left}", highlight=False)

    def summarise(self, summary: RunSummary) -> None:
        """Print what the run did."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        usable = summary.images - sum(summary.errors.values())
        table.add_row("model", summary.model)
        table.add_row("images", f"{usable} labelled, {summary.done_before} done before")
        table.add_row("masks", str(summary.masks))
        if summary.reused:
            table.add_row("copies", f"{summary.reused} images had their masks already, under another name")
        if summary.errors:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.errors.items()))
            table.add_row("errors", kinds)
        if summary.images:
            table.add_row("time", f"{summary.seconds:.0f} s, {summary.images / summary.seconds:.2f} images/s")
        table.add_row("store", summary.store)
        self._console.print(table)
        failed = [f"{uri}: {why}" for uri, why in summary.failed]
        if failed:
            failed.append(f'gapmap query "{_ERRORS}" --store {shlex.quote(summary.store)}')
        for line in failed:  # whole, whatever the width: to be pasted
            self._console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def query_progress() -> Iterator[Callable[[float], None] | None]:
    """A callback for a query's share done, 0..1, shown as a bar once the query has taken a second; none off a terminal."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("scanning"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=1.0, visible=False)
        yield lambda share: bar.update(task, completed=share, visible=share > 0)


@contextmanager
def steps_progress(what: str, every_s: float = 30.0) -> Iterator[StepsShown]:
    """A callback for (steps done, steps in all, how it goes), shown as a bar; off a terminal as a line every so often."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        told = time.monotonic()

        def tell(done: int, total: int, how: str = "") -> None:
            nonlocal told
            if time.monotonic() - told >= every_s:
                told = time.monotonic()
                console.print(f"{what}: {done}/{total}{how and f'  {how}'}", highlight=False)

        yield tell
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[how]}"),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None, how="")
        yield lambda done, total, how="": bar.update(task, completed=done, total=total, how=how)


@contextmanager
def phases_progress(every_s: float = 30.0) -> Iterator[Callable[[str, int, int], None]]:
    """A callback for (what is being done, steps done, steps in all), a bar for each; off a terminal lines as above."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        told, last = time.monotonic(), ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal told, last
            if what != last or time.monotonic() - told >= every_s:
                told, last = time.monotonic(), what
                console.print(f"{what}: {done}/{total}", highlight=False)

        yield tell
        return
    words = TextColumn("{task.description}", markup=False)
    with Progress(words, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
