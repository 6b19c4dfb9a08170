"""How the pixels of a labelled image are had: from a file, from memory, or from the pool."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.pool import decode_image, fetch_bytes, hash_image, reread_copy
from schemas.errors import ConfigError, ImageError


def place_file(folder: Path, name: str) -> Path | str:
    """Where the file is that a COCO file in this folder calls so: at a URL, or at a path, relative to the folder or absolute."""
    return name if "://" in name else folder / name


@dataclass(frozen=True)
class FileLoader:
    """Reads a labelled file as the pool is read: upright, transparency on white. What tells its content from another is read once.

    Attributes:
        path: of the file, or its URL.
        size: height and width that its masks are for; None where nobody says.
    """

    path: Path | str
    size: tuple[int, int] | None = None

    @property
    def image_id(self) -> str:
        """What the file is called in a pool, see `hash_image`.

        Raises:
            ConfigError: it cannot be read.
        """
        return self._hashes[0]

    @property
    def digest(self) -> str:
        """Hash of the file, 16 hex digits.

        Raises:
            ConfigError: it cannot be read.
        """
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        data = self.read_bytes()
        return hash_image(data), hashlib.blake2b(data, digest_size=8).hexdigest()

    def __call__(self) -> np.ndarray:
        """Its pixels, uint8 HW3 RGB.

        Raises:
            ConfigError: it cannot be read, or has another size than its masks.
        """
        stored: list[tuple[int, int]] = []

        def check_stored(height: int, width: int) -> None:
            """Before anything is decoded: a small file may hold a picture that fills the memory."""
            stored.append((height, width))
            if self.size is not None and sorted(self.size) != sorted(stored[0]):
                raise self._explain_size(stored[0])

        try:
            _, pixels_HW3 = decode_image(self.read_bytes(), None, on_size=check_stored)
        except ImageError as error:
            raise self._explain(str(error)) from None
        size = pixels_HW3.shape[0], pixels_HW3.shape[1]
        if self.size not in (None, size):
            raise self._explain_size(size, turned=stored[0] == self.size)
        return pixels_HW3

    def read_bytes(self) -> bytes:
        """The file as it lies there.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return fetch_bytes(self.path) if isinstance(self.path, str) else self.path.read_bytes()
        except OSError as error:
            raise self._explain(type(error).__name__) from None
        except ImageError as error:
            raise self._explain(str(error)) from None

    def _explain(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.path} cannot be read ({why.rstrip('.')}). Restore it, or take it out of its COCO file."
        )

    def _explain_size(self, size: tuple[int, int], *, turned: bool = False) -> ConfigError:
        assert self.size is not None
        words = f"{self.path} is {size[1]} x {size[0]} pixels, but its masks are for {self.size[1]} x {self.size[0]}."
        if turned:
            words += (
                " Its EXIF orientation turns it: if they were drawn on the picture as it is stored, take the orientation out of the "
                "files of this set (exiftool -Orientation= FILE)."
            )
        return ConfigError(f"{words} Mend the COCO file, or take the picture out of it.")


@dataclass(frozen=True)
class ArrayLoader:
    """Has them already."""

    pixels: np.ndarray

    def __call__(self) -> np.ndarray:
        return self.pixels


class LostImageError(ConfigError):
    """An image of the pool cannot be opened any more as it was labelled.

    Attributes:
        image_id: which.
    """

    def __init__(self, image_id: str, uri: str, why: ImageError) -> None:
        super().__init__(f"{uri} cannot be learnt from: {why}")
        self.image_id = image_id


@dataclass(frozen=True)
class PoolLoader:
    """Reads an image of the pool, and makes sure that it is the one that was labelled.

    Attributes:
        image_id: which.
        copies: (uri, fingerprint) of each of its files; the first that is still there is read.
    """

    image_id: str
    copies: tuple[tuple[str, str], ...]

    def __call__(self) -> np.ndarray:
        """Its pixels, uint8 HW3 RGB.

        Raises:
            LostImageError: none of its files is there any more, as it was.
        """
        try:
            return reread_copy(self.copies, self.image_id).pixels
        except ImageError as error:
            raise LostImageError(self.image_id, self.copies[0][0], error) from None
