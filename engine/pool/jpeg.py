"""A JPEG without anything but its picture: no EXIF, no position, no comment, nothing behind its end."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_RESTARTS = 0xD0, 0xD7


def strip_jpeg(data: bytes) -> bytes | None:
    """The same coded picture with all that is not needed to decode it taken away, so not a pixel changes.

    Args:
        data: a file that decodes.

    Returns:
        A JPEG file; None for a file that has to be decoded and encoded anew to look the same without what is taken away: no
        JPEG, not upright, with a colour profile, or in colours other than RGB and grey.
    """
    if not data.startswith(_START):
        return None
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if image.mode not in ("RGB", "L") or "icc_profile" in image.info:
            return None
        if image.info.get("adobe_transform", 1) != 1 or image.getexif().get(0x0112, 1) != 1:
            return None
        # Decoders tell the colours by it.
        kept = [_START, _JFIF] if "jfif" in image.info or "adobe" in image.info else [_START]
    markers_K = _find_markers(data)
    place = 2
    while True:
        while data[place : place + 2] == b"\xff\xff":
            place += 1
        marker = data[place + 1] if data[place : place + 1] == b"\xff" and place + 1 < len(data) else None
        if marker is None:
            return None
        if marker == _END[1]:
            return b"".join([*kept, _END])
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN:
            following = np.searchsorted(markers_K, end)
            end = int(markers_K[following]) if following < len(markers_K) else len(data)
        if marker not in _APPLICATION and marker != _COMMENT:
            kept.append(data[place:end])
        place = end


def _find_markers(data: bytes) -> np.ndarray:
    """Where a scan may end, ascending: at a marker that is neither a stuffed byte nor a restart."""
    bytes_X = np.frombuffer(data, np.uint8)
    places_K = np.flatnonzero(bytes_X[:-1] == 0xFF)
    following_K = bytes_X[places_K + 1]
    first, last = _RESTARTS
    inside_K = (following_K == 0) | (following_K == 0xFF) | (following_K >= first) & (following_K <= last)
    return places_K[~inside_K]
