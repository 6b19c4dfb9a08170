"""A user who wants most masks in less time asks the finer points only where the coarse ones promise more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.generate.generator import generate_masks
from engine.generate.surrogate import STEPS, Surrogate
from engine.masks.rle import mask_iou
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.records import Decoded, Embedding, Prompts
from schemas.settings import GenerateSettings


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu", precision="fp32")


@pytest.mark.parametrize("side", [1, 2, 7, 32, 70])
def test_every_point_is_asked_where_each_is_promising(side: int) -> None:
    surrogate = Surrogate(torch.rand(4, 9, 9, generator=torch.Generator().manual_seed(0)), (1.0, 0.7), side)
    asked_P = surrogate.first_points()
    assert asked_P.sum() == max(1, (side + 1) // 3) ** 2
    good_P = np.full(side**2, 0.9)
    first_P = asked_P.copy()
    for step in range(1, STEPS + 1):
        next_P = surrogate.next_points(asked_P, good_P, good_P > 0, 0.4, all_at_once=step == STEPS)
        assert not (next_P & asked_P).any(), "none twice"
        asked_P |= next_P
    assert asked_P.all()
    if side > 9:
        bad_P = np.full(side**2, 0.1)
        assert not surrogate.next_points(first_P, bad_P, bad_P > 1, 0.4, all_at_once=True).any()


def test_few_points_do_not_speak_for_all() -> None:
    surrogate = Surrogate(torch.ones(1, 8, 8), (1.0, 1.0), 4)
    first_P = surrogate.first_points()
    assert first_P.sum() == 1
    nearly_P = np.full(16, 0.34)
    assert surrogate.next_points(first_P, nearly_P, nearly_P > 1, 0.4, all_at_once=True).sum() > 7


def test_without_a_threshold_any_promise_will_do() -> None:
    surrogate = Surrogate(torch.zeros(1, 8, 8), (1.0, 1.0), 12)
    first_P = surrogate.first_points()
    below_P = np.full(144, -0.1)
    assert surrogate.next_points(first_P, below_P, first_P, -np.inf, all_at_once=True).sum() == 144 - 16


def test_only_points_near_a_promising_one_are_asked() -> None:
    surrogate = Surrogate(torch.ones(1, 8, 8), (1.0, 1.0), 16)
    asked_P = surrogate.first_points()
    promise_RC = np.full((16, 16), 0.1)
    promise_RC[7, 7] = 0.9
    next_P = surrogate.next_points(asked_P, promise_RC.ravel(), asked_P, 0.5, all_at_once=True)
    rows, columns = np.divmod(next_P.nonzero()[0], 16)
    assert len(rows) > 3
    assert np.hypot(rows - 7, columns - 7).max() <= 3


def test_points_are_asked_where_it_looks_like_where_masks_were_found() -> None:
    rows, columns = np.indices((24, 24))
    here_RC, there_RC = columns < 6, (abs(columns - 16) < 2) & (abs(rows - 12) < 2)
    promise_P = np.where(here_RC, 0.9, 0.1).ravel()
    asked = {}
    for name, things_RC in (("like them", here_RC | there_RC), ("like the rest", here_RC)):
        features = torch.from_numpy(np.stack([things_RC, ~things_RC]).astype(np.float32))
        surrogate = Surrogate(features, (1.0, 1.0), 24)
        asked_P = surrogate.first_points() & ~there_RC.ravel()  # what lies there is not known yet
        next_P = surrogate.next_points(asked_P, promise_P, promise_P > 0.5, 0.5, all_at_once=True)
        asked[name] = next_P[there_RC.ravel()].mean()
    assert asked["like them"] > 0.5
    assert asked["like the rest"] == 0


def test_points_whose_masks_the_filters_drop_are_not_asked() -> None:
    promise_P = np.full(24**2, 0.9)
    half_P = np.arange(24**2) % 24 < 12
    surrogate = Surrogate(torch.ones(1, 8, 8), (1.0, 1.0), 24)
    next_P = surrogate.next_points(surrogate.first_points(), promise_P, half_P, 0.4, all_at_once=True)
    assert next_P[half_P & ~surrogate.first_points()].all()
    assert next_P[np.arange(24**2) % 24 > 14].mean() < 0.05  # corners, of which less is known


def test_settings_that_name_the_grid_are_those_of_older_stores() -> None:
    assert 'points"' not in GenerateSettings().canonical()
    assert GenerateSettings(points="grid").canonical() == GenerateSettings().canonical()
    assert GenerateSettings(points="adaptive").canonical() != GenerateSettings().canonical()


def test_where_everything_passes_the_adaptive_points_are_the_grid(nano: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    settings = GenerateSettings(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    [grid] = generate_masks(nano, [image], settings)
    [adaptive] = generate_masks(nano, [image], settings.model_copy(update={"points": "adaptive"}))
    assert len(grid)
    assert sorted(grid.rles) == sorted(adaptive.rles)


def test_crops_and_tiles_of_any_size_take_adaptive_points(nano: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8)
    settings = GenerateSettings(
        points="adaptive", points_per_side=6, crop_n_layers=1, tile_size=120, pred_iou_thresh=0.1
    )
    [some] = generate_masks(nano, [image], settings)
    [full] = generate_masks(nano, [image], settings.model_copy(update={"points": "grid"}))
    assert len(full) >= len(some) > 0.5 * len(full)
    assert {tuple(crop) for crop in some.rows_N["crop"]} == {tuple(crop) for crop in full.rows_N["crop"]}


def test_fewer_points_find_nearly_all_masks(
    nano: Segmenter, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    decode = nano.decode

    def count(embedding: Embedding, prompts: Prompts, **more: Any) -> Decoded:
        asked.append(len(prompts.image_index_N))
        return decode(embedding, prompts, **more)

    monkeypatch.setattr(nano, "decode", count)
    folders = (shared_data / "nuclei/labelled/images", shared_data / "everyday/images")
    images = [np.array(Image.open(sorted(of.iterdir())[1]).convert("RGB")) for of in folders]
    found = {}
    for points in ("grid", "adaptive"):
        asked.clear()
        masks = generate_masks(nano, images, GenerateSettings(points_per_side=24, points=points))
        found[points] = masks, sum(asked)
    (grid, all_points), (adaptive, some_points) = found.values()
    assert some_points < 0.6 * all_points
    again = [
        mask_iou(full.rles, some.rles, full.height, full.width).max(1) >= 0.9
        for full, some in zip(grid, adaptive, strict=True)
    ]
    crowd, photograph = again
    assert len(crowd) > 100
    assert crowd.mean() >= 0.95
    assert len(photograph) > 0
    assert photograph.mean() >= 0.5  # of a few


@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
def test_prompts_that_are_not_drawn_still_say_what_they_promise(name: str) -> None:
    segmenter = load_segmenter(name, device="cpu", precision="fp32")
    image = np.random.default_rng(1).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    embedding = segmenter.embed([image])
    points = torch.rand(5, 1, 2, generator=torch.Generator().manual_seed(0)) * 80
    prompts = Prompts(torch.zeros(5, dtype=torch.int64), points, torch.ones(5, 1, dtype=torch.int64))
    everything = segmenter.decode(embedding, prompts)
    nothing = segmenter.decode(embedding, prompts, min_iou=everything.iou_NM.max().item())
    assert len(nothing.logits_NMhw) == 0
    assert torch.allclose(nothing.promise_P, everything.iou_NM.amax(1))
