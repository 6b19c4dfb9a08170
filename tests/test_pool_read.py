"""Read one image of every kind: the right pixels, upright, in uint8 RGB."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from engine.pool import hash_image, list_pool, read_image, reread_copy
from schemas.errors import ImageError
from schemas.records import PoolImage, PoolItem
from schemas.settings import PoolSettings

ANY = PoolSettings()
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def read(path: Path, settings: PoolSettings = ANY) -> PoolImage:
    return read_image(PoolItem(f"file://{path}", "x", None), settings)


def saved(path: Path, image: Image.Image, **options: object) -> np.ndarray:
    """Pixels of the image after a round through a file."""
    image.save(path, **options)
    return read(path).pixels


def corners() -> np.ndarray:
    """8 x 16 blocks of one colour each, so that every orientation differs; robust to JPEG."""
    blocks = np.array([[RED, GREEN], [BLUE, (255, 255, 255)], [(0, 0, 0), (255, 255, 0)]], np.uint8)
    return blocks.repeat(8, axis=0).repeat(16, axis=1)


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores: row 0 and column 0 of the file lie where EXIF 2.32 says for 0x0112."""
    turned = {
        1: upright,
        2: upright[:, ::-1],  # row 0 top, column 0 right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # row 0 left, column 0 top
        6: upright[:, ::-1].swapaxes(0, 1),  # row 0 right, column 0 top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # row 0 right, column 0 bottom
        8: upright[::-1].swapaxes(0, 1),  # row 0 left, column 0 bottom
    }
    return np.ascontiguousarray(turned[orientation])


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, kind, orientation):
    image = Image.fromarray(as_stored(corners(), orientation))
    exif = image.getexif()
    exif[0x0112] = orientation
    pixels = saved(
        tmp_path / f"x.{kind}", image, exif=exif, **({"quality": 95} if kind in ("jpg", "avif") else {})
    )
    assert pixels.shape == corners().shape
    centres = (slice(4, None, 8), slice(8, None, 16))
    assert np.abs(pixels[centres].astype(int) - corners()[centres]).max() < 30


def test_compressed_tiff_is_turned_once(tmp_path):
    image = Image.fromarray(as_stored(corners(), 6))
    pixels = saved(tmp_path / "x.tif", image, compression="tiff_lzw", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(pixels, corners())


def test_orientation_in_imagemagicks_text_chunk_is_undone(shared_data):
    path = shared_data / "hostile" / "exif_imagemagick_orientation.png"
    with Image.open(path) as image:
        np.testing.assert_array_equal(read(path).pixels, np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientation_is_ignored(tmp_path, orientation):
    image = Image.fromarray(corners())
    exif = image.getexif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(saved(tmp_path / "x.png", image, exif=exif), corners())


def test_image_id_is_the_sha256_of_the_file(tmp_path):
    path = tmp_path / "x.png"
    saved(path, Image.fromarray(corners()))
    image = read(path)
    assert image.image_id == hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    assert image.file_bytes == path.stat().st_size
    assert image.mode == "RGB"
    copy = tmp_path / "copy.png"
    copy.write_bytes(path.read_bytes())
    assert read(copy).image_id == image.image_id


def test_rgb_png_comes_back_exactly_and_writable(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    pixels = saved(tmp_path / "x.png", Image.fromarray(noise))
    np.testing.assert_array_equal(pixels, noise)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_grey_is_repeated_and_not_stretched(tmp_path):
    grey = np.arange(100, 112, dtype=np.uint8).reshape(3, 4)
    pixels = saved(tmp_path / "x.png", Image.fromarray(grey))
    np.testing.assert_array_equal(pixels, grey[..., None].repeat(3, axis=2))


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    pixels = saved(tmp_path / "x.png", Image.fromarray(bits))
    np.testing.assert_array_equal(pixels[..., 1], bits * 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_windowed_to_its_own_range(tmp_path, suffix):
    values = np.array([[300, 300], [555, 810]], np.uint16)  # a 12-bit camera; shown as it is: black
    pixels = saved(tmp_path / f"x.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0], [128, 255]])


def test_32_bit_integers_and_floats_are_windowed(tmp_path):
    integers = np.array([[-(2**31), 0], [2**31 - 1, 2**31 - 1]], np.int32)
    np.testing.assert_array_equal(
        saved(tmp_path / "i.tif", Image.fromarray(integers))[..., 0], [[0, 128], [255, 255]]
    )
    floats = np.array([[-3e38, 0.0], [3e38, 0.0]], np.float32)
    np.testing.assert_array_equal(
        saved(tmp_path / "f.tif", Image.fromarray(floats))[..., 0], [[0, 128], [255, 128]]
    )


def test_nan_is_black_and_infinity_does_not_set_the_window(tmp_path):
    floats = np.array([[0.0, 1.0], [np.nan, np.inf], [-np.inf, 0.5]], np.float32)
    pixels = saved(tmp_path / "x.tif", Image.fromarray(floats))
    np.testing.assert_array_equal(pixels[..., 2], [[0, 255], [0, 255], [0, 128]])
    assert not saved(tmp_path / "nan.tif", Image.fromarray(np.full((3, 3), np.nan, np.float32))).any()
    assert not saved(tmp_path / "flat.tif", Image.fromarray(np.full((3, 3), 700, np.uint16))).any()


def test_16_bit_rgb_keeps_its_high_byte(tmp_path):
    values = np.array([[[0x1234, 0xFFFF, 0x00FF]]], ">u2")
    raw = b"\0" + values.tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks
    )
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read(tmp_path / "x.png").pixels, [[[0x12, 0xFF, 0x00]]])


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 51)]], np.uint8)
    pixels = saved(tmp_path / "x.png", Image.fromarray(rgba))
    np.testing.assert_array_equal(pixels, [[RED, (255, 255, 255), (204, 204, 204)]])


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_alpha_of_one_value_all_over_is_ignored(tmp_path, alpha):
    rgba = np.array([[(*RED, alpha), (*BLUE, alpha)]], np.uint8)
    np.testing.assert_array_equal(saved(tmp_path / "x.png", Image.fromarray(rgba)), [[RED, BLUE]])


def test_palette_with_and_without_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    np.testing.assert_array_equal(saved(tmp_path / "x.png", image), [[RED, GREEN]])
    np.testing.assert_array_equal(saved(tmp_path / "t.png", image, transparency=1), [[RED, (255, 255, 255)]])
    np.testing.assert_array_equal(saved(tmp_path / "x.gif", image), [[RED, GREEN]])


def test_grey_and_rgb_with_a_transparent_colour(tmp_path):
    grey = Image.fromarray(np.array([[10, 20]], np.uint8))
    np.testing.assert_array_equal(saved(tmp_path / "g.png", grey, transparency=20)[0, :, 0], [10, 255])
    rgb = Image.fromarray(np.array([[RED, BLUE]], np.uint8))
    np.testing.assert_array_equal(saved(tmp_path / "c.png", rgb, transparency=BLUE), [[RED, (255, 255, 255)]])
    la = Image.fromarray(np.array([[(10, 255), (20, 0)]], np.uint8), "LA")
    np.testing.assert_array_equal(saved(tmp_path / "la.png", la)[0, :, 0], [10, 255])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "mpo"])
def test_only_the_first_frame_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    pixels = saved(tmp_path / f"x.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert np.abs(pixels.astype(int) - RED).max() < 5


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_without_profile(tmp_path, suffix):
    """Adobe stores CMYK JPEGs inverted; cyan must come out cyan and paper white."""
    cmyk = np.zeros((16, 32, 4), np.uint8)
    cmyk[:, 16:, 0] = 255
    pixels = saved(tmp_path / f"x.{suffix}", Image.fromarray(cmyk, "CMYK"))
    assert np.abs(pixels[8, 4].astype(int) - 255).max() < 5
    assert np.abs(pixels[8, 28].astype(int) - (0, 255, 255)).max() < 5


def wide_profile() -> bytes:
    """The sRGB profile with red and green columns swapped: wrong on purpose, so that it shows."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    places = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def test_icc_profile_is_applied(tmp_path):
    image = Image.new("RGB", (4, 4), RED)
    pixels = saved(tmp_path / "x.png", image, icc_profile=wide_profile())
    assert pixels[0, 0, 1] > 200  # what the file calls red is green
    assert pixels[0, 0, 0] < 100
    rgba = Image.new("RGBA", (4, 4), (*RED, 255))
    np.testing.assert_array_equal(saved(tmp_path / "a.png", rgba, icc_profile=wide_profile()), pixels)


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 128, wide_profile()[:300]])
def test_broken_icc_profile_is_ignored(tmp_path, profile):
    image = Image.fromarray(corners())
    np.testing.assert_array_equal(saved(tmp_path / "x.png", image, icc_profile=profile), corners())


def test_icc_profile_of_another_colour_space_is_ignored(tmp_path):
    grey = Image.new("L", (4, 4), 77)
    assert (saved(tmp_path / "x.png", grey, icc_profile=wide_profile()) == 77).all()


def test_srgb_profile_changes_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(saved(tmp_path / "x.png", Image.fromarray(noise), icc_profile=srgb), noise)


def test_lab_becomes_rgb(tmp_path):
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    assert (saved(tmp_path / "x.tif", lab) >= 253).all()


def test_real_nuclei_lose_nothing_to_their_alpha(shared_data):
    path = next(iter(sorted((shared_data / "nuclei/pool/images").iterdir())))
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(read(path).pixels, np.asarray(image)[..., :3])


def refusal(path: Path, settings: PoolSettings = ANY) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(path, settings)
    return caught.value


def test_limits_are_kept(tmp_path):
    path = tmp_path / "x.png"
    saved(path, Image.new("RGB", (30, 20)))
    assert read(path, PoolSettings(max_pixels=600)).pixels.shape == (20, 30, 3)
    assert refusal(path, PoolSettings(max_pixels=599)).kind == "too_large"
    size = path.stat().st_size
    assert read(path, PoolSettings(max_file_bytes=size)).file_bytes == size
    assert refusal(path, PoolSettings(max_file_bytes=size - 1)).kind == "too_large"
    (item,) = list_pool(str(path), ANY)
    path.unlink()
    with pytest.raises(ImageError, match="max_file_bytes"):  # known from the listing: not even opened
        read_image(item, PoolSettings(max_file_bytes=size - 1))


@pytest.mark.slow
def test_a_limit_above_pillows_own_holds(tmp_path):
    """Pillow refuses more than 179 million pixels; max_pixels decides here."""
    Image.new("1", (20_000, 10_000)).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png", PoolSettings(max_pixels=200_000_000)).pixels.shape == (10_000, 20_000, 3)


def test_kinds_of_failure(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "png")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:5000])
    kinds = {
        name: refusal(tmp_path / name).kind
        for name in ("empty.png", "text.jpg", "folder.png", "cut.png", "none.png")
    }
    assert kinds == {"empty.png": "empty", "text.jpg": "unsupported", "folder.png": "unreadable", "cut.png": "truncated", "none.png": "missing"}  # fmt: skip


def test_the_type_is_known_by_content_not_by_name(tmp_path):
    Image.fromarray(corners()).save(tmp_path / "x.jpg", "png")
    np.testing.assert_array_equal(read(tmp_path / "x.jpg").pixels, corners())


def test_many_threads_read_alike(shared_data):
    items = [*list_pool(str(shared_data / "nuclei/pool/images"), ANY)][:8]
    items += list_pool(f"{shared_data}/hostile/*orientation*", ANY)
    limit = Image.MAX_IMAGE_PIXELS
    alone = [read_image(item, ANY).pixels for item in items]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: read_image(item, ANY).pixels, items * 4))
    assert limit == Image.MAX_IMAGE_PIXELS
    for number, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[number % len(alone)])


@pytest.mark.slow
def test_a_picture_that_was_labelled_is_opened_again_however_large_it_was_allowed_to_be(
    tmp_path: Path,
) -> None:
    """To be shown, mended or learnt from: nobody knows the pool's settings any more, but what is in the file is known."""
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_001)).save(path)
    assert refusal(path, PoolSettings()).kind == "too_large"
    image_id = hash_image(path.read_bytes())
    assert reread_copy([(f"file://{path}", "as it was")], image_id).pixels.shape == (10_001, 20_000, 3)
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(ImageError, match="was replaced"):
        reread_copy([(f"file://{path}", "as it was")], image_id)
