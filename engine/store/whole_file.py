"""Files that are seen whole or not at all, whatever is killed when."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas.errors import ConfigError

from .files import StoreFiles


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path`, of the same kind (PNG if it names none), that takes its place when all went well."""
    part = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix or '.png'}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raise ConfigError where a file at this path cannot be written: it is a folder, or there is none for it."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name a file in it, such as {path / 'out'}{path.suffix}.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(
            f"There is no folder {path.absolute().parent} that can be written to. Make it, or name another."
        )


def locate_file(address: str, storage_options: Mapping[str, Any] | None = None) -> tuple[StoreFiles, str]:
    """The folder of a file that is to be written, and the file's path as `publish` takes it.

    Raises:
        ConfigError: the address cannot work, it is a folder, or there is no folder for the file.
    """
    parent, slash, name = address.rpartition("/")
    if not name:
        raise ConfigError(f"{address or 'The empty address'} is a folder. Name a file in it.")
    folder = StoreFiles(parent + slash or ".", storage_options, "folder")
    path = f"{folder.root}/{name}"
    if folder.is_local:
        check_folder(Path(path))
    return folder, path
