"""What an encoder learns from is a part of the image: pixels, masks and maps move together."""

from __future__ import annotations

import numpy as np
import pytest

from engine.learn.crops import draw_crop
from engine.learn.image_loaders import ArrayLoader
from engine.learn.training_images import TrainingImage, TrainingMask
from engine.masks.map_crop import MapCrop
from engine.masks.rle import encode_masks

_HEIGHT, _WIDTH = 60, 90


def draw_image() -> tuple[TrainingImage, np.ndarray]:
    """Four rectangles of colours of their own, each with a map that is unsure exactly inside."""
    masks = np.zeros((4, _HEIGHT, _WIDTH), bool)
    masks[0, 5:20, 10:30], masks[1, 30:55, 5:25], masks[2, 8:25, 50:80], masks[3, 35:50, 60:88] = (True,) * 4
    pixels = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)
    for place, mask in enumerate(masks):
        pixels[mask] = 60 * (place + 1)
    whole = (0.0, 0.0, float(_WIDTH), float(_HEIGHT))
    made = tuple(
        TrainingMask(
            counts, (_HEIGHT, _WIDTH), place, MapCrop(whole, mask.astype(np.uint8) * 255), (1.0, 1.0)
        )
        for place, (counts, mask) in enumerate(zip(encode_masks(masks), masks, strict=True))
    )
    return TrainingImage("key", "group", False, made, ArrayLoader(pixels)), masks


def test_masks_and_maps_lie_where_their_pixels_are() -> None:
    image, _ = draw_image()
    plain = 0
    for seed in range(60):
        drawn = draw_crop(image, np.random.default_rng(seed), 3)
        pixels = drawn.load()
        height, width = pixels.shape[:2]
        colours = set(np.unique(pixels).tolist()) <= {0, 60, 120, 180, 240}
        plain += colours
        assert 1 <= len(drawn.masks) <= 3
        for mask in drawn.masks:
            inside = mask.decode()
            assert inside.shape == (height, width)
            assert inside.any()
            assert mask.uncertainty is not None
            sampled = mask.uncertainty.sample((0.0, 0.0, float(width), float(height)), (height, width))
            assert np.array_equal(sampled > 0.5, inside)
            if colours:
                assert np.array_equal((pixels == 60 * (mask.task + 1)).all(2), inside)
    assert 10 < plain < 55, "about half are recoloured"


def test_what_is_mostly_cut_off_is_left_out_and_parts_differ() -> None:
    image, masks = draw_image()
    areas, sizes, mirrored = masks.sum((1, 2)), set(), 0
    for seed in range(60):
        drawn = draw_crop(image, np.random.default_rng(seed), 4)
        sizes.add(drawn.load().shape[:2])
        for place, mask in enumerate(drawn.masks):
            assert place == 0 or mask.decode().sum() >= areas[mask.task] / 2
        places = {mask.task: np.nonzero(mask.decode())[1].mean() for mask in drawn.masks}
        mirrored += 0 in places and 2 in places and places[0] > places[2]
    assert len(sizes) > 20
    assert all(_HEIGHT / 2 - 1 <= h <= _HEIGHT and _WIDTH / 2 - 1 <= w <= _WIDTH for h, w in sizes)
    assert mirrored > 3


def test_the_same_draws_give_the_same_part() -> None:
    image, _ = draw_image()
    one, other = (draw_crop(image, np.random.default_rng(7), 4) for _ in range(2))
    assert np.array_equal(one.load(), other.load())
    assert [mask.counts for mask in one.masks] == [mask.counts for mask in other.masks]


@pytest.mark.parametrize("seed", range(5))
def test_an_image_of_one_tiny_mask_keeps_it(seed: int) -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 39, 0] = True
    tiny = TrainingMask(encode_masks(mask)[0], (40, 40), 1)
    image = TrainingImage("key", "group", True, (tiny,), ArrayLoader(np.zeros((40, 40, 3), np.uint8)))
    [kept] = draw_crop(image, np.random.default_rng(seed), 8).masks
    assert kept.decode().sum() == 1
    assert kept.uncertainty is None
