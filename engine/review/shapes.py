"""The mask that a region of an answer is: brush, bitmask, polygon, rectangle or ellipse, as Label Studio writes them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from engine.review.brush import decode_brush

_HALF = 128  # of the opacity that a stroke leaves
SHAPES = ("brush", "bitmask", "polygon", "rectangle", "ellipse")


def is_shape(region: Mapping[str, Any]) -> bool:
    """Whether a result is a region, and not a choice or a text about one."""
    return str(region.get("type", "")).removesuffix("labels") in SHAPES


def draw_region(region: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A region as bool HW.

    Args:
        region: a result of Label Studio; places are in percent of the image.
        size: (height, width) of the image, pixels.

    Raises:
        ValueError: it is none of `SHAPES`, of another size, or damaged.
    """
    kind = str(region.get("type", "")).removesuffix("labels")
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise ValueError("The region has no value.")
    said = (region.get("original_height"), region.get("original_width"))
    if said != size:
        raise ValueError(
            f"The region is of an image of {said[0]} x {said[1]} pixels, not {size[0]} x {size[1]}."
        )
    if region.get("image_rotation"):
        raise ValueError("The region was drawn on a rotated image.")
    try:
        if kind == "brush":
            return decode_brush(value["rle"], size) >= _HALF
        if kind == "bitmask":
            return _read_bitmask(value["imageDataURL"], size)
        if kind == "polygon":
            return _fill(np.array(value["points"], float).reshape(-1, 2), size)
        if kind == "rectangle":
            return _fill(_corners(value), size)
        if kind == "ellipse":
            return _fill(_outline(value), size)
    except (AttributeError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"The {kind} is damaged ({type(error).__name__}).") from None
    raise ValueError(f"{kind!r} is no shape that can be read: {', '.join(SHAPES)}.")


def _read_bitmask(url: str, size: tuple[int, int]) -> np.ndarray:
    """A PNG as a data URL; what is not transparent and not black belongs to the mask."""
    data = np.frombuffer(base64.b64decode(url.partition("base64,")[2], validate=True), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if picture is None:
        raise ValueError("The bitmask is no picture.")
    if picture.shape[:2] != size:
        raise ValueError(
            f"The bitmask has {picture.shape[0]} x {picture.shape[1]} pixels, not {size[0]} x {size[1]}."
        )
    if picture.ndim == 2:
        return picture >= _HALF
    return picture[..., 3] >= _HALF if picture.shape[2] == 4 else picture.max(2) >= _HALF


def _corners(value: Mapping[str, Any]) -> np.ndarray:
    """Of a rectangle, percent; it turns around its upper left corner, clockwise, in pixels of equal sides."""
    x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
    if value.get("rotation"):
        raise ValueError("A turned rectangle cannot be read; draw a polygon.")
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


def _outline(value: Mapping[str, Any]) -> np.ndarray:
    x, y, a, b = (float(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
    if value.get("rotation"):
        raise ValueError("A turned ellipse cannot be read; draw a polygon.")
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], 1)


def _fill(points_P2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels inside corners given in percent, as COCO draws polygons."""
    from pycocotools import mask as coco

    if len(points_P2) < 3 or not np.isfinite(points_P2).all():
        raise ValueError("An outline needs three corners.")
    corners = (points_P2 / 100 * (size[1], size[0])).clip(0, (size[1], size[0])).ravel().tolist()
    drawn: np.ndarray = coco.decode(coco.merge(coco.frPyObjects([corners], *size))).astype(bool)
    return drawn
