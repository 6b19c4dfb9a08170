"""Procedural scenes: the same seed gives the same scene, and masks are exact and nested."""

from __future__ import annotations

import numpy as np
import pytest

from engine.scenes import Scene, make_scene

SEEDS = range(12)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(seed, 192) for seed in SEEDS]


def test_same_seed_same_scene_other_seed_another(scenes: list[Scene]) -> None:
    again = make_scene(0, 192)
    assert np.array_equal(again.image, scenes[0].image)
    assert [m.task for m in again.masks] == [m.task for m in scenes[0].masks]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(again.masks, scenes[0].masks, strict=True))
    assert not np.array_equal(scenes[1].image, scenes[0].image)


def test_images_are_rgb_and_masks_fit_them(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (192, 192, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks, scene.layout
        assert all(m.mask.shape == (192, 192) and m.mask.dtype == bool and m.mask.any() for m in scene.masks)


def test_parts_lie_inside_their_thing_and_things_do_not_overlap(scenes: list[Scene]) -> None:
    parts = 0
    for scene in scenes:
        covered = np.zeros((192, 192), int)
        for mask in scene.masks:
            if mask.task == "part":
                assert mask.parent is not None
                assert not (mask.mask & ~scene.masks[mask.parent].mask).any()
                parts += 1
            else:
                covered += mask.mask
        assert covered.max() <= 1
    assert parts > 5, "without parts a point is never ambiguous"


def test_all_layouts_and_tasks_occur() -> None:
    many = [make_scene(seed, 96) for seed in range(30)]
    assert {scene.layout for scene in many} == {"crowd", "things", "salient"}
    assert {mask.task for scene in many for mask in scene.masks} == {"entity", "part", "salient"}


def test_things_can_be_told_from_what_surrounds_them(scenes: list[Scene]) -> None:
    """Masks are of what is seen: across most outlines the colour changes more than inside."""
    import cv2

    sharper = []
    for scene in scenes:
        pixels = cv2.GaussianBlur(scene.image, (3, 3), 0).astype(int)
        step = np.abs(np.diff(pixels, axis=1)).sum(2)
        for mask in scene.masks:
            crossing = mask.mask[:, 1:] != mask.mask[:, :-1]
            inside = mask.mask[:, 1:] & mask.mask[:, :-1]
            if mask.task != "part" and crossing.sum() > 10 and inside.sum() > 10:
                sharper.append(step[crossing].mean() > step[inside].mean())
    assert np.mean(sharper) > 0.8
