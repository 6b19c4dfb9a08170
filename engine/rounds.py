"""The journal of a store's rounds: which step ended with what, so that a round that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engine.models.cache import lock_path
from engine.store.layout import new_attempt
from schemas.errors import TransientError

if TYPE_CHECKING:
    from engine.store import Store

LAST_STEP = "report"
_NEWEST = "FROM rounds WHERE round_id = (SELECT max(round_id) FROM rounds) ORDER BY ended_at"


class RoundJournal:
    """The newest round of a store that has not ended, or a new one.

    Attributes:
        round_id: of the round; sorts behind those of all rounds before, whatever the clock says.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        rows = self._read()
        newest = str(rows[0]["round_id"]) if rows else None
        ended = any(row["step"] == LAST_STEP for row in rows)
        self.round_id = newest if newest and not ended else new_attempt(after=newest)
        self._numbers = {} if ended else {row["step"]: json.loads(row["numbers"]) for row in rows}

    def numbers(self, step: str) -> dict[str, Any] | None:
        """What a step of this round came to; None while it has not ended."""
        return self._numbers.get(step)

    def run(self, step: str, model: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a step comes to: as it is written down, or else after doing it.

        Args:
            step: its name.
            model: that it works with, name@version; what `work` says as `model` goes before.
            work: does it, and returns its numbers (JSON); with `skipped`, a reason, where there was nothing to do.

        Raises:
            TransientError: a run of another machine has gone on with the round meanwhile.
        """
        if (known := self.numbers(step)) is not None:
            return known
        began = datetime.now(UTC)
        numbers = dict(work())
        # `hold_round` keeps out the runs of one machine only.
        if any(row["round_id"] > self.round_id or self._has(row, step) for row in self._read()):
            raise TransientError(
                f"Another run of {self._store.files.label} has done the step {step} of its round meanwhile. Run it again."
            )
        self._store.append(
            "rounds",
            [
                {
                    "round_id": self.round_id,
                    "step": step,
                    "model": numbers.get("model") or model,
                    "outcome": "skipped" if "skipped" in numbers else "done",
                    "numbers": json.dumps(numbers, sort_keys=True),
                    "began_at": began,
                    "ended_at": datetime.now(UTC),
                }
            ],
        )
        self._numbers[step] = numbers
        return numbers

    def _read(self) -> list[dict[str, Any]]:
        return self._store.read(lambda snapshot: snapshot.rows(_NEWEST, {}))

    def _has(self, row: Mapping[str, Any], step: str) -> bool:
        return bool(row["round_id"] == self.round_id and row["step"] == step)


@contextmanager
def hold_round(store: Store) -> Iterator[None]:
    """While in this context, no other run of this machine goes on with a round of the store; a killed one lets go.

    Raises:
        TransientError: one does.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path("round", store.files.place))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TransientError(
            f"Another run is at work on the round of {store.files.label}. Run it again when that one has ended."
        ) from None
    try:
        yield
    finally:
        lock.release()
