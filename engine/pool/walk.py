"""Going through the folders of a storage, in the order of the names, one folder in memory at a time."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from fsspec import AbstractFileSystem
from fsspec.archive import AbstractArchiveFileSystem

from engine.pool.address import Address, last_name, printable, without_credentials
from engine.pool.selection import Selection
from engine.pool.storage import describe_error, judge_error

UNVERSIONED = "unversioned"
_MAX_DEPTH = 64  # a server may show folders inside each other for ever
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "CRC", "mtime", "LastModified", "last_modified", "updated", "modified", "created")  # fmt: skip
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A file that is wanted: path in its filesystem, fingerprint, size in bytes if known."""

    path: str
    fingerprint: str
    size: int | None


def walk(filesystem: AbstractFileSystem, address: Address, selection: Selection) -> Iterator[Found]:
    """The wanted files at and below an address, sorted by path as bytes."""
    root = address.path
    if address.is_local:
        status = Path(root).stat()  # raises where there is nothing
        if stat.S_ISDIR(status.st_mode):
            return _walk_local(root, selection)
        return _one_file(Path(root).name, _local_file(root, status), selection)
    if address.is_http:
        if Selection(selection.settings).takes(last_name(root)):
            return _one_file(last_name(root), Found(root, UNVERSIONED, None), selection)
        return _walk_listings(filesystem, root.partition("?")[0].rstrip("/") + "/", selection)
    info = filesystem.info(root) if root.strip("/") else {"type": "directory"}
    if info["type"] == "file":
        return _one_file(root.rpartition("/")[2], _found(info), selection)
    if isinstance(filesystem, AbstractArchiveFileSystem):
        return _walk_archive(filesystem, root, selection)
    if address.protocol in ("s3", "s3a") and root.strip("/"):
        return _walk_s3(filesystem, root, selection)
    return _walk_listings(filesystem, root, selection)


def _one_file(name: str, found: Found, selection: Selection) -> Iterator[Found]:
    if selection.takes(name.lstrip(".")):
        yield found


def _walk_local(root: str, selection: Selection) -> Iterator[Found]:
    """Depth first. A linked folder is followed once, and not when it lies in the pool or around it."""
    real_root = str(Path(root).resolve()).rstrip("/") + "/"
    followed: set[str] = set()
    base = root.rstrip("/") + "/"
    stack = [iter(_sorted_names(base, selection, is_root=True))]
    folders = [base]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
            folders.pop()
            continue
        path = folders[-1] + name
        if name.endswith("/"):
            if Path(path).is_symlink():
                target = str(Path(path).resolve()).rstrip("/") + "/"
                if target in followed or target.startswith(real_root) or real_root.startswith(target):
                    continue
                followed.add(target)
            folders.append(path)
            stack.append(iter(_sorted_names(path, selection)))
        elif selection.takes(path[len(base) :]):
            try:
                info = os.stat(path)  # noqa: PTH116 - ten times cheaper than a Path for each of 10^7 files
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not Path(path).is_symlink():
                    continue  # deleted since the folder was read
                yield Found(path, "unreachable", None)  # reading it will say why, in a row of its own
                continue
            if stat.S_ISREG(info.st_mode):
                yield _local_file(path, info)
            else:
                selection.taken -= 1
                selection.leave("pipe or device")


def _sorted_names(folder: str, selection: Selection, *, is_root: bool = False) -> list[str]:
    """Names in a folder, folders with a slash at the end, so that they sort as whole paths do."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    selection.hidden += 1
                else:
                    names.append(entry.name + "/" if _is_folder(entry) else entry.name)
    except OSError as error:
        if is_root:
            raise
        _pass_over(folder, error, selection, local=True)
    return sorted(names, key=os.fsencode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _local_file(path: str, info: os.stat_result) -> Found:
    return Found(path, f"{info.st_size}-{info.st_mtime_ns}", info.st_size)


def _walk_archive(filesystem: AbstractFileSystem, root: str, selection: Selection) -> Iterator[Found]:
    found = filesystem.find(root, detail=True)
    start = len(root) + 1 if root else 0
    for path in sorted(found, key=_as_bytes):
        if selection.takes(path[start:].removeprefix("./")):  # as `tar c .` writes names
            yield _found(found[path])


def _walk_s3(filesystem: Any, root: str, selection: Selection) -> Iterator[Found]:
    """Pages of 1,000 keys as S3 hands them out, sorted already: flat memory for any number of keys."""
    bucket, _, prefix = root.partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    narrowed = prefix + re.split(r"[*?[]", selection.glob, maxsplit=1)[0]
    token: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=narrowed, **token)
        for entry in page.get("Contents", ()):
            key = entry["Key"]
            if not key.endswith("/") and selection.takes(key[len(prefix) :]):
                yield _found({"name": f"{bucket}/{key}", "size": entry["Size"], "ETag": entry["ETag"]})
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _walk_listings(filesystem: AbstractFileSystem, root: str, selection: Selection) -> Iterator[Found]:
    """Any other storage: one listing a folder."""
    base = root.rstrip("/") + "/"
    seen = {base}
    stack = [iter(_list_folder(filesystem, root))]
    while stack:
        info = next(stack[-1], None)
        if info is None:
            stack.pop()
            continue
        path = info["name"]
        below = unquote(path[len(base) :]) if "://" in base else path[len(base) :]
        if info["type"] != "directory":
            if selection.takes(below):
                yield _found(info)
        elif below.startswith(".") or "/." in below:
            selection.hidden += 1
        elif path.rstrip("/") + "/" not in seen and len(stack) < _MAX_DEPTH:
            seen.add(path.rstrip("/") + "/")
            try:
                stack.append(iter(_list_folder(filesystem, path)))
            except Exception as error:
                if judge_error(error, local=False) == "transient":
                    raise
                _pass_over(path, error, selection, local=False)


def _list_folder(filesystem: AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    def by_path(info: dict[str, Any]) -> bytes:
        name: str = info["name"]
        return _as_bytes(name.rstrip("/") + "/" if info["type"] == "directory" else name)

    return sorted(filesystem.ls(folder, detail=True), key=by_path)


def _pass_over(folder: str, error: Exception, selection: Selection, *, local: bool) -> None:
    if judge_error(error, local=local) == "missing":
        return  # deleted since its parent was read
    shown = printable(without_credentials(folder))
    selection.unreadable_folders.append(shown)
    _log.warning("Cannot look into %s, going on without it: %s", shown, describe_error(error))


def _found(info: dict[str, Any]) -> Found:
    size = info.get("size")
    stamp = next((info[key] for key in _STAMPS if info.get(key) is not None), None)
    if stamp is None:
        return Found(info["name"], UNVERSIONED if size is None else f"{size}-{UNVERSIONED}", size)
    text = f"{stamp:08x}" if "CRC" in info and stamp == info["CRC"] else str(stamp).strip('"')
    return Found(info["name"], f"{size}-{text}", size)


def _as_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
