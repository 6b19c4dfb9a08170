"""Weights on this machine: fetched once, whole, checked, and found again.

A file appears in the cache under its name only when it is complete and right. Until then it is a
`.part` beside it, which the next attempt (after a lost connection or a killed process) goes on with.
One process fetches, others that want the same file wait for it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.models.cache import cache_dir, compute_sha256, file_sha256
from schemas.errors import CheckpointError, ConfigError, GapmapError, TransientError

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes there so far and the bytes there will be, if that is known."""

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_TRIES = 3  # without a byte gained between them
_TIMEOUT_S = 30


class _NothingLeftError(GapmapError):
    """The server has no bytes after those asked for."""


def fetch(
    url: str,
    target: Path,
    *,
    size_bytes: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make sure that `target` is the file at `url`, fetching what is missing of it.

    A file that is there and right is not fetched again; one that is damaged is fetched anew, once.

    Args:
        url: http(s) or any fsspec URL.
        target: where the file shall be; its folder is made.
        size_bytes: published size, or None.
        sha256: published SHA-256, hex, or None.
        progress: told how far it is, several times a second.

    Raises:
        ConfigError: there is no such file, access is refused, or the disk is full or read-only.
        TransientError: the address cannot be reached now.
        CheckpointError: what arrives is, twice, not what was published.
    """
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if target.exists():
                fault = _fault(target, size_bytes, sha256)
                if fault is None:
                    return target
                _LOG.warning("%s is damaged (%s) and is fetched again.", target, fault)
                target.unlink()
            part = target.with_name(target.name + ".part")
            for _ in range(2):
                _receive(url, part, target, size_bytes, progress)
                fault = _fault(part, size_bytes, sha256, compute_sha256)
                if fault is None:
                    part.replace(target)
                    return target
                _LOG.warning("What came from %s is not the file (%s).", _public(url), fault)
                part.unlink()
    raise CheckpointError(
        f"{_public(url)} gave, twice, something else than the published file ({fault}). "
        f"Something on the way may alter it. {_by_hand(target)}"
    )


def local_copy(address: str, *, progress: Progress | None = None) -> Path:
    """The local file of a path or fsspec URL; a remote one is fetched into the cache.

    A remote file that changed (by size, ETag or time) is fetched anew, beside its older copy.

    Raises:
        CheckpointError: there is no such local file.
        ConfigError, TransientError: as `fetch`.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    from engine.pool.address import last_name

    if "://" not in address:
        path = Path(address).expanduser()
        if not path.is_file():
            raise CheckpointError(f"There is no checkpoint at {path}.")
        return path
    with _store_errors(address):
        if _is_http(address):
            with _open_http(address, 0, last=0) as response:
                headers = response.headers
                facts = [headers.get(key) for key in ("ETag", "Last-Modified", "Content-Range")]
            facts.append(headers.get("Content-Length"))
            name = last_name(address)
        else:
            filesystem, path_there = fsspec.core.url_to_fs(address)
            if isinstance(filesystem, LocalFileSystem):
                return local_copy(path_there)
            info = filesystem.info(path_there)
            facts = [str(info.get(key)) for key in ("size", "ETag", "LastModified", "mtime", "created")]
            name = path_there.rpartition("/")[2]
    key = hashlib.sha256(json.dumps([_public(address), *facts]).encode()).hexdigest()[:16]
    return fetch(address, cache_dir() / "remote" / key / name, progress=progress)


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on standard error with size, speed and time left; it shows when the first bytes come."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as stack:
        shown: list[tuple[bars.Progress, bars.TaskID]] = []

        def report(done: int, total: int | None) -> None:
            if not shown:
                bar = stack.enter_context(bars.Progress(*columns, console=Console(stderr=True)))
                shown.append((bar, bar.add_task(label, total=total)))
            bar, task = shown[0]
            bar.update(task, completed=done, total=total)

        yield report


def _receive(url: str, part: Path, target: Path, size_bytes: int | None, progress: Progress | None) -> None:
    """Bring `part` to its full size, going on where it ends and trying again while bytes come."""
    idle = 0
    while True:
        before = _size(part)
        if size_bytes is not None and before >= size_bytes:
            return
        try:
            with _store_errors(url):
                return _stream(url, part, size_bytes, progress)
        except _NothingLeftError:
            part.unlink()  # as long as the file, or longer, and nobody knows which
        except TransientError as error:
            idle = 0 if _size(part) > before else idle + 1
            if idle == _TRIES:
                raise TransientError(f"{error} {_by_hand(target)}") from None
            time.sleep(0.25 * 2**idle)


def _stream(url: str, part: Path, size_bytes: int | None, progress: Progress | None) -> None:
    start = _size(part)
    with contextlib.ExitStack() as stack:
        source: Any
        if _is_http(url):
            source = stack.enter_context(_open_http(url, start))
            length = source.headers.get("Content-Length")
            if source.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0  # a server that knows no ranges sends it all again
            total = size_bytes or (start + int(length) if length else None)
        else:
            import fsspec

            source = stack.enter_context(fsspec.open(url, "rb"))
            total = size_bytes or getattr(source, "size", None)
            source.seek(start)
        _check_space(part, start, total)
        file = stack.enter_context(part.open("r+b" if start else "wb"))
        file.seek(start)
        done = start
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise TransientError(f"{_public(url)} broke off after {done} of {total} bytes.")


def _open_http(url: str, start: int, last: int | None = None) -> Any:
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"User-Agent": "gapmap"})
    if login:
        secret = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    if start or last is not None:
        request.add_header("Range", f"bytes={start}-{'' if last is None else last}")
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


@contextlib.contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Errors of any store as ours. Theirs may quote the URL with its secrets, so they are not kept."""
    public = _public(url)
    try:
        yield
    except GapmapError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NothingLeftError from None
        if error.code in (408, 425, 429) or error.code >= 500:
            raise TransientError(f"{public} answered {error.code} {error.reason}.") from None
        raise ConfigError(f"{public} answered {error.code} {error.reason}. Is the address right?") from None
    except (FileNotFoundError, PermissionError) as error:
        reason = "There is no" if isinstance(error, FileNotFoundError) else "No permission to read the"
        raise ConfigError(f"{reason} checkpoint at {public}.") from None
    except ImportError as error:
        raise ConfigError(f"{public} cannot be opened: {error}") from None
    except (ValueError, http.client.InvalidURL):
        raise ConfigError(f"{public} is no address that can be opened. Is it spelt right?") from None
    except OSError as error:
        if error.errno is not None and _is_full_or_read_only(error):
            raise
        reason = str(getattr(error, "reason", "") or type(error).__name__)
        raise TransientError(f"{public} cannot be reached ({reason}). Is this machine on line?") from None
    except Exception as error:
        raise TransientError(f"{public} cannot be read now ({type(error).__name__}).") from None


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        _LOG.warning("Another process is fetching %s; waiting for it.", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{target.parent} cannot be written ({error.strerror}). Set GAPMAP_CACHE to a folder that can."
        ) from error


def _is_full_or_read_only(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _check_space(part: Path, start: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - start:
        raise ConfigError(
            f"{part.parent} has {free >> 20} MiB free, and {(total - start) >> 20} MiB are to come. "
            "Make room, or set GAPMAP_CACHE to a folder elsewhere."
        )


def _fault(
    path: Path, size_bytes: int | None, sha256: str | None, digest: Callable[[Path], str] = file_sha256
) -> str | None:
    """What is wrong with a file, or None."""
    if size_bytes is not None and path.stat().st_size != size_bytes:
        return f"{path.stat().st_size} bytes instead of {size_bytes}"
    if sha256 is not None and (found := digest(path)) != sha256:
        return f"SHA-256 {found[:12]}… instead of {sha256[:12]}…"
    return None


def _public(url: str) -> str:
    from engine.pool.address import without_credentials

    return without_credentials(url)


def _by_hand(target: Path) -> str:
    return f"You can also fetch it by hand and put it at {target}."


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))
