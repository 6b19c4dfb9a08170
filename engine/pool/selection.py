"""Which files of a pool are taken, and an account of those that are not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from fsspec.utils import glob_translate

from schemas.errors import ConfigError
from schemas.settings import PoolSettings

# HEIC is listed though it cannot be decoded: a phone's photos then show up as rows that say so.
EXTENSIONS = (
    "apng", "avif", "bmp", "gif", "heic", "heif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "jpx", "mpo",
    "pbm", "pfm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp",
)  # fmt: skip
_ARCHIVE_NAMES = {"zip": "zip", "cbz": "zip", "tar": "tar", "tgz": "tar"}


@dataclass
class Selection:
    """Takes or leaves files by their path below the pool, and counts what it leaves.

    A pattern without a slash is held against the file name, one with a slash against the whole path
    below the pool; `**` spans folders. Names that begin with a dot are hidden and never taken.

    Attributes:
        named: the user named every file one by one, so hidden files and unknown types are taken too.
        unreadable_folders: that may not be read, as they can be shown.
    """

    settings: PoolSettings
    glob: str = ""
    named: bool = False
    taken: int = 0
    hidden: int = 0
    unreadable_folders: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._glob = _compile(self.glob) if self.glob else None
        self._include = [(_compile(p), "/" in p) for p in self.settings.include]
        self._exclude = [(_compile(p), "/" in p) for p in self.settings.exclude]

    def takes(self, below: str) -> bool:
        """Whether the file at this path below the pool is taken."""
        name = below.rpartition("/")[2]
        if not self.named and (below.startswith(".") or "/." in below):
            self.hidden += 1
            return False
        if self._wants(below, name):
            self.taken += 1
            return True
        self.leave(name)
        return False

    def leave(self, name: str) -> None:
        """Count a file that is not taken."""
        ending = name.rpartition(".")[2].lower() if "." in name else ""
        known = len(self.left) < 1000 or ending in self.left
        self.left[ending if known else "other"] += 1

    def describe(self) -> str:
        """What was looked for and what was seen instead, for an error or a log."""
        if self.settings.include:
            sought = f"files matching include={list(self.settings.include)}"
        elif self.named:
            sought = "URLs, one a line"
        else:
            sought = f"image files ({', '.join(EXTENSIONS)})"
        if self.glob:
            sought += f" matching {self.glob!r}"
        if self.settings.exclude:
            sought += f" and not exclude={list(self.settings.exclude)}"
        others = ", ".join(
            f"{n} {'.' + e if e else 'without extension'}" for e, n in self.left.most_common(5)
        )
        seen = f"saw {sum(self.left.values())} other files" + (f" ({others})" if others else "")
        if self.hidden:
            seen += f", {self.hidden} hidden"
        if self.unreadable_folders:
            first = self.unreadable_folders[0]
            seen += f", {len(self.unreadable_folders)} folders that may not be read (first: {first})"
        hint = ""
        archive = next((e for e in self.left if e in _ARCHIVE_NAMES), None)
        if archive:
            kind = _ARCHIVE_NAMES[archive]
            hint = f" To read inside a .{archive} file write {kind}://::PATH_OF_THE_ARCHIVE."
        elif self.left and not self.settings.include:
            hint = " For images under other names say so: --include '*'"
        return f"Looked for {sought}; {seen}.{hint}"

    def _wants(self, below: str, name: str) -> bool:
        if self._glob and not self._glob.match(below):
            return False
        if any(p.match(below if whole else name) for p, whole in self._exclude):
            return False
        if self._include:
            return any(p.match(below if whole else name) for p, whole in self._include)
        return self.named or ("." in name and name.rpartition(".")[2].lower() in EXTENSIONS)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(pattern))
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"Cannot use the pattern {pattern!r}: {error}. Write for example **/*.jpg"
        ) from error
