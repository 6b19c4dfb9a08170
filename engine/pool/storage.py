"""Opening filesystems, and telling apart what their errors mean."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

from fsspec import AbstractFileSystem, available_protocols, get_filesystem_class
from fsspec.core import url_to_fs
from fsspec.utils import tokenize

from engine.pool.address import ARCHIVES, Address, redact

Options = Mapping[str, Any] | None
Verdict = Literal["missing", "denied", "identity", "transient", "broken"]

_TRANSIENT_ERRNO = {
    errno.EAGAIN, errno.EBUSY, errno.EHOSTUNREACH, errno.EMFILE, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EBUSY),
}  # fmt: skip
# S3 answers that speak of who asks, not of the object asked for: every other object would fail alike.
_IDENTITY_CODES = {
    "AccountProblem", "ExpiredToken", "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "NotSignedUp",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip

_archives: dict[str, AbstractFileSystem] = {}
_archives_lock = threading.Lock()
_archives_reading = threading.Lock()


def open_filesystem(address: Address, options: Options = None, *, fresh: bool = False) -> AbstractFileSystem:
    """The filesystem of an address.

    Args:
        options: fsspec storage options, for the storage itself (for `zip://…::s3://…` that is S3),
            or nested by protocol: `{"s3": {"anon": True}, "https": {…}}`.
        fresh: read an archive's table of contents again instead of keeping the one in memory.

    Raises:
        Exception: whatever the storage raises when an archive cannot be opened; see `judge_error`.
    """
    if address.protocol in ARCHIVES:
        return _open_archive(address, options, fresh)
    cls = get_filesystem_class(address.protocol)
    from_url = cls._get_kwargs_from_urls(address.url)
    filesystem: AbstractFileSystem = cls(**{**from_url, **_options_for(address.protocol, options)})
    return filesystem


@contextlib.contextmanager
def open_stream(filesystem: AbstractFileSystem, address: Address) -> Iterator[IO[bytes]]:
    """Open for reading from front to back, from any thread."""
    # Told a size, fsspec's http does not ask for it first: one request instead of two, and the
    # server's own status instead of "not found" for whatever went wrong with the first.
    told = {"size": 1, "block_size": 0} if address.is_http else {}
    # The members of a tar share one file position; zip has a lock of its own.
    turns = _archives_reading if address.protocol in ARCHIVES[1:] else contextlib.nullcontext()
    with turns, filesystem.open(address.path, "rb", **told) as stream:
        yield stream


def judge_error(error: BaseException, *, local: bool) -> Verdict:
    """What a storage's exception means: about the file, about who asks, or in passing."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        if status in (404, 410):
            return "missing"
        if status in (401, 407):
            return "identity"
        if status == 403:
            return "denied"
        return "transient" if status in (408, 425, 429) or status >= 500 else "broken"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, PermissionError):
        return "identity" if _s3_code(error) in _IDENTITY_CODES else "denied"
    if isinstance(error, TimeoutError | ConnectionError):
        return "transient"
    module, name = type(error).__module__.partition(".")[0], type(error).__name__
    if module in ("botocore", "aiobotocore"):
        if any(word in name for word in ("Credential", "Token", "Profile")):
            return "identity"
        passing = ("Connect", "Endpoint", "HTTPClient", "Incomplete", "Streaming", "Timeout")
        return "transient" if any(word in name for word in passing) else "broken"
    if module == "aiohttp":
        return "broken" if "InvalidURL" in name else "transient"
    number = error.errno if isinstance(error, OSError) else None
    # EIO is s3fs's word for an answer it does not know; on a disk it is a bad sector and stays.
    return "transient" if number in _TRANSIENT_ERRNO or (number == errno.EIO and not local) else "broken"


def describe_error(error: BaseException) -> str:
    """The exception in one line, without credentials."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return redact(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _open_archive(address: Address, options: Options, fresh: bool) -> AbstractFileSystem:
    """One open archive a process: reading its table of contents for every image would cost seconds."""
    key = tokenize(os.getpid(), address.protocol, address.inside, options)
    with _archives_lock:
        if fresh or key not in _archives:
            bits = address.inside.removeprefix("::").split("::")
            nested = {p: _options_for(p, options) for p in (bit.partition("://")[0] for bit in bits[-1:])}
            filesystem, _ = url_to_fs(f"{address.protocol}://{address.inside}", **nested)
            filesystem.ls("")  # fills the table of contents, which is not safe to do from several threads
            _archives[key] = filesystem
        return _archives[key]


def _options_for(protocol: str, options: Options) -> dict[str, Any]:
    names = set(available_protocols())
    aliases = ("http", "https") if protocol in ("http", "https") else (protocol,)
    chosen = {key: value for key, value in (options or {}).items() if key not in names}
    for alias in aliases:
        chosen.update((options or {}).get(alias) or {})
    if protocol in ("s3", "s3a"):
        # Listings kept in memory go stale when another process writes.
        chosen.setdefault("use_listings_cache", False)
    return chosen


def _s3_code(error: PermissionError) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
