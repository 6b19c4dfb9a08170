"""Measuring how unsure a prediction is by sampling: other pictures, points, outputs and a larger model."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from scipy.special import entr
from torch.nn import functional

from engine.evaluate import monte_carlo
from engine.evaluate.monte_carlo import Augmented, augment, monte_carlo_entropies
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.scenes import make_scene
from schemas.records import Prompts

KEYS = {"entropy", "H_Y", "H_A", "H_Xp", "H_Theta"}
HEIGHT, WIDTH = 288, 384  # not square: a quarter of SAM's input is padding, SAM 2 stretches


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture(scope="module")
def mini() -> Segmenter:
    return load_segmenter("sam2-mini", device="cpu")


@pytest.fixture
def without_augmentations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monte_carlo, "augment", lambda pixels, seed: [])


def picture_of(seed: int) -> np.ndarray:
    return make_scene(seed, WIDTH).image[:HEIGHT]


def points_in(seed: int, objects: int, points: int) -> np.ndarray:
    """Random pixels of the scene's first objects that are in the picture, NP2."""
    rng = np.random.default_rng(seed)
    masks = [m.mask[:HEIGHT] for m in make_scene(seed, WIDTH).masks if m.mask[:HEIGHT].sum() > 100]
    pixels = [rng.permutation(np.argwhere(mask))[:points, ::-1] for mask in masks[:objects]]
    return np.stack(pixels).astype(np.float32)


def sample(
    segmenter: Segmenter, picture: Augmented, points_P2: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each point the map of the best output and the weighted one, 128 x 128: by other means than the tool's."""
    points = points_P2.copy()
    if picture.mirrored:
        points[:, 0] = WIDTH - 1 - points[:, 0]
    p = len(points)
    decoded = segmenter.decode(
        segmenter.embed([picture.pixels_HW3]),
        Prompts(
            torch.zeros(p, dtype=torch.int64),
            torch.from_numpy(points)[:, None],
            torch.ones(p, 1, dtype=torch.int64),
        ),
    )
    rows, columns = (int(side) for side in segmenter.mask_extent((HEIGHT, WIDTH)))
    stretched = functional.interpolate(
        decoded.logits_NMhw[:, :, :rows, :columns], (128, 128), mode="bilinear"
    )
    maps = stretched.sigmoid().double().numpy()
    if picture.mirrored:
        maps = maps[..., ::-1]
    scores = decoded.iou_NM.double().numpy().clip(0)
    best = [outputs[score.argmax()] for outputs, score in zip(maps, scores, strict=True)]
    return best, [np.average(outputs, 0, score) for outputs, score in zip(maps, scores, strict=True)]


def entropy_within(maps: list[np.ndarray], judged: np.ndarray) -> float:
    rows, columns = np.nonzero(judged > 0.5)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    mean = np.mean(maps, 0)[box]
    return float((entr(mean) + entr(1 - mean)).mean() / np.log(2))


def test_each_entropy_is_that_of_the_mean_over_its_own_samples(nano: Segmenter, mini: Segmenter) -> None:
    pixels, points_NP2 = picture_of(7), points_in(7, objects=1, points=2)
    got = monte_carlo_entropies(pixels, points_NP2, nano, mini, seed=4)
    pictures = [Augmented("plain", pixels), *augment(pixels, 4)]
    small = [sample(nano, picture, points_NP2[0]) for picture in pictures]
    large = [sample(mini, picture, points_NP2[0]) for picture in pictures]
    judged = small[0][0][0]
    expected = {
        "entropy": [judged],
        "H_Theta": [best[0] for best, _ in small + large],
        "H_Xp": [each for best, _ in small for each in best],
        "H_A": [mixed[0] for _, mixed in small],
        "H_Y": [each for _, mixed in small + large for each in mixed],
    }
    assert got.keys() == expected.keys() == KEYS
    for key, maps in expected.items():
        assert got[key][0] == pytest.approx(entropy_within(maps, judged), abs=1e-4), key
    assert len({round(got[key][0], 3) for key in KEYS}) == 5


def test_a_mirrored_picture_is_mirrored_back(nano: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects at one side: left as it is, the mirrored map would lie beside the plain one, and be half of the mean."""
    pixels = picture_of(2)
    points_NP2 = points_in(2, objects=5, points=1)
    points_NP2 = points_NP2[np.abs(points_NP2[:, 0, 0] - WIDTH / 2) > WIDTH / 8]
    mirrored = [Augmented("flip", pixels[:, ::-1].copy(), mirrored=True)]
    monkeypatch.setattr(monte_carlo, "augment", lambda pixels, seed: mirrored)
    undone = monte_carlo_entropies(pixels, points_NP2, nano, None)
    assert len(points_NP2) >= 2
    assert (np.abs(undone["H_Xp"] - undone["entropy"]) < 0.1).all()


@pytest.mark.usefixtures("without_augmentations")
def test_samples_that_agree_are_as_unsure_as_one(nano: Segmenter) -> None:
    points_NP2 = points_in(5, objects=2, points=1).repeat(4, 1)
    same = monte_carlo_entropies(picture_of(5), points_NP2, nano, nano)
    np.testing.assert_allclose(same["H_Theta"], same["entropy"], atol=1e-5)
    np.testing.assert_allclose(same["H_Xp"], same["entropy"], atol=1e-5)
    np.testing.assert_allclose(same["H_Y"], same["H_A"], atol=1e-5)


@pytest.mark.usefixtures("without_augmentations")
def test_objects_are_judged_together_as_each_alone(nano: Segmenter) -> None:
    pixels, points_NP2 = picture_of(6), points_in(6, objects=5, points=8)  # 40 prompts, two chunks
    together = monte_carlo_entropies(pixels, points_NP2, nano, None)
    assert len(points_NP2) == 5
    for n in (0, 3, 4):
        alone = monte_carlo_entropies(pixels, points_NP2[n : n + 1], nano, None)
        for key in KEYS:
            assert together[key][n] == pytest.approx(alone[key][0], abs=1e-5, nan_ok=True), key


def test_a_clear_object_is_surer_than_noise(nano: Segmenter) -> None:
    clear = np.full((256, 256, 3), 40, np.uint8)
    cv2.circle(clear, (90, 120), 40, (230, 200, 60), -1)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    points_NP2 = np.array([[[90, 120], [80, 110]]], np.float32)
    sure, unsure = (monte_carlo_entropies(pixels, points_NP2, nano, None) for pixels in (clear, noise))
    # One answer alone may be sure that there is nothing; asked in other ways it says something else each time.
    for key in ("H_Y", "H_A", "H_Xp"):
        assert 0 <= sure[key][0] < unsure[key][0] - 0.1, key
        assert unsure[key][0] <= 1


def test_without_a_larger_model_only_its_entropy_is_missing_and_a_seed_settles_the_rest(
    nano: Segmenter,
) -> None:
    points_NP2 = points_in(5, objects=2, points=1)
    first = monte_carlo_entropies(picture_of(5), points_NP2, nano, None, seed=1)
    assert np.isnan(first.pop("H_Theta")).all()
    for values in first.values():
        assert values.dtype == np.float64
        assert values.shape == (len(points_NP2),)
        assert ((values > 0) & (values <= 1)).all()

    again = monte_carlo_entropies(picture_of(5), points_NP2, nano, None, seed=1)
    for key, values in first.items():
        assert np.array_equal(again[key], values), f"{key}: another number from the same seed"


def test_an_empty_mask_is_judged_at_its_point(nano: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, points_NP2 = picture_of(5), points_in(5, objects=1, points=1)
    monkeypatch.setattr(nano, "mask_threshold", 50.0)  # no pixel is as sure as that
    got = monte_carlo_entropies(pixels, points_NP2, nano, None)
    (judged,), _ = sample(nano, Augmented("plain", pixels), points_NP2[0])
    x, y = points_NP2[0, 0]
    p = judged[int((y + 0.5) * 128 / HEIGHT), int((x + 0.5) * 128 / WIDTH)]
    assert got["entropy"][0] == pytest.approx((entr(p) + entr(1 - p)) / np.log(2), abs=1e-4)


def test_no_objects_have_no_entropies(nano: Segmenter, mini: Segmenter) -> None:
    for larger in (mini, None):
        nothing = monte_carlo_entropies(picture_of(0), np.zeros((0, 8, 2), np.float32), nano, larger)
        assert nothing.keys() == KEYS
        assert all(values.shape == (0,) and values.dtype == np.float64 for values in nothing.values())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pixels, points: (pixels, points[:, 0]), "points_NP2"),
        (lambda pixels, points: (pixels, points[:, :0]), "points_NP2"),
        (lambda pixels, points: (pixels, points * np.nan), "finite"),
        (lambda pixels, points: (pixels / 255, points), "uint8"),
    ],
)
def test_what_is_no_image_or_no_points_is_refused(
    nano: Segmenter, spoil: Callable[..., tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    pixels, points_NP2 = spoil(picture_of(0), np.ones((1, 8, 2), np.float32))
    with pytest.raises(ValueError, match=message):
        monte_carlo_entropies(pixels, points_NP2, nano, None)


def test_a_picture_is_augmented_in_five_ways() -> None:
    pixels = picture_of(11)  # red and blue are far apart
    before = pixels.copy()
    pictures = {picture.name: picture for picture in augment(pixels, seed=0)}
    assert list(pictures) == ["jpeg-10", "jpeg-30", "noise", "blur", "flip"]
    assert np.array_equal(pixels, before)
    assert [name for name, picture in pictures.items() if picture.mirrored] == ["flip"]
    assert np.array_equal(pictures["flip"].pixels_HW3, pixels[:, ::-1])

    error = {name: np.abs(picture.pixels_HW3 - pixels.astype(float)) for name, picture in pictures.items()}
    assert all(
        p.pixels_HW3.dtype == np.uint8 and p.pixels_HW3.shape == pixels.shape for p in pictures.values()
    )
    assert 0 < error["jpeg-30"].mean() < error["jpeg-10"].mean() < error["noise"].mean()
    # Channels keep their places.
    assert max(error[name].mean() for name in ("jpeg-10", "blur")) < 15
    assert pictures["noise"].pixels_HW3.std() > pixels.std() > pictures["blur"].pixels_HW3.std()
    noises = [augment(pixels, seed)[2].pixels_HW3 for seed in (0, 0, 1)]
    assert np.array_equal(noises[0], noises[1])
    assert not np.array_equal(noises[0], noises[2])
