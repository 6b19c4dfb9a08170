"""Bytes from any store into a growing file: ranges, broken connections, and the stores' errors as ours."""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError, GapmapError, TransientError

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes there so far and the bytes there will be, if that is known."""

_CHUNK_BYTES = 1 << 20
_TRIES = 3  # without a byte gained between them
_TIMEOUT_S = 30


class _NothingLeftError(GapmapError):
    """The server has no bytes after those asked for."""


def receive(url: str, part: Path, size_bytes: int | None, progress: Progress | None) -> None:
    """Bring `part` to its full size, going on where it ends and trying again while bytes come.

    Raises:
        ConfigError: there is no such file, access is refused, or the disk has too little room.
        TransientError: several tries in a row brought nothing.
    """
    idle = 0
    while True:
        before = _size(part)
        if size_bytes is not None and before >= size_bytes:
            return
        try:
            with store_errors(url):
                return _stream(url, part, size_bytes, progress)
        except _NothingLeftError:
            part.unlink()  # as long as the file, or longer, and nobody knows which
        except TransientError:
            idle = 0 if _size(part) > before else idle + 1
            if idle == _TRIES:
                raise
            time.sleep(0.25 * 2**idle)


def _stream(url: str, part: Path, size_bytes: int | None, progress: Progress | None) -> None:
    start = _size(part)
    with contextlib.ExitStack() as stack:
        source: Any
        if is_http(url):
            source = stack.enter_context(open_http(url, start))
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
        raise TransientError(f"{public(url)} broke off after {done} of {total} bytes.")


def open_http(url: str, start: int, last: int | None = None) -> Any:
    """The response to a request for the bytes from `start` to `last` (inclusive; None: all that are left)."""
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
def store_errors(url: str) -> Iterator[None]:
    """Errors of any store as ours. Theirs may quote the URL with its secrets, so they are not kept."""
    address = public(url)
    try:
        yield
    except GapmapError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NothingLeftError from None
        if error.code in (408, 425, 429) or error.code >= 500:
            raise TransientError(f"{address} answered {error.code} {error.reason}.") from None
        raise ConfigError(f"{address} answered {error.code} {error.reason}. Is the address right?") from None
    except (FileNotFoundError, PermissionError) as error:
        reason = "There is no" if isinstance(error, FileNotFoundError) else "No permission to read the"
        raise ConfigError(f"{reason} checkpoint at {address}.") from None
    except ImportError as error:
        raise ConfigError(f"{address} cannot be opened: {error}") from None
    except (ValueError, http.client.InvalidURL):
        raise ConfigError(f"{address} is no address that can be opened. Is it spelt right?") from None
    except OSError as error:
        if error.errno is not None and _is_full_or_read_only(error):
            raise
        reason = str(getattr(error, "reason", "") or type(error).__name__)
        raise TransientError(f"{address} cannot be reached ({reason}). Is this machine on line?") from None
    except Exception as error:
        raise TransientError(f"{address} cannot be read now ({type(error).__name__}).") from None


def _is_full_or_read_only(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _check_space(part: Path, start: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - start:
        raise ConfigError(
            f"{part.parent} has {free >> 20} MiB free, and {(total - start) >> 20} MiB are to come. "
            "Make room, or set GAPMAP_CACHE to a folder elsewhere."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_http(url: str) -> bool:
    """Whether the address is fetched without fsspec."""
    return url.startswith(("http://", "https://"))


def public(url: str) -> str:
    """The address as it may be shown: without credentials."""
    from engine.pool.address import without_credentials  # the registry is listed without numpy

    return without_credentials(url)
