"""The pool's items, from a listing alone: nothing is opened but lists of URLs."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from hashlib import blake2b
from urllib.parse import unquote

from fsspec import AbstractFileSystem

from engine.pool.address import Address, parse_address, printable, split_glob, without_credentials
from engine.pool.selection import Selection
from engine.pool.storage import Options, describe_error, judge_error, open_filesystem, open_stream
from engine.pool.walk import UNVERSIONED, Found, walk
from schemas.errors import ConfigError, GapmapError, TransientError
from schemas.records import PoolItem
from schemas.settings import PoolSettings

_log = logging.getLogger(__name__)


def list_pool(url: str, settings: PoolSettings, storage_options: Options = None) -> Iterator[PoolItem]:
    """The images of a pool, one by one, in an order that depends on the names alone.

    Args:
        url: a folder, a single image, or a list (`.txt`, one URL a line) at any fsspec URL; a folder
            inside an archive (`zip://photos::s3://bucket/a.zip`); an http(s) directory index. The
            path may hold a glob (`s3://bucket/**/*.png`).
        settings: which files are images.
        storage_options: for fsspec; for the storage itself, or nested by protocol when the items of
            a list live elsewhere than the list.

    Yields:
        Items whose fingerprint comes from the listing: size with ETag, checksum or modification time.
        Over http, and in lists, the listing tells nothing, and the fingerprint is `unversioned`:
        there a changed file is not noticed.

    Raises:
        ConfigError: the pool does not exist, may not be read, or holds no image. The last is known
            only when the listing has ended.
        TransientError: the storage failed in passing.
    """
    shown = without_credentials(url)
    address = parse_address(url)
    try:
        filesystem = open_filesystem(address, storage_options, fresh=True)
        address, glob = _split_root(filesystem, address)
        if not glob and address.path.endswith(".txt") and _is_file(filesystem, address):
            selection = Selection(settings, named=True)
            items = _read_list(filesystem, address, shown, selection)
        else:
            selection = Selection(settings, glob)
            items = _as_items(walk(filesystem, address, selection), address)
    except Exception as error:
        raise _explain(error, shown, local=address.on_this_machine) from (None if shown != url else error)
    return _guard(items, selection, shown, hide=shown != url, local=address.on_this_machine)


def _split_root(filesystem: AbstractFileSystem, address: Address) -> tuple[Address, str]:
    """The folder to walk and the glob below it; a name that exists as it is written is no glob."""
    if address.is_http:
        if "?" in address.path:
            return address, ""  # it begins a query and is no wildcard
        scheme, _, rest = address.path.partition("://")
        host, _, path = rest.partition("/")
        root, glob = split_glob(path)
        root = f"{scheme}://{host}/{root}"
    else:
        root, glob = split_glob(address.path)
    if not glob or filesystem.exists(address.path):
        return address, ""
    return address.at(root), glob


def _is_file(filesystem: AbstractFileSystem, address: Address) -> bool:
    return address.is_http or bool(filesystem.isfile(address.path))


def _as_items(found: Iterator[Found], address: Address) -> Iterator[PoolItem]:
    for file in found:
        raw = address.at(file.path).url
        uri = printable(without_credentials(raw))
        yield PoolItem(uri, file.fingerprint, file.size, None if uri == raw else raw)


def _read_list(
    filesystem: AbstractFileSystem, address: Address, shown: str, selection: Selection
) -> Iterator[PoolItem]:
    """One URL a line; blank lines and lines that begin with # are passed over, repeats too."""
    seen: set[bytes] = set()  # 16 bytes stand for a URL: a list may have millions
    with open_stream(filesystem, address) as file:
        whole = file.read()  # all of it: no server keeps a connection open while the images are labelled
    for number, line_bytes in enumerate(io.BytesIO(whole), start=1):
        try:
            line = line_bytes.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"Line {number} of the list {shown} is not UTF-8: {error}") from error
        if not line or line.startswith("#"):
            continue
        uri = without_credentials(line)
        if "://" not in line:
            # Without a scheme nothing tells credentials from the rest.
            bare = line.partition("?")[0].rpartition("@")[2]
            raise ConfigError(
                f"Line {number} of the list {shown} is no URL: {bare[:200]!r}. "
                "Write one whole URL a line (https://…, s3://…, file:///…)."
            )
        parse_address(line)  # an unknown storage is a mistake in the list, not a broken image
        below = unquote(uri.partition("://")[2].partition("?")[0].partition("/")[2])
        digest = blake2b(uri.encode(), digest_size=16).digest()
        if digest not in seen and selection.takes(below):
            seen.add(digest)
            yield PoolItem(uri, UNVERSIONED, None, None if uri == line else line)


def _guard(
    items: Iterator[PoolItem], selection: Selection, shown: str, *, hide: bool, local: bool
) -> Iterator[PoolItem]:
    """Pass the items on, put errors into words, and refuse a pool without images."""
    try:
        yield from items
    except Exception as error:
        raise _explain(error, shown, local=local) from (None if hide else error)
    if not selection.taken:
        raise ConfigError(f"No image in the pool {printable(shown)}. {selection.describe()}")
    if selection.left or selection.unreadable_folders:
        _log.info("Pool %s: %d images. %s", printable(shown), selection.taken, selection.describe())


def _explain(error: Exception, shown: str, *, local: bool) -> GapmapError:
    if isinstance(error, GapmapError):
        return error
    words, shown = describe_error(error), printable(shown)
    verdict = judge_error(error, local=local)
    if verdict == "transient":
        return TransientError(f"The pool {shown} cannot be listed just now: {words}")
    if verdict == "missing":
        return ConfigError(
            f"There is no pool at {shown}: {words}. Check the name; relative paths start in the working folder."
        )
    if verdict in ("denied", "identity"):
        return ConfigError(
            f"The pool {shown} may not be read: {words}. Check the permissions, and the credentials in the "
            "environment (for S3 AWS_ACCESS_KEY_ID, AWS_PROFILE …) or in the storage options."
        )
    return ConfigError(f"The pool {shown} cannot be listed: {words}")
