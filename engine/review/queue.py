"""The queue that people answer: what a push and a pull need of it, whether a server is behind it or a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from engine.models.cache import lock_path
from engine.review.items import ReviewItem
from engine.review.label_studio_json import Shown


@dataclass(frozen=True)
class AnsweredTask:
    """A task that was touched since the last pull, with all of its answers.

    Attributes:
        task_id: the queue's own name.
        item_key: ours.
        changed_at: when the task was last changed, UTC.
        annotations: Label Studio's JSON of each answer that there is now; skipped ones have `was_cancelled`.
        shown: what the task says that people saw; None where it does not say so.
    """

    task_id: str
    item_key: str
    changed_at: datetime
    annotations: Sequence[dict[str, Any]]
    shown: Shown | None = None


class ReviewQueue(Protocol):
    """Where people answer. `name` tells it from every other, and holds no secret; `address` is where people go."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """Of these items, those that are in the queue: their task ids by item_key."""
        ...

    def send(
        self,
        items: Sequence[ReviewItem],
        sent: Callable[[dict[str, str]], None],
        left_out: Callable[[ReviewItem, str], None],
        answered: Collection[str],
    ) -> None:
        """Add items that are not there yet.

        Args:
            items: those of the highest priority first.
            sent: called with task ids by item_key as soon as some are in the queue.
            left_out: called with an item that cannot be shown (its image is gone, say), and why.
            answered: keys of items that people have answered: a queue that hands on what waits leaves them out.
        """
        ...

    def update(self, task_id: str, item: ReviewItem) -> bool:
        """Let a task that nobody has answered show other masks.

        Returns:
            Whether it does; one that people have answered or begun to, whether that was pulled or not, is left as it is.

        Raises:
            ImageError: it cannot be shown.
        """
        ...

    def answers(self, since: datetime | None, known: frozenset[str]) -> Iterator[list[AnsweredTask]]:
        """Tasks that were changed at or after a time, the earliest changed first, some at a time.

        More may be given; those that changed while it was asked may be left to the next time.

        Args:
            since: None for all.
            known: task ids that had answers before; they are told also where they have none any more.
        """
        ...


@contextmanager
def hold_queue(queue: ReviewQueue) -> Iterator[None]:
    """While in this context, no other process of this machine sends to a queue: it would send what this one has planned, too.

    Waits for one that does; a killed one lets go.
    """
    from filelock import FileLock

    with FileLock(lock_path("queue", queue.name)):
        yield
