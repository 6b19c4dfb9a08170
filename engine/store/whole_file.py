"""Files that are seen whole or not at all, whatever is killed when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path`, of the same kind (PNG if it names none), that takes its place when all went well."""
    part = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix or '.png'}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
