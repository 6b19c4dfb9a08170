"""Brush masks go to Label Studio and come back as its own SDK would have written and read them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle

from engine.review.brush import decode_brush, encode_brush


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A few ellipses, as masks are."""
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(int(rng.integers(0, 6))):
        y, x = rng.random(2) * (height, width)
        a, b = 1 + rng.random(2) * (height, width) / 3
        mask |= ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1
    return mask


def some_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [blobs(rng, *rng.integers(1, 90, 2)) for _ in range(60)]
    masks += [rng.random(tuple(rng.integers(1, 60, 2))) < rng.random() for _ in range(60)]
    masks += [
        np.full(size, full) for size in [(1, 1), (1, 2), (2, 1), (8, 8), (200, 300)] for full in (False, True)
    ]
    # Run lengths of RGBA at which a token changes its size, and at which a run is cut.
    for length in (1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 32769):
        mask = np.zeros((1, 2 * length + 1), bool)
        mask[0, :length] = True
        masks.append(mask)
    return masks


def test_every_mask_is_byte_for_byte_what_the_sdk_writes() -> None:
    for mask in some_masks():
        assert encode_brush(mask) == mask2rle(mask.astype(np.uint8) * 255), mask.shape


def test_a_mask_comes_back_as_it_went() -> None:
    for mask in some_masks():
        assert np.array_equal(decode_brush(encode_brush(mask), mask.shape) > 127, mask)


def test_what_a_stroke_leaves_is_read_as_the_sdk_reads_it() -> None:
    """Soft edges: many levels, single values, other colours than the alpha channel's."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        height, width = rng.integers(1, 40, 2).tolist()
        picture = np.repeat(rng.integers(0, 256, (height, width, 4)), rng.integers(1, 4), 0)[:height].astype(
            np.uint8
        )
        rle = encode_rle(picture.ravel())
        expected = decode_rle(rle).reshape(height, width, 4)[..., 3]
        assert np.array_equal(decode_brush(rle, (height, width)), expected)


def test_literals_are_read() -> None:
    """The editor may write values one by one behind a leading 0 bit, which the SDK's encoder does for single ones only."""
    values = [0, 0, 0, 10, 0, 0, 0, 200]
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "00" + f"{len(values) - 1:03b}" + "".join(f"{value:08b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode_rle(rle).tolist() == values
    assert decode_brush(rle, (1, 2)).tolist() == [[10, 200]]


@pytest.mark.parametrize(
    "rle",
    [
        [],
        [1, 2, 3],
        [300] * 20,
        ["a"] * 20,
        [0] * 20,
        encode_brush(np.ones((9, 9), bool)),
        encode_brush(np.eye(8, dtype=bool))[:-6],
    ],
)
def test_bytes_that_are_no_mask_of_this_size_are_refused(rle: list[int]) -> None:
    with pytest.raises(ValueError, match=r"brush mask|no bytes"):
        decode_brush(rle, (8, 8))


def test_it_is_much_faster_than_the_sdk() -> None:
    mask = np.zeros((1024, 1024), bool)
    for place in range(6):
        mask[120 * place + 20 : 120 * place + 110, 100:900] = blobs(np.random.default_rng(place), 90, 800)
    seconds = {}
    for name, encode in (
        ("ours", lambda: encode_brush(mask)),
        ("sdk", lambda: mask2rle(mask.astype(np.uint8) * 255)),
    ):
        runs = []
        for _ in range(5):
            begun = time.process_time()
            encode()
            runs.append(time.process_time() - begun)
        seconds[name] = min(runs)
    assert seconds["ours"] < seconds["sdk"], seconds
