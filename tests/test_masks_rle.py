"""A user stores masks as COCO run lengths and measures them there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from engine.masks.geometry import mask_boxes
from engine.masks.rle import (
    combine_rle,
    decode_rle,
    encode_crops,
    encode_masks,
    fills_image,
    mask_iou,
    measure_rle,
)

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40))


def pycocotools_counts(masks_NHW: np.ndarray) -> list[str]:
    encoded = coco.encode(np.asfortranarray(masks_NHW.transpose(1, 2, 0).astype(np.uint8)))
    return [item["counts"].decode() for item in encoded]


def blobs(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0, height, (n, 1, 1)), rng.uniform(0, width, (n, 1, 1))
    ry, rx = rng.uniform(2, height / 2, (n, 1, 1)), rng.uniform(2, width / 2, (n, 1, 1))
    return ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 < 1


@settings(max_examples=150, deadline=None)
@given(SIZES.flatmap(lambda size: arrays(bool, size)))
def test_encoding_equals_pycocotools_byte_for_byte(masks_NHW: np.ndarray) -> None:
    assert encode_masks(masks_NHW) == pycocotools_counts(masks_NHW)


@settings(max_examples=50, deadline=None)
@given(SIZES.flatmap(lambda size: arrays(bool, size)))
def test_decoding_gives_the_masks_back(masks_NHW: np.ndarray) -> None:
    assert (decode_rle(encode_masks(masks_NHW), *masks_NHW.shape[1:]) == masks_NHW).all()


@settings(max_examples=50, deadline=None)
@given(SIZES.flatmap(lambda size: arrays(bool, size)))
def test_run_lengths_fill_their_image_and_no_other(masks_NHW: np.ndarray) -> None:
    height, width = masks_NHW.shape[1:]
    for rle in encode_masks(masks_NHW):
        assert fills_image(rle, height, width)
        assert not fills_image(rle, height + 1, width)
        assert not fills_image(rle[:-1], height, width)


@pytest.mark.parametrize("text", ["", "garbage!!", "o", "1Vé", "N2", "oooooooo0", "0\n"])
def test_text_that_is_no_run_lengths_fills_no_image(text: str) -> None:
    assert not any(fills_image(text, side, 1) for side in range(40))


def test_long_runs_of_a_large_image_equal_pycocotools() -> None:
    masks_NHW = np.zeros((3, 2000, 3000), bool)
    masks_NHW[0, 900:1100, 1400:1600] = True
    masks_NHW[1] = True
    masks_NHW[2, :, 17:2900] = True
    rles = encode_masks(masks_NHW)
    assert rles == pycocotools_counts(masks_NHW)
    assert all(fills_image(rle, 2000, 3000) for rle in rles)


def test_a_crop_is_encoded_at_its_place() -> None:
    masks_NHW = blobs(6, 90, 120)
    corners = [(x0 - min(x0, 2), y0 - min(y0, 3)) for x0, y0, _, _ in mask_boxes(masks_NHW).tolist()]
    crops = [mask[y0:, x0:] for mask, (x0, y0) in zip(masks_NHW, corners, strict=True)]
    assert encode_crops(crops, np.array(corners), 90, 120) == pycocotools_counts(masks_NHW)


def test_a_crop_outside_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves the image"):
        encode_crops([np.ones((4, 4), bool)], np.array([[7, 0]]), 10, 10)


def test_no_masks_are_no_error() -> None:
    assert encode_masks(np.zeros((0, 5, 5), bool)) == []
    assert decode_rle([], 5, 6).shape == (0, 5, 6)
    assert measure_rle([], 5, 6)[1].shape == (0, 4)
    assert mask_iou([], encode_masks(np.ones((1, 5, 6), bool)), 5, 6).shape == (0, 1)


def test_areas_boxes_and_overlaps_agree_with_the_pixels() -> None:
    masks_NHW = blobs(8, 60, 80)
    rles = encode_masks(masks_NHW)
    areas, boxes = measure_rle(rles, 60, 80)
    assert (areas == masks_NHW.sum((1, 2))).all()
    assert (boxes == mask_boxes(masks_NHW)).all()
    shared = (masks_NHW[:3, None] & masks_NHW[None, 3:]).sum((2, 3))
    union = (masks_NHW[:3, None] | masks_NHW[None, 3:]).sum((2, 3))
    np.testing.assert_allclose(mask_iou(rles[:3], rles[3:], 60, 80), shared / union)


def test_masks_are_joined_and_intersected() -> None:
    masks_NHW = blobs(3, 50, 50, seed=1)
    rles = encode_masks(masks_NHW)
    assert (decode_rle([combine_rle(rles, 50, 50)], 50, 50)[0] == masks_NHW.any(0)).all()
    assert (decode_rle([combine_rle(rles, 50, 50, intersect=True)], 50, 50)[0] == masks_NHW.all(0)).all()
