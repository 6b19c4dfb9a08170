"""COCO compressed run lengths: the form masks are stored in.

Runs go down the columns (column-major), start with background, and are packed into ASCII as
`maskApi.c` of pycocotools does, byte for byte. Encoding is our own, because a mask is known as the
crop that its box cuts out: pycocotools would scan every pixel of the image for every mask. All else
goes through pycocotools.

Shape suffixes: N masks, H W image, 4 box x0 y0 x1 y1 (x1 and y1 exclusive), image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from engine.masks.geometry import mask_boxes

_CHARACTERS = 7  # five bits each: enough for any 32-bit count and its sign


def encode_masks(masks_NHW: np.ndarray) -> list[str]:
    """Compressed counts of full-size boolean masks.

    Args:
        masks_NHW: bool.

    Returns:
        One string a mask, equal to `pycocotools.mask.encode(...)["counts"]`.
    """
    boxes_N4 = mask_boxes(masks_NHW)
    height, width = masks_NHW.shape[1:]
    crops = [mask[y0:y1, x0:x1] for mask, (x0, y0, x1, y1) in zip(masks_NHW, boxes_N4, strict=True)]
    return encode_crops(crops, boxes_N4[:, :2], height, width)


def encode_crops(crops: Sequence[np.ndarray], corners_N2: np.ndarray, height: int, width: int) -> list[str]:
    """Compressed counts of masks that are known as crops of an image.

    The cost is that of the crops, not of the image.

    Args:
        crops: N boolean arrays, rows by columns; the mask is background outside of its crop.
        corners_N2: x and y of each crop's top-left pixel in the image.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        One string a mask, for an image of `height` x `width`.

    Raises:
        ValueError: a crop does not lie inside the image.
    """
    counts = []
    for crop, (x0, y0) in zip(crops, np.asarray(corners_N2).tolist(), strict=True):
        if x0 < 0 or y0 < 0 or y0 + crop.shape[0] > height or x0 + crop.shape[1] > width:
            raise ValueError(
                f"A crop {crop.shape} at ({x0}, {y0}) leaves the image of {height} x {width} pixels."
            )
        counts.append(_count_runs(crop, x0, y0, height, width))
    return _pack(counts)


def decode_rle(rles: Sequence[str], height: int, width: int) -> np.ndarray:
    """Boolean masks_NHW of compressed counts, row after row."""
    if not len(rles):
        return np.zeros((0, height, width), bool)
    masks_NHW = np.empty((len(rles), height, width), np.uint8)
    # Column after column, as pycocotools gives them; OpenCV turns them five times as fast as NumPy.
    for mask_HW, turned_WH in zip(masks_NHW, coco.decode(_objects(rles, height, width)).T, strict=True):
        cv2.transpose(turned_WH, dst=mask_HW)
    return masks_NHW.view(bool)


def measure_rle(rles: Sequence[str], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Areas (int64, pixels) and boxes_N4 (int32) of masks, without decoding them."""
    if not len(rles):
        return np.zeros(0, np.int64), np.zeros((0, 4), np.int32)
    objects = _objects(rles, height, width)
    boxes_N4 = coco.toBbox(objects)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    return coco.area(objects).astype(np.int64), boxes_N4.astype(np.int32)


def fills_image(rle: str, height: int, width: int) -> bool:
    """Whether compressed counts are runs that together have as many pixels as the image; pycocotools takes any text for counts."""
    try:
        codes = np.frombuffer(rle.encode("ascii"), np.uint8) - 48  # what is below wraps to above
    except UnicodeEncodeError:
        return False
    if not len(codes) or codes.max() > 0x3F or codes[-1] & 0x20:
        return False
    ends = np.flatnonzero(codes < 0x20)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    used = ends - starts + 1
    if used.max() > _CHARACTERS:
        return False
    place = np.arange(len(codes)) - starts.repeat(used)
    runs = np.add.reduceat((codes & 0x1F).astype(np.int64) << 5 * place, starts)
    runs -= (codes[ends] >> 4).astype(np.int64) << 5 * used  # the sign
    for first in (1, 2):  # from the fourth on they are differences to the one two before
        runs[first::2] = runs[first::2].cumsum()
    return bool(runs.min() >= 0 and runs.sum() == height * width)


def mask_iou(rles_a: Sequence[str], rles_b: Sequence[str], height: int, width: int) -> np.ndarray:
    """IoU of every mask of one list with every mask of another, float64, len(a) x len(b)."""
    if not len(rles_a) or not len(rles_b):
        return np.zeros((len(rles_a), len(rles_b)))
    a, b = _objects(rles_a, height, width), _objects(rles_b, height, width)
    return coco.iou(a, b, [0] * len(b))


def combine_rle(rles: Sequence[str], height: int, width: int, *, intersect: bool = False) -> str:
    """Union of masks as compressed counts, or with `intersect` what they share."""
    return coco.merge(_objects(rles, height, width), intersect)["counts"].decode()


def _objects(rles: Sequence[str], height: int, width: int) -> list[dict[str, Any]]:
    return [{"size": [height, width], "counts": rle} for rle in rles]


def _count_runs(crop: np.ndarray, x0: int, y0: int, height: int, width: int) -> np.ndarray:
    """Run lengths over the whole image, column-major, of a mask known as a crop."""
    rows, columns = crop.shape
    # One background pixel before all and one below each column: every run ends in its own column.
    column_major = np.zeros(1 + columns * (rows + 1), bool)
    column_major[1:].reshape(columns, rows + 1)[:, :rows] = crop.T
    column, row = np.divmod(np.flatnonzero(column_major[1:] != column_major[:-1]), rows + 1)
    edges = (x0 + column) * height + y0 + row
    if rows == height and len(edges):
        # A run that reached the bottom and one from the top of the next column are one run.
        joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
        edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = np.diff(edges, prepend=0, append=height * width)
    return counts[:-1] if counts[-1] == 0 else counts


def _pack(counts: Sequence[np.ndarray]) -> list[str]:
    """Counts to strings: from the fourth on, differences to the count two before; 5 bits a character."""
    if not counts:
        return []
    deltas = []
    for runs in counts:
        delta = runs.copy()
        delta[3:] -= runs[1:-2]
        deltas.append(delta)
    rest = np.concatenate(deltas)
    characters = np.zeros((len(rest), _CHARACTERS), np.uint8)
    used = np.zeros((len(rest), _CHARACTERS), bool)
    more = np.ones(len(rest), bool)
    for place in range(_CHARACTERS):
        bits = rest & 0x1F
        rest = rest >> 5
        used[:, place] = more
        continues = rest != np.where(bits & 0x10, -1, 0)
        characters[:, place] = 48 + (bits | (continues << 5))
        more = more & continues
        if not more.any():
            break
    text = characters[used].tobytes().decode("ascii")
    last_count = np.cumsum([len(delta) for delta in deltas]) - 1
    ends = np.cumsum(used.sum(1))[last_count].tolist()
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
