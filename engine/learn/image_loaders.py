"""How the pixels of a labelled image are had: from a file, from memory, or from the pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.pool import read_image
from schemas.errors import ConfigError
from schemas.records import PoolItem
from schemas.settings import PoolSettings


@dataclass(frozen=True)
class FileLoader:
    """Reads a file, uint8 HW3 RGB."""

    path: Path

    def __call__(self) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                return np.array(image.convert("RGB"))
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read ({type(error).__name__}). Restore it, or take it out of its COCO file."
            ) from None


@dataclass(frozen=True)
class ArrayLoader:
    """Has them already."""

    pixels: np.ndarray

    def __call__(self) -> np.ndarray:
        return self.pixels


@dataclass(frozen=True)
class PoolLoader:
    """Reads an image of the pool, and makes sure that it is the one that was labelled."""

    item: PoolItem
    image_id: str

    def __call__(self) -> np.ndarray:
        image = read_image(self.item, PoolSettings())
        if image.image_id != self.image_id:
            raise ConfigError(f"{self.item.uri} was replaced since it was labelled. Label the pool again.")
        return image.pixels
