"""From a file's bytes to uint8 RGB, for every kind of image; docs/pool.md has the decisions as a table.

Pillow does the decoding. Its process-wide switches (`MAX_IMAGE_PIXELS`, `LOAD_TRUNCATED_IMAGES`) are left
alone, because this runs in many threads: limits are checked here, on the header.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageCms

from schemas.errors import GapmapError, ImageError

# Only formats with a signature, decoded by well-fuzzed code, that hold pixels: no PostScript, no PDF.
_FORMATS = ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "PPM")
_TRUNCATED = re.compile(r"truncat|end of (file|data|stream)|unexpected eof|premature", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"unsupported|not supported|not implemented|unknown pixel mode|unknown (raw )?mode|decoder \S+ not available", re.IGNORECASE)  # fmt: skip
_BOMB = re.compile(r"decompression bomb|data too large|too much memory", re.IGNORECASE)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_MAX_PROFILE_BYTES = 8 << 20
_PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_BAND = 1 << 22  # pixels windowed at a time


def _quiet_decoders() -> None:
    """Stop Pillow and its libtiff from telling of every odd tag; what matters becomes a row."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    beside = Path(PIL.__file__).parents[1] / "pillow.libs"
    for name in [str(path) for path in beside.glob("libtiff*")] or [ctypes.util.find_library("tiff") or ""]:
        with contextlib.suppress(OSError, AttributeError):
            libtiff = ctypes.CDLL(name)
            libtiff.TIFFSetWarningHandler(None)
            libtiff.TIFFSetErrorHandler(None)


_quiet_decoders()  # once and for good: switching output off and on around a file is not safe in threads


def decode_image(
    data: bytes, max_pixels: int | None, *, on_size: Callable[[int, int], None] | None = None
) -> tuple[str, np.ndarray]:
    """Decode the first frame.

    Args:
        data: the file.
        max_pixels: more pixels than this, by the header, are refused before anything is decoded; None for no limit, where it is
            known what the file holds.
        on_size: called with height and width (as stored) before any pixel is decoded; may wait, or raise a GapmapError.

    Returns:
        Pixel mode of the file as Pillow names it, and uint8 HW3, RGB in sRGB, upright by EXIF.

    Raises:
        ImageError: of kind empty, unreadable, truncated, too_large or unsupported.
    """
    try:
        image = _open(data)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ImageError(
                "too_large", f"{width} x {height} pixels are more than max_pixels = {max_pixels:,}."
            )
        if on_size is not None:
            on_size(height, width)
        mode = image.mode
        image.load()
        orientation = _orientation(image)
        return mode, _upright(_to_rgb(image), orientation)
    except GapmapError:
        raise
    except MemoryError as error:
        raise ImageError("too_large", "Not enough memory to decode the image.") from error
    except Exception as error:  # hostile bytes make decoders raise anything at all
        raise _explain(error) from error


def _open(data: bytes) -> Image.Image:
    """Read the header. As `Image.open`, but held to our formats and our pixel limit."""
    Image.init()
    prefix = data[:16]
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        accepted = accepts(prefix) if accepts else True
        if isinstance(accepted, str):
            raise ImageError("unsupported", accepted)
        if accepted:
            return factory(io.BytesIO(data), "")
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS:
        raise ImageError("unsupported", "HEIC images cannot be decoded. Convert them to JPEG or PNG.")
    raise ImageError("unsupported", f"Not an image of a known type; it begins with {prefix!r}.")


def _explain(error: Exception) -> ImageError:
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if _BOMB.search(words) or isinstance(error, Image.DecompressionBombError):
        return ImageError("too_large", f"Refused as a decompression bomb: {words}")
    if _TRUNCATED.search(words) or isinstance(error, EOFError):
        return ImageError("truncated", f"The file ends too early: {words}")
    if _UNSUPPORTED.search(words) or isinstance(error, NotImplementedError):
        return ImageError("unsupported", f"Pillow cannot decode this kind of image: {words}")
    return ImageError("unreadable", f"The image is damaged: {words}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it is damaged. Pillow turns TIFF by itself."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF is no reason to lose the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels_HW3: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the camera's rotation (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels_HW3 = pixels_HW3.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels_HW3 = pixels_HW3[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HW3 = pixels_HW3[:, ::-1]
    return np.ascontiguousarray(pixels_HW3)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow mode to writable uint8 HW3."""
    profile: bytes | None = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        return _window(image)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.array(converted)
    if not image.has_transparency_data:
        if image.mode not in _PROFILE_SPACES:
            image = image.convert("L" if image.mode == "1" else "RGB")
        return np.array(_to_srgb(image, profile).convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    rgb = _to_srgb(rgba.convert("RGB"), profile)
    darkest, brightest = alpha.getextrema()
    if darkest != brightest:
        # On white, as a browser shows it to the people who label. One value all over cuts nothing out.
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    return np.array(rgb)


def _to_srgb(image: Image.Image, profile_bytes: bytes | None) -> Image.Image:
    """Apply the ICC profile where it is sane and says something; otherwise leave the image as it is."""
    if not profile_bytes or len(profile_bytes) > _MAX_PROFILE_BYTES:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        if profile.profile.xcolor_space.strip() != _PROFILE_SPACES.get(image.mode):
            return image
        if image.mode == "RGB" and "srgb" in (profile.profile.profile_description or "").lower():
            return image
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image
    except Exception:  # a damaged profile is no reason to lose the pixels
        return image


def _window(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits: its own finite minimum becomes 0, its maximum 255; NaN becomes 0."""
    values_HW = np.asarray(image)
    height, width = values_HW.shape
    rows = max(1, _BAND // max(1, width))
    bands = [slice(y, y + rows) for y in range(0, height, rows)]
    low, high = np.inf, -np.inf
    for band in bands:
        values = values_HW[band]
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    scale = 255.0 / (high - low) if high > low else 0.0
    pixels_HW3 = np.zeros((height, width, 3), np.uint8)
    if scale:
        for band in bands:
            values = np.clip(values_HW[band].astype(np.float64), low, high)
            grey = np.rint((np.nan_to_num(values, nan=low) - low) * scale)
            pixels_HW3[band] = grey.astype(np.uint8)[..., None]
    return pixels_HW3
