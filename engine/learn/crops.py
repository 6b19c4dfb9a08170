"""Training images cut, mirrored and recoloured at random, their masks and uncertainty maps alike.

An encoder would know a few hundred images by heart (SUM, Liu et al., NeurIPS 2024, has tens of thousands and needs none of this).
Shape suffixes: H W image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.learn.augment import recolour
from engine.learn.image_loaders import ArrayLoader
from engine.learn.training_images import TrainingImage
from engine.masks.map_crop import MapCrop
from engine.masks.rle import encode_masks

_SIDE = (0.8, 1.0)  # of the image's sides: objects keep about the size that they are asked about in
_RECOLOURED = 0.5
_VISIBLE = 0.5  # of a mask that has to be inside: what is cut in halves is another object


def draw_crop(image: TrainingImage, rng: np.random.Generator, masks: int) -> TrainingImage:
    """A random part of an image with at most `masks` masks, one at least where it has any; the pixels are in memory.

    Masks that are for the smaller part outside are left out, but for the one that the part is drawn around.
    """
    pixels = image.load()
    order = rng.permutation(len(image.masks))
    first_HW = image.masks[order[0]].decode() if len(order) else None
    rows, columns = _draw_window(rng, pixels.shape[:2], first_HW)
    mirrored = bool(rng.random() < 0.5)

    def cut(values_HW: np.ndarray) -> np.ndarray:
        part = values_HW[rows, columns]
        return part[:, ::-1] if mirrored else part

    chosen = []
    for place, index in enumerate(order.tolist()):
        mask = image.masks[index]
        whole_HW = mask.decode() if place or first_HW is None else first_HW
        part_HW = cut(whole_HW)
        if place and part_HW.sum() < max(1, _VISIBLE * whole_HW.sum()):
            continue
        moved = mask.uncertainty and mask.uncertainty.shift(-columns.start, -rows.start)
        if moved and mirrored:
            moved = _mirror(moved, part_HW.shape[1])
        [counts] = encode_masks(part_HW[None])
        chosen.append(replace(mask, counts=counts, size=part_HW.shape, uncertainty=moved, point=None))
        if len(chosen) == masks:
            break
    view = cut(pixels)
    if rng.random() < _RECOLOURED:
        view = recolour(rng, view)
    return replace(image, masks=tuple(chosen), load=ArrayLoader(np.ascontiguousarray(view)))


def _draw_window(
    rng: np.random.Generator, size: tuple[int, ...], mask_HW: np.ndarray | None
) -> tuple[slice, slice]:
    """Rows and columns of a part of the image in which one pixel of the mask is for certain."""
    if mask_HW is None:
        focus = tuple(rng.integers(size))
    else:
        inside = np.flatnonzero(mask_HW)
        focus = np.unravel_index(inside[int(rng.integers(len(inside)))], size)
    share = rng.uniform(*_SIDE)
    window = []
    for side, place in zip(size, focus, strict=True):
        cut = max(1, round(side * share))
        low, high = max(0, int(place) - cut + 1), min(int(place), side - cut)
        start = int(rng.integers(low, high + 1))
        window.append(slice(start, start + cut))
    return window[0], window[1]


def _mirror(uncertainty: MapCrop, width: int) -> MapCrop:
    x0, y0, x1, y1 = uncertainty.frame
    return MapCrop((width - x1, y0, width - x0, y1), uncertainty.values_hw[:, ::-1])
