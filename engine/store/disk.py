"""Files of a local disk that are shown whole, and are there after a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

# Some network filesystems cannot write a folder through, and one that may not be listed cannot be opened.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}


def publish_file(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then show it at `target` in one step; once this returns, a power cut takes neither the
    bytes nor the name. Missing folders are made."""
    _make_folder(target.parent)
    # The suffix keeps it out of *.parquet; the attempt in front lets a sweep tell its age.
    temporary = target.with_name(f"{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        _sync(temporary)  # before the name: a power cut must not leave a named, empty file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Not every filesystem keeps the order of renames: what names this file must not outlive it.
    _sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    missing = [of for of in (folder, *folder.parents) if not of.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
