"""What a page is about: a round with its steps and models, or, where there is none yet, the newest model of a store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from engine.store.snapshot import Snapshot

_ALWAYS, _NEVER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
_ROUNDS = "SELECT round_id, min(began_at) AS began FROM rounds GROUP BY round_id ORDER BY round_id DESC"
_STEPS = """
    SELECT step, model, outcome, numbers, began_at, ended_at, epoch(ended_at - began_at) AS seconds FROM rounds
    WHERE round_id = $round_id
    QUALIFY row_number() OVER (PARTITION BY step ORDER BY ended_at DESC) = 1 ORDER BY began_at, ended_at
"""
_NEWEST = "SELECT model FROM images GROUP BY model ORDER BY max(committed_at) DESC LIMIT 1"
_PARENT = """
    SELECT parent FROM models WHERE model = $model AND parent IN (SELECT DISTINCT model FROM masks)
"""
_CHILD = """
    SELECT model FROM models WHERE parent = $model AND created_at >= $began AND created_at < $until
    ORDER BY created_at DESC LIMIT 1
"""


@dataclass(frozen=True)
class RoundStep:
    """One step of a round that ended.

    Attributes:
        name: `pseudolabel`, `triage` …
        model: it worked with, name@version.
        outcome: done, or skipped.
        numbers: what it came to.
        seconds: from its beginning to its end.
    """

    name: str
    model: str
    outcome: str
    numbers: dict[str, Any]
    began: datetime
    ended: datetime
    seconds: float


@dataclass(frozen=True)
class RoundScope:
    """Which rows a page tells of.

    Attributes:
        round_id: None where the store has no round yet.
        model: whose masks were labelled and decided on, name@version.
        compared: the models whose calibration is shown: before, and after where there is one.
        began: rows of the round were written from then on; the beginning of time without a round.
        until: and before the next round began; the end of time where there is none.
        steps: in the order in which they began.
    """

    round_id: str | None
    model: str
    compared: tuple[str, ...]
    began: datetime
    until: datetime
    steps: tuple[RoundStep, ...]

    @property
    def name(self) -> str:
        """What all versions of the model are called."""
        return self.model.partition("@")[0]

    def step(self, name: str) -> RoundStep | None:
        """The step of this name, if it ended."""
        return next((step for step in self.steps if step.name == name), None)


def find_scope(snapshot: Snapshot, round_id: str | None = None) -> RoundScope:
    """The round that is asked for, else the newest, else the newest model.

    Raises:
        ConfigError: there is no such round, or the store has neither rounds nor images.
    """
    rounds = snapshot.rows(_ROUNDS, {})
    if round_id is None and not rounds:
        return _scope_of_newest_model(snapshot)
    known = [str(row["round_id"]) for row in rounds]
    if round_id is None:
        round_id = known[0]
    elif round_id not in known:
        hint = nearest_name(round_id, known) if known else "The store has no rounds yet."
        raise ConfigError(f"There is no round {round_id!r}. {hint}")
    place = known.index(round_id)
    began, until = rounds[place]["began"], rounds[place - 1]["began"] if place else _NEVER
    steps = tuple(_read_step(row) for row in snapshot.rows(_STEPS, {"round_id": round_id}))
    first = next((step for step in steps if step.name == "pseudolabel"), steps[0])
    others = [step.model for step in reversed(steps) if step.model != first.model]
    children = snapshot.rows(_CHILD, {"model": first.model, "began": began, "until": until})
    after = [*others, *(str(row["model"]) for row in children)][:1]
    return RoundScope(round_id, first.model, (first.model, *after), began, until, steps)


def _scope_of_newest_model(snapshot: Snapshot) -> RoundScope:
    found = snapshot.rows(_NEWEST, {})
    if not found:
        raise ConfigError(
            "The store has no images and no rounds: there is nothing to report. Label a pool: gapmap label POOL --store …"
        )
    model = str(found[0]["model"])
    before = [str(row["parent"]) for row in snapshot.rows(_PARENT, {"model": model})]
    return RoundScope(None, model, (*before, model), _ALWAYS, _NEVER, ())


def _read_step(row: dict[str, Any]) -> RoundStep:
    numbers = json.loads(row["numbers"])
    if not isinstance(numbers, dict):
        numbers = {"": numbers}
    times = row["began_at"], row["ended_at"], row["seconds"]
    return RoundStep(row["step"], row["model"], row["outcome"], numbers, *times)
