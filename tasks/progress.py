"""How far a run is: to a listener in the same process (the command line's bar), to the log, and to a Prefect artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID


class Listener(Protocol):
    """Told of a run in the same process: once what is to do, then each image when it is done."""

    def start(self, total: int, done_before: int) -> None:
        """`total` images are left to do, `done_before` were done by earlier runs."""

    def advance(self, images: int, masks: int, errors: int) -> None:
        """So many more are done."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While in this context, runs started in this thread report to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


StepListener = Callable[[int, int, str], None]
_steps: ContextVar[StepListener | None] = ContextVar("steps", default=None)


@contextmanager
def hearing_steps(listener: StepListener) -> Iterator[None]:
    """While in this context, long tasks started in this thread tell `listener` (steps done, in all, how it goes)."""
    token = _steps.set(listener)
    try:
        yield
    finally:
        _steps.reset(token)


def tell_steps(done: int, total: int, how: str = "") -> None:
    """Tell who hears steps, if anybody does."""
    if listener := _steps.get():
        listener(done, total, how)


@dataclass
class RunProgress:
    """Counts of one run. `advance` is cheap; the log and the artifact hear of it at most every `every_s` seconds.

    Attributes:
        total: images this run has to do.
        log: the run's logger.
    """

    total: int
    done_before: int
    log: Callable[[str], None]
    every_s: float = 15.0
    images: int = 0
    masks: int = 0
    errors: int = 0
    _began: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)
    _artifact: UUID | None = None

    def __post_init__(self) -> None:
        if listener := _listener.get():
            listener.start(self.total, self.done_before)

    @property
    def images_per_second(self) -> float:
        """Since the run began; 0 before the first image."""
        return self.images / max(self.seconds, 1e-9) if self.images else 0.0

    @property
    def seconds(self) -> float:
        """Since the run knew what it has to do, by the clock."""
        return time.monotonic() - self._began

    def advance(self, images: int = 0, masks: int = 0, errors: int = 0) -> None:
        """Count, and tell whoever listens."""
        self.images, self.masks, self.errors = self.images + images, self.masks + masks, self.errors + errors
        if listener := _listener.get():
            listener.advance(images, masks, errors)
        elif time.monotonic() - self._told >= self.every_s:
            self._told = time.monotonic()
            rate = self.images_per_second
            left = (self.total - self.images) / rate if rate else float("inf")
            self.log(
                f"{self.images}/{self.total} images, {self.masks} masks, {self.errors} errors, {rate:.2f} images/s, {left / 60:.0f} min left"
            )

    def publish(self) -> None:
        """Create or update the Prefect progress artifact (call it once a shard: it costs a request)."""
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share = 100.0 * self.images / self.total if self.total else 100.0
        if self._artifact is None:
            self._artifact = create_progress_artifact(
                share, key="pseudolabel-progress", description="Images labelled"
            )  # type: ignore[assignment]
        else:
            update_progress_artifact(self._artifact, share)
