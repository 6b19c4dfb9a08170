"""Figures of a round in words, and what it cost a mask."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from engine.report.round_data import RoundData

NOTHING = "–"


def count_things(count: int, thing: str) -> str:
    """Such as "1 image", "1,200 images"."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def machine_seconds(data: RoundData) -> float | None:
    """What the steps of a round took together; None without a round."""
    return sum(step.seconds for step in data.scope.steps) if data.scope.steps else None


def seconds_per_mask(data: RoundData) -> dict[str, float] | None:
    """Seconds of people and of machines for each mask that may be learnt from now: accepted, or answered in the round.

    None where there is no such mask.
    """
    masks = data.accepted + data.people["masks"]
    if not masks:
        return None
    people, machine = data.people["seconds"] or 0.0, machine_seconds(data) or 0.0
    return {"masks": masks, "people": people / masks, "machine": machine / masks}


def _tell_seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    size = abs(value)
    if not size:
        return "0 s"
    if size < 10:
        return f"{value:.2f} s"
    if size < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if size < 7200 else f"{value / 3600:.1f} h"


def _tell_number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _tell_change(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _tell_points(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _tell_share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"


def _tell_time(value: datetime | None) -> str:
    return NOTHING if value is None else f"{value:%Y-%m-%d %H:%M} UTC"


def _tell_any(value: Any) -> str:
    """A value of a step's JSON, whatever it is."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_tell_any(of)}" for key, of in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return f"{len(value)} entries" if len(value) > 4 else ", ".join(_tell_any(of) for of in value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


FILTERS: dict[str, Callable[..., str]] = {
    "count": lambda value: f"{value:,}",
    "number": _tell_number,
    "change": _tell_change,
    "points": _tell_points,
    "share": _tell_share,
    "time": _tell_time,
    "duration": _tell_seconds,
    "told": _tell_any,
}
"""What the page's template writes figures with."""
