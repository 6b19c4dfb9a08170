"""From an item to its pixels: the file's bytes with a limit, their hash, the decoded image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

from engine.pool.address import Address, parse_address, redact
from engine.pool.decoding import decode_image
from engine.pool.storage import Options, describe_error, judge_error, open_filesystem, open_stream
from schemas.errors import ConfigError, GapmapError, ImageError, TransientError
from schemas.records import PoolImage, PoolItem
from schemas.settings import PoolSettings

RETRY_AFTER_S = (0.2, 0.6, 1.8)
"""How long whoever reads waits before each further try, where the storage fails in passing."""
_CHUNK = 1 << 20


def read_image(
    item: PoolItem,
    settings: PoolSettings,
    storage_options: Options = None,
    *,
    on_size: Callable[[int, int], None] | None = None,
) -> PoolImage:
    """Open, hash and decode one image.

    Its id is that of the file's bytes, see `hash_image`.

    Args:
        storage_options: as for `list_pool`.
        on_size: called with height and width before any pixel is decoded; may wait.

    Raises:
        ImageError: this file cannot be used; record it and go on.
        TransientError: the storage failed in passing; try again.
        ConfigError: the storage refuses whoever asks (expired or unknown credentials), so that every
            other image would fail alike.
    """
    data = _fetch(item, settings, storage_options)
    mode, pixels_HW3 = decode_image(data, settings.max_pixels, on_size=on_size)
    return PoolImage(item, hash_image(data), pixels_HW3, mode, len(data))


def reread_copy(copies: Sequence[tuple[str, str]], image_id: str) -> PoolImage:
    """An image of the table `images`, as it was labelled, however many pixels it was allowed to have then.

    Args:
        copies: its files (uri, fingerprint); the first that is still there is read.

    Raises:
        ImageError: none can be opened any more, or other images took their places; what is said is of the first one.
        TransientError: the storage still failed after three more tries over 2.6 s.
        ConfigError: the storage refuses the credentials.
    """
    item, data = _find_copy(copies, image_id)
    mode, pixels_HW3 = decode_image(data, None)
    return PoolImage(item, image_id, pixels_HW3, mode, len(data))


def reread_bytes(copies: Sequence[tuple[str, str]], image_id: str) -> bytes:
    """The same as its file holds it; raises as `reread_copy`."""
    return _find_copy(copies, image_id)[1]


def fetch_bytes(url: str) -> bytes:
    """The file at a path or storage URL, of the size that an image of a pool may have.

    Raises:
        ImageError: it cannot be read.
        TransientError: the storage still failed after three more tries over 2.6 s.
        ConfigError: the address cannot work, or the storage refuses the credentials.
    """
    return _fetch_patiently(PoolItem(url, ""))


def hash_image(data: bytes) -> str:
    """The image id of a file: the first 32 hex digits of the SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def _find_copy(copies: Sequence[tuple[str, str]], image_id: str) -> tuple[PoolItem, bytes]:
    """The first of its files that is still there, and what it holds."""
    errors: list[ImageError] = []
    for uri, fingerprint in copies:
        item = PoolItem(uri, fingerprint)
        try:
            data = _fetch_patiently(item)
            if hash_image(data) == image_id:
                return item, data
            raise ImageError("missing", "the file was replaced since it was labelled. Label the pool again.")
        except ImageError as error:
            errors.append(error)
    raise errors[0]


def _fetch_patiently(item: PoolItem) -> bytes:
    for delay_s in RETRY_AFTER_S:
        try:
            return _fetch(item, PoolSettings(), None)
        except TransientError:
            time.sleep(delay_s)
    return _fetch(item, PoolSettings(), None)


def _fetch(item: PoolItem, settings: PoolSettings, storage_options: Options) -> bytes:
    limit = settings.max_file_bytes
    _check_bytes(item.file_bytes, limit)
    address = parse_address(item.open_url or item.uri)
    try:
        filesystem = open_filesystem(address, storage_options)
        data = _read_bytes(filesystem, address, limit, item.file_bytes)
    except Exception as error:
        if isinstance(error, GapmapError):
            raise
        raise _explain(error, item, local=address.on_this_machine) from (None if item.open_url else error)
    _check_bytes(len(data), limit)
    return data


def _read_bytes(filesystem: AbstractFileSystem, address: Address, limit: int, size: int | None) -> bytes:
    """At most one byte more than the limit, whatever the storage says of the size."""
    if isinstance(filesystem, AsyncFileSystem) and not address.is_http:
        if size is None:
            size = filesystem.size(address.path)
            _check_bytes(size, limit)
        whole: bytes = filesystem.cat_file(address.path, start=0, end=limit + 1)  # one request
        return whole
    chunks, read = [], 0
    with open_stream(filesystem, address) as file:
        while read <= limit:
            chunk = file.read(min(limit + 1 - read, max(_CHUNK, (size or 0) + 1 - read)))
            if not chunk:
                break
            chunks.append(chunk)
            read += len(chunk)
    return b"".join(chunks)


def _check_bytes(size: int | None, limit: int) -> None:
    if size == 0:
        raise ImageError("empty", "The file has no bytes.")
    if size is not None and size > limit:
        raise ImageError("too_large", f"The file is larger than max_file_bytes = {limit:,} bytes.")


def _explain(error: Exception, item: PoolItem, *, local: bool) -> GapmapError:
    words = describe_error(error)
    verdict = judge_error(error, local=local)
    if verdict == "transient":
        return TransientError(f"{redact(item.uri)} cannot be read just now: {words}")
    if verdict == "identity":
        return ConfigError(
            f"The storage refuses these credentials at {redact(item.uri)}: {words}. "
            "Renew them in the environment or in the storage options; what is done stays done."
        )
    if verdict == "missing":
        return ImageError("missing", f"The file is not there (any more): {words}")
    if verdict == "denied":
        return ImageError("unreadable", f"The file may not be read: {words}")
    return ImageError("unreadable", f"The file's bytes cannot be read: {words}")
