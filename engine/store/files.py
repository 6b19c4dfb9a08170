"""The files of a store on any fsspec filesystem: list, read, publish whole or not at all, remove."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas.errors import ConfigError, GapmapError, TransientError

from .disk import publish_file
from .layout import attempt_of, parse_path

# On these a PUT shows the whole object or nothing. Elsewhere a file grows in sight of readers, and
# is written under another name and moved.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "memory"}
_ONE_PUT = 32 * 2**20
_PASSING = {
    "ECONNRESET",
    "ECONNREFUSED",
    "ECONNABORTED",
    "EPIPE",
    "ETIMEDOUT",
    "EAGAIN",
    "EBUSY",
    "EIO",
    "ESTALE",
}
_CONNECTION_PART = re.compile(r"(?:key|signature|password)=([^;]+)", re.IGNORECASE)


@dataclass(frozen=True)
class StoredFile:
    """One file of a table. `path` is what fsspec wants; `changed` is None where the store does not tell."""

    path: str
    model: str
    name: str
    attempt: str
    size: int
    changed: datetime | None


class StoreFiles:
    """Filesystem and root of a store, or of another place that files are shown in whole: `what` it is called in errors.

    Raises ConfigError for an address that cannot work.
    """

    def __init__(
        self, root: str, storage_options: Mapping[str, Any] | None = None, what: str = "store"
    ) -> None:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        from engine.pool.address import parse_address  # the base is imported without numpy

        self._options, self._what = dict(storage_options or {}), what
        self.label = self.redact(str(root))
        if not str(root).strip():
            raise ConfigError(
                "A store needs an address: a folder, or an fsspec URL such as s3://bucket/masks."
            )
        with self.translated():
            try:
                parse_address(str(root))
                # Listings that are kept would hide what other writers have committed since.
                fs, path = fsspec.core.url_to_fs(str(root), **{"use_listings_cache": False, **self._options})
            except (ConfigError, ImportError, ValueError, TypeError) as error:
                raise ConfigError(
                    f"Cannot open the {self._what} {self.label}: {self.redact(str(error))}"
                ) from None
        self.fs = fs
        self._server = type(fs)._get_kwargs_from_urls(str(root))  # host or account, where the URL names one
        self.root = path.rstrip("/")
        self.is_local = isinstance(fs, LocalFileSystem)
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._puts_are_atomic = bool(protocols & _OBJECT_STORES)
        if not self.is_local and set(path) & set("*?[]"):
            raise ConfigError(
                f"The address of a {self._what} cannot contain * ? [ ]: {self.label}"
            )  # fsspec would glob it
        if self.is_local and not Path(path).is_absolute():
            self.root = str(Path(path).absolute())

    @property
    def place(self) -> str:
        """The same however the address is spelt, and for no other place. Not to be shown: a user's name may be in it."""
        if self.is_local:
            return str(Path(self.root).resolve())
        return f"{self.fs.unstrip_protocol(self.root)} {self._server}"

    def url(self, path: str) -> str:
        """The address DuckDB opens a file by: a plain path on the local disk, else a URL."""
        return path if self.is_local else self.fs.unstrip_protocol(path)

    def list_table(self, table: str) -> list[StoredFile]:
        """Every file of a table that carries an attempt's name, whatever its suffix."""
        with self.translated():
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(f"{self.root}/{table}", detail=True)
            except FileNotFoundError:
                if self._puts_are_atomic:
                    raise  # an empty prefix is no error there: the bucket is missing
                return []
        files = []
        for path, info in found.items():
            parsed = parse_path(path)
            attempt = attempt_of(parsed[1]) if parsed else None
            if parsed and attempt:
                files.append(StoredFile(path, *parsed, attempt, int(info.get("size") or 0), _changed(info)))
        return files

    def read_bytes(self, path: str) -> bytes | None:
        """Contents of a small file, or None if it is gone."""
        with self.translated():
            try:
                return self.fs.cat_file(path)
            except FileNotFoundError:
                return None

    def publish(self, path: str, write: Callable[[Path], None]) -> None:
        """Let `write` fill a temporary file, then show it at `path` in one step."""
        if self.is_local:
            with self.translated():
                publish_file(Path(path), write)
            return
        with tempfile.TemporaryDirectory(prefix="gapmap-") as folder, self.translated():
            local = Path(folder) / "file"
            write(local)
            self._upload(local, path)

    def _upload(self, local: Path, path: str) -> None:
        atomic = self._puts_are_atomic
        target = path if atomic else f"{path}.{uuid4().hex[:8]}.tmp"
        if not atomic:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if local.stat().st_size <= _ONE_PUT:
            self.fs.pipe_file(target, local.read_bytes())
        else:
            self.fs.put_file(str(local), target)
        if not atomic:
            self.fs.mv(target, path)

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files; one that is gone already is no error."""
        with self.translated():
            for start in range(0, len(paths), 1000):
                chunk = list(paths[start : start + 1000])
                try:
                    self.fs.rm(chunk)
                except FileNotFoundError:
                    for path in chunk:
                        if self.fs.exists(path):
                            self.fs.rm(path)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn filesystem errors into TransientError or ConfigError, without any secret in them."""
        try:
            yield
        except GapmapError:
            raise
        except Exception as error:
            better = self.explain(error)
            if better is None:
                raise
            # A text that held a secret must not be shown as the cause either.
            raise better from (error if self.redact(str(error)) == str(error) else None)

    def explain(self, error: Exception) -> GapmapError | None:
        """The gapmap error that says what a filesystem error means; None if it is not one."""
        text = f"{type(error).__name__}: {self.redact(str(error))}"
        name = type(error).__name__
        if isinstance(error, FileNotFoundError):
            return ConfigError(
                f"Not found in the {self._what} {self.label}. Check that the address and the bucket exist. {text}"
            )
        if isinstance(error, PermissionError) or "Credential" in name or "TokenRetrieval" in name:
            return ConfigError(
                f"The {self._what} {self.label} refused access. Check the credentials and its permissions. {text}"
            )
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            return ConfigError(
                f"Cannot write to the {self._what} {self.label}. Free space, or choose a place that can be written. {text}"
            )
        passing = isinstance(error, (ConnectionError, TimeoutError)) or any(
            part in name
            for part in ("Timeout", "Connection", "ClientOS", "ServerDisconnected", "HTTPClientError")
        )
        if passing or (isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _PASSING):
            return TransientError(
                f"The {self._what} {self.label} did not answer as it should; try again. {text}"
            )
        if isinstance(error, OSError) or type(error).__module__.startswith(
            ("botocore", "aiobotocore", "aiohttp")
        ):
            return ConfigError(f"The {self._what} {self.label} cannot be used. {text}")
        return None

    def redact(self, text: str) -> str:
        """Text without the storage options' secrets and without credentials in URLs."""
        from engine.pool.address import redact

        for secret in sorted(_secrets(self._options), key=len, reverse=True):
            text = text.replace(secret, "***")
        return redact(text)


def _secrets(options: Mapping[Any, Any]) -> Iterator[str]:
    """Every text in the options but addresses; of a connection string its parts, too."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, list | tuple):
            yield from _secrets(dict(enumerate(value)))
        elif isinstance(value, str) and not str(name).lower().endswith(("url", "endpoint", "host")):
            yield from (part for part in (value, *_CONNECTION_PART.findall(value)) if len(part) >= 4)


def _changed(info: Mapping[str, Any]) -> datetime | None:
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = info.get(key)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None
