"""Weights on this machine: fetched once, whole, checked, and found again.

A file appears in the cache under its name only when it is complete and right. Until then it is a
`.part` beside it, which the next attempt (after a lost connection or a killed process) goes on with.
One process fetches, others that want the same file wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.models.cache import cache_dir, compute_sha256, file_sha256
from engine.models.transfer import Progress, is_http, open_http, public, receive, store_errors
from schemas.errors import CheckpointError, ConfigError, TransientError

_LOG = logging.getLogger(__name__)


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
                try:
                    receive(url, part, size_bytes, progress)
                except TransientError as error:
                    raise TransientError(f"{error} {_by_hand(target)}") from None
                fault = _fault(part, size_bytes, sha256, compute_sha256)
                if fault is None:
                    part.replace(target)
                    return target
                _LOG.warning("What came from %s is not the file (%s).", public(url), fault)
                part.unlink()
    raise CheckpointError(
        f"{public(url)} gave, twice, something else than the published file ({fault}). "
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
    with store_errors(address):
        if is_http(address):
            with open_http(address, 0, last=0) as response:
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
    key = hashlib.sha256(json.dumps([public(address), *facts]).encode()).hexdigest()[:16]
    return fetch(address, cache_dir() / "remote" / key / name, progress=progress)


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on standard error with size, speed and time left; it shows when the first bytes come."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
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


def _fault(
    path: Path, size_bytes: int | None, sha256: str | None, digest: Callable[[Path], str] = file_sha256
) -> str | None:
    """What is wrong with a file, or None."""
    if size_bytes is not None and path.stat().st_size != size_bytes:
        return f"{path.stat().st_size} bytes instead of {size_bytes}"
    if sha256 is not None and (found := digest(path)) != sha256:
        return f"SHA-256 {found[:12]}… instead of {sha256[:12]}…"
    return None


def _by_hand(target: Path) -> str:
    return f"You can also fetch it by hand and put it at {target}."
