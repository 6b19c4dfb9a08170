"""Files made to break a reader: each ends as pixels or as a reason, within a memory limit."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROBE = Path(__file__).with_name("pool_probe.py")
REPO_ROOT = Path(__file__).resolve().parents[1]

# (mode, width, height), or the kind of error
HOSTILE = {
    "10ct_32bit_128.tiff": ("F", 128, 128),
    "12bit.cropped.tif": ("I;16", 100, 100),
    "12in16bit.tif": ("I;16", 100, 100),
    "16bit.cropped.tif": ("I;16", 64, 64),
    "1_trns.png": ("1", 64, 64),
    "8bit.s.tif": ("L", 128, 128),
    "apng_mode_16bit.png": ("RGBA", 128, 64),
    "apng_mode_palette_alpha.png": ("P", 128, 64),
    "bmp_b_reallybig.bmp": "too_large",
    "bmp_b_shortfile.bmp": "truncated",
    "crash-2020-10-test.tif": "unreadable",
    "exif_Landscape_1.jpg": ("RGB", 1800, 1200),
    "exif_imagemagick_orientation.png": ("RGB", 512, 512),
    "frozenpond.mpo": ("RGB", 640, 480),
    "g4-multi.tiff": ("1", 3307, 4677),
    "hopper.Lab.tif": ("LAB", 128, 128),
    "hopper_16bit.pgm": ("I", 128, 128),
    "hopper_bad_exif.jpg": ("L", 500, 500),
    "hopper_gray.jpg": ("L", 128, 128),
    "hopper_gray_4bpp.tif": ("L", 128, 128),
    "hopper_orientation_2.jpg": ("RGB", 128, 128),
    "hopper_orientation_3.jpg": ("RGB", 128, 128),
    "hopper_orientation_4.jpg": ("RGB", 128, 128),
    "icc_profile_big.jpg": ("RGB", 425, 250),
    "iss634.apng": ("RGBA", 245, 245),
    "iss634.webp": ("RGBA", 245, 245),
    "multipage.tiff": ("P", 10, 10),
    "p_trns_single.png": ("P", 64, 64),
    "png_decompression_dos.png": "too_large",
    "rdf.tif": ("PA", 518, 556),
    "seek_too_large.tif": "unreadable",
    "tiff_16bit_RGBa.tiff": ("RGBA", 100, 40),
    "truncated_end_chunk.png": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "unknown_compression_method.png": "unreadable",
    "vips_sample.png": ("RGB", 290, 442),
    "vips_truncated.gif": "truncated",
    "zero_width.gif": "unreadable",
}


def probe(paths: list[Path], **settings: object) -> tuple[dict[str, dict], str]:
    """Outcome of each file, read in a process with 3 GiB of address space; and its stderr."""
    done = subprocess.run(
        [sys.executable, str(PROBE), json.dumps(settings), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line for line in lines}, done.stderr


def outcome(line: dict) -> str | tuple[str, int, int]:
    return line["kind"] if "kind" in line else (line["mode"], line["width"], line["height"])


def png(width: int, height: int, *extra_chunks: tuple[bytes, bytes], pixels: bytes = b"") -> bytes:
    """A grey 8-bit PNG, honest or not."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra_chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def made_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, the outcome they deserve)."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    whole = {
        kind: encoded(noise, kind)
        for kind in ("png", "jpeg", "webp", "tiff", "jpeg2000", "avif", "ppm", "bmp")
    }
    webp_bomb = (
        b"RIFF"
        + struct.pack("<I", 22)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\0" * 4
        + b"\xff\xff\xff" * 2
    )
    bomb_text = b"comment\0\0" + zlib.compress(b"\0" * (64 << 20))
    bomb_icc = b"icc\0\0" + zlib.compress(b"\0" * (64 << 20))
    files = {f"half.{kind}": (data[: len(data) // 2], "truncated") for kind, data in whole.items()}
    files |= {
        "half.avif": (whole["avif"][: len(whole["avif"]) // 2], "unreadable"),
        "half.webp": (whole["webp"][: len(whole["webp"]) // 2], "unreadable"),
        "half.jp2": (whole["jpeg2000"][: len(whole["jpeg2000"]) // 2], "unreadable"),
        "nothing.png": (b"", "empty"),
        "letter.jpg": (b"Dear reader, this is not an image.", "unsupported"),
        "page.png": (b"<!doctype html><title>404 Not Found</title>", "unsupported"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, "unsupported"),
        "eight_bytes.png": (b"\x89PNG\r\n\x1a\n", "unreadable"),
        "huge_header.png": (png(2**31 - 1, 2**31 - 1), "too_large"),
        "zero_height.png": (png(10, 0), "unreadable"),
        "flat_bomb.png": (png(14_143, 14_143, pixels=b"\0" * (14_144 * 14_143)), "too_large"),
        "text_bomb.png": (png(4, 4, (b"zTXt", bomb_text), pixels=b"\0" * 20), "too_large"),
        "icc_bomb.png": (png(4, 4, (b"iCCP", bomb_icc), pixels=b"\0" * 20), "too_large"),
        "canvas_bomb.webp": (webp_bomb, "too_large"),
        "tag_bomb.tif": (
            b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x100, 4, 2**32 - 1, 8) + b"\0" * 4,
            "unreadable",
        ),
        "loop.tif": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "unreadable"),
        "huge.pgm": (b"P5 2000000000 2000000000 255\n" + b"\0" * 100, "too_large"),
        "flipped_bits.jpeg": (whole["jpeg"][:20] + b"\xff" * 200 + whole["jpeg"][220:], "unreadable"),
    }
    files.pop("half.jpeg2000")
    return files


def test_read_every_hostile_file_within_a_memory_limit_and_in_silence(shared_data):
    """Left alone, Pillow warns of hopper_bad_exif.jpg, and libtiff prints 200 lines on crash-2020-10-test.tif."""
    lines, stderr = probe(sorted((shared_data / "hostile").iterdir()))
    assert {name: outcome(line) for name, line in lines.items()} == HOSTILE
    assert stderr == ""


@pytest.mark.slow
def test_read_made_up_attacks_within_a_memory_limit(tmp_path):
    files = made_files()
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    lines, stderr = probe(sorted(tmp_path.iterdir()), max_pixels=200_000_000)
    assert {name: outcome(line) for name, line in lines.items()} == {
        name: kind for name, (_, kind) in files.items()
    }
    assert stderr == ""
    assert all(line["error"] for line in lines.values())
