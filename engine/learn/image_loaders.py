"""How the pixels of a labelled image are had: from a file, from memory, or from the pool."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.pool import hash_image, reread_copy
from schemas.errors import ConfigError, ImageError


@dataclass(frozen=True)
class FileLoader:
    """Reads a file, uint8 HW3 RGB. What tells its content from another is read once.

    Attributes:
        path: of the file.
    """

    path: Path

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
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                return np.array(image.convert("RGB"))
        except OSError as error:
            raise self._explain(error) from None

    def read_bytes(self) -> bytes:
        """The file as it lies there.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise self._explain(error) from None

    def _explain(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.path} cannot be read ({type(error).__name__}). Restore it, or take it out of its COCO file."
        )


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
