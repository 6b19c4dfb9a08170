"""Pictures that annotators' browsers open: re-encoded copies of images, and their maps of uncertainty.

Never the pool's own files: a copy has its EXIF rotation applied as the masks have, opens in every browser (16-bit, TIFF,
CMYK), and holds nothing but pixels, so no script, no GPS position.

Shape suffixes: H W image.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

from engine.pool import reread_image
from engine.review.items import ReviewItem
from engine.store.whole_file import written_whole

IMAGE_NAME = "{image_id}.jpg"
MAP_NAME = "{item_key}-{version}.map.jpg"
_QUALITY = 95
_MAP_SIDE = 640  # a map is coarse; a large one would only be slow to open


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
    if (folder / image_name).exists() and (folder / map_name).exists():
        return image_name, map_name
    copy = cv2.imread(str(folder / image_name), cv2.IMREAD_COLOR) if (folder / image_name).exists() else None
    if copy is None:
        image = reread_image(item.uri, item.fingerprint, item.image_id)
        folder.mkdir(parents=True, exist_ok=True)
        _write_jpeg(folder / image_name, image.pixels)
        pixels_HW3 = image.pixels
    else:  # the copy will do: the pool's file may be gone by now
        pixels_HW3 = cv2.cvtColor(copy, cv2.COLOR_BGR2RGB)
    _write_jpeg(folder / map_name, draw_item_map(pixels_HW3, item))
    return image_name, map_name


def draw_item_map(pixels_HW3: np.ndarray, item: ReviewItem) -> np.ndarray:
    """The image in grey with what is uncertain glowing, and the masks outlined; uint8 RGB.

    Args:
        pixels_HW3: uint8 RGB, of the item's size.
        item: its masks, with maps or without.
    """
    from engine.masks.rle import decode_rle

    height, width = item.size
    step = -(-max(height, width) // _MAP_SIDE)  # whole steps: OpenCV shrinks by them ten times as fast
    size = -(-height // step), -(-width // step)
    small = cv2.resize(pixels_HW3, size[::-1], interpolation=cv2.INTER_AREA)
    unsure = np.zeros(size, np.float32)
    outlines: list[np.ndarray] = []
    for mask in item.masks:
        if mask.uncertainty_map is not None:
            unsure = np.maximum(
                unsure, mask.uncertainty_map.sample((0.0, 0.0, float(width), float(height)), size)
            )
        drawn = decode_rle([mask.rle], height, width)[0].astype(np.uint8)
        contours, _ = cv2.findContours(drawn[::step, ::step].copy(), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines += contours
    grey = cv2.convertScaleAbs(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), alpha=0.6)
    mixed = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    x, y, columns, rows = cv2.boundingRect((unsure > 0).astype(np.uint8))
    if columns:  # most of an image is certain
        part = slice(y, y + rows), slice(x, x + columns)
        heat = cv2.applyColorMap(
            np.rint(unsure[part] * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO
        )
        weight = np.sqrt(unsure[part])[..., None]
        mixed[part] = mixed[part] * (1 - weight) + cv2.cvtColor(heat, cv2.COLOR_BGR2RGB) * weight
    cv2.drawContours(mixed, outlines, -1, (90, 200, 250), 1, cv2.LINE_AA)
    return mixed


def _hash_masks(item: ReviewItem) -> int:
    """32 bits that change with the masks an item shows."""
    return zlib.crc32("\0".join(mask.mask_id for mask in item.masks).encode())


def _write_jpeg(path: Path, pixels_HW3: np.ndarray) -> None:
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert ok, "JPEG takes every uint8 picture"
    with written_whole(path) as part:
        part.write_bytes(data.tobytes())
