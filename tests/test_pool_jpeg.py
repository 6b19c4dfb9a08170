"""Copies of JPEGs for annotators: every pixel as it was, and nothing else of the file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from engine.pool import decode_image, strip_jpeg
from engine.scenes import make_scene

SECRET = b"48.8584N 2.2945E"


def saved(mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(make_scene(1, 96).image).crop((0, 0, 90, 70)).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def described(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    return exif


def pixels(data: bytes) -> np.ndarray:
    return decode_image(data, 10**6)[1]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True, "quality": 97}),
        ("RGB", {"subsampling": 0, "optimize": True}),
        ("RGB", {"restart_marker_blocks": 2}),
        ("L", {"quality": 60}),
    ],
)
def test_a_copy_shows_the_same_pixels_and_tells_nothing_else(mode: str, options: dict) -> None:
    data = saved(mode, exif=described(1), comment=SECRET, **options)
    # A script behind the picture, and a thumbnail's worth of somebody's own segment.
    hostile = (
        data[:2] + b"\xff\xed\x00\x12" + SECRET + data[2:] + b"<script>alert(1)</script>\xff\xd8\xff\xd9"
    )
    assert SECRET in hostile
    copy = strip_jpeg(hostile)
    assert copy is not None
    np.testing.assert_array_equal(pixels(copy), pixels(hostile))
    for told in (SECRET, b"Exif", b"<script>"):
        assert told not in copy
    assert strip_jpeg(copy) == copy


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_picture_has_to_be_encoded_anew(orientation: int) -> None:
    assert strip_jpeg(saved(exif=described(orientation))) is None


def test_so_has_one_with_a_profile_or_for_print_and_what_is_no_jpeg() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert strip_jpeg(saved(icc_profile=profile)) is None
    assert strip_jpeg(saved("CMYK")) is None
    assert strip_jpeg(saved(keep_rgb=True)) is None
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    assert strip_jpeg(out.getvalue()) is None


def test_one_that_ends_too_early_is_not_copied() -> None:
    data = saved()
    for end in (len(data) // 2, len(data) - 2):
        assert strip_jpeg(data[:end]) is None
