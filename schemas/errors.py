"""What can go wrong, by what one does about it: try again, mend the setting, or record and go on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GapmapError(Exception):
    """Base of every error gapmap raises on purpose. Its message says what to do."""


class ConfigError(GapmapError):
    """A setting, name or address that cannot work. Trying again does not help."""


class TransientError(GapmapError):
    """The network, the store or the device failed in passing. Trying again may help."""


class ImageError(GapmapError):
    """One image cannot be used. The run records it as a row and goes on.

    Attributes:
        kind: short stable reason for SQL: `empty`, `unreadable`, `truncated`, `too_large`,
            `unsupported`, `missing` or `unreachable` (the storage kept failing for this one file).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(GapmapError):
    """A checkpoint is missing, damaged, or does not fit the architecture."""


class QueryError(GapmapError):
    """A user's SQL is wrong, or reaches for something outside the store."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """End of an error sentence for a failed look-up: the nearest known name, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
