"""Pictures that annotators' browsers open: copies of images, and their maps of uncertainty.

Never the pool's own files: a copy has its EXIF rotation applied as the masks have, opens in every browser (16-bit, TIFF,
CMYK), and holds nothing but pixels, so no script, no GPS position. An upright JPEG keeps its coding, and with it every pixel;
all else is encoded anew.

Shape suffixes: H W image, h w the same shrunk for its map.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from engine.pool import decode_image, reread_bytes, strip_jpeg
from engine.review.items import ReviewItem
from engine.store.whole_file import written_whole

IMAGE_NAME = "{image_id}.jpg"
MAP_NAME = "{item_key}-{version}.map.jpg"
_QUALITY = 95
_MAP_SIDE = 640  # a map is coarse; a large one would only be slow to open
_REDUCED = (
    (1, cv2.IMREAD_GRAYSCALE),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
)


def publish_media(item: ReviewItem, folder: Path) -> tuple[str, str]:
    """Write the copy of an item's image, if it is not there, and its map; returns both names within the folder.

    A map is named by the masks it shows, so that no browser shows an old one.

    Args:
        item: what is asked.
        folder: made if it is not there.

    Raises:
        ImageError: the image cannot be opened, or is not what was labelled.
    """
    image_name = IMAGE_NAME.format(image_id=item.image_id)
    version = f"{_hash_masks(item):08x}"
    map_name = MAP_NAME.format(item_key=item.item_key, version=version)
    copy, drawn = folder / image_name, folder / map_name
    if copy.exists() and drawn.exists():
        return image_name, map_name
    data = copy.read_bytes() if copy.exists() else None
    grey_hw = _read_grey(data, item) if data else None
    if grey_hw is None:  # else the copy will do: the pool's file may be gone by now
        data = _make_copy(item)
        grey_hw = _read_grey(data, item)
        assert grey_hw is not None, "what was encoded just now decodes"
        folder.mkdir(parents=True, exist_ok=True)
        _write(copy, data)
    _write(drawn, _encode(draw_item_map(grey_hw, item)))
    return image_name, map_name


def draw_item_map(grey_hw: np.ndarray, item: ReviewItem) -> np.ndarray:
    """An image in grey with what is uncertain glowing, and the masks outlined; uint8 RGB.

    Args:
        grey_hw: uint8, the item's image shrunk by a whole step (rounded up).
        item: its masks, with maps or without.
    """
    from engine.masks.rle import decode_rle

    height, width = item.size
    step = _map_step(item)
    size = grey_hw.shape
    unsure_hw = np.zeros(size, np.float32)
    outlines: list[np.ndarray] = []
    for mask in item.masks:
        if mask.uncertainty_map is not None:
            sampled = mask.uncertainty_map.sample((0.0, 0.0, float(width), float(height)), size)
            unsure_hw = np.maximum(unsure_hw, sampled)
        drawn = decode_rle([mask.rle], height, width)[0].astype(np.uint8)
        contours, _ = cv2.findContours(drawn[::step, ::step].copy(), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines += contours
    mixed = cv2.cvtColor(cv2.convertScaleAbs(grey_hw, alpha=0.6), cv2.COLOR_GRAY2RGB)
    x, y, columns, rows = cv2.boundingRect((unsure_hw > 0).astype(np.uint8))
    if columns:  # most of an image is certain
        part = slice(y, y + rows), slice(x, x + columns)
        level_hw = np.rint(unsure_hw[part] * 255).clip(0, 255).astype(np.uint8)
        heat, shade = _glow()
        mixed[part] = cv2.add(
            cv2.LUT(cv2.merge([level_hw] * 3), heat),
            cv2.multiply(mixed[part], cv2.LUT(cv2.merge([level_hw] * 3), shade), scale=1 / 255),
        )
    cv2.drawContours(mixed, outlines, -1, (90, 200, 250), 1, cv2.LINE_AA)
    return mixed


def _make_copy(item: ReviewItem) -> bytes:
    """The item's image as a JPEG of pixels alone: its own coding where that shows the same in any browser."""
    data = reread_bytes(item.copies, item.image_id)
    stripped = strip_jpeg(data)
    return _encode(decode_image(data, None)[1]) if stripped is None else stripped


def _read_grey(data: bytes, item: ReviewItem) -> np.ndarray | None:
    """A copy in grey, shrunk for its map; None where it is damaged. JPEG is decoded at a part of its size for less."""
    step = _map_step(item)
    _, flag = max(of for of in _REDUCED if of[0] <= step)
    grey_hw = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if grey_hw is None:
        return None
    height, width = item.size
    return cv2.resize(grey_hw, (-(-width // step), -(-height // step)), interpolation=cv2.INTER_AREA)


def _map_step(item: ReviewItem) -> int:
    return -(-max(item.size) // _MAP_SIDE)


@cache
def _glow() -> tuple[np.ndarray, np.ndarray]:
    """For each level of uncertainty what glows, and how much of the image is left (255 = all), uint8 1x256x3, RGB."""
    level_Q = np.arange(256, dtype=np.uint8)
    heat_Q13 = cv2.cvtColor(cv2.applyColorMap(level_Q, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    weight_Q11 = np.sqrt(level_Q / 255)[:, None, None]
    heat, shade = heat_Q13 * weight_Q11, np.repeat(255 * (1 - weight_Q11), 3, axis=2)
    return tuple(np.rint(table).astype(np.uint8).reshape(1, 256, 3) for table in (heat, shade))


def _hash_masks(item: ReviewItem) -> int:
    """32 bits that change with the masks an item shows."""
    return zlib.crc32("\0".join(mask.mask_id for mask in item.masks).encode())


def _encode(pixels_HW3: np.ndarray) -> bytes:
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert ok, "JPEG takes every uint8 picture"
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    with written_whole(path) as part:
        part.write_bytes(data)
