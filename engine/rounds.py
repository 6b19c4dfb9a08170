"""The journal of a store's rounds: which step ended with what, so that a round that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engine.store.layout import new_attempt

if TYPE_CHECKING:
    from engine.store import Store

LAST_STEP = "report"
_NEWEST = "FROM rounds WHERE round_id = (SELECT max(round_id) FROM rounds) ORDER BY ended_at"


class RoundJournal:
    """The newest round of a store that has not ended, or a new one.

    Attributes:
        round_id: of the round.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        rows = store.read(lambda snapshot: snapshot.rows(_NEWEST, {}))
        ended = any(row["step"] == LAST_STEP for row in rows)
        self.round_id = new_attempt() if ended or not rows else str(rows[0]["round_id"])
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
        """
        if (known := self.numbers(step)) is not None:
            return known
        began = datetime.now(UTC)
        numbers = dict(work())
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
