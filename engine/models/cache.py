"""The cache folder, and the checksums of files remembered in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path


def cache_dir() -> Path:
    """GAPMAP_CACHE, or the platform's cache folder for gapmap (~/.cache/gapmap on Linux)."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("GAPMAP_CACHE") or user_cache_dir("gapmap", appauthor=False)).expanduser()


def lock_path(what: str, address: str) -> Path:
    """The file that a process of this machine locks while it is at work there; its folder is made."""
    path = cache_dir() / "locks" / f"{what}-{hashlib.sha256(address.encode()).hexdigest()[:32]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def compute_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex; remembered in the cache until the file's size or time changes."""
    path = path.resolve()
    status = path.stat()
    facts = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    stamp = cache_dir() / "stamps" / (hashlib.sha256(str(path).encode()).hexdigest()[:32] + ".json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no stamp, or not one of ours
        known = json.loads(stamp.read_text())
        if known["facts"] == facts:
            return known["sha256"]
    digest = compute_sha256(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        stamp.parent.mkdir(parents=True, exist_ok=True)
        fresh = stamp.with_name(f"{stamp.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"facts": facts, "sha256": digest}))
        fresh.replace(stamp)
    return digest
