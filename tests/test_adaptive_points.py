"""A user who wants most masks in less time asks the finer points only where the coarse ones promise more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.generate.generator import generate_masks
from engine.generate.views import View, coarse_points, plan_views, promising_points
from engine.masks.rle import mask_iou
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.records import Decoded, Embedding, Prompts
from schemas.settings import GenerateSettings


def whole_view(side: int) -> View:
    return plan_views(0, (64, 64), GenerateSettings(points_per_side=side))[0]


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu", precision="fp32")


@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_a_quarter_of_the_grid_comes_first_and_reaches_every_other_point(side: int) -> None:
    view = whole_view(side)
    coarse_P = coarse_points(view)
    assert coarse_P.sum() == ((side + 1) // 2) ** 2
    every = promising_points(view, np.ones(side**2), 0.5)
    assert np.array_equal(every, ~coarse_P)
    assert not promising_points(view, np.zeros(side**2), 0.5).any()


def test_only_points_near_a_promising_one_are_asked() -> None:
    view = whole_view(9)
    promise_RC = np.zeros((9, 9))
    promise_RC[4, 4] = 0.9
    asked_RC = promising_points(view, promise_RC.ravel(), 0.5).reshape(9, 9)
    around = [(int(y), int(x)) for y, x in zip(*asked_RC.nonzero(), strict=True)]
    assert around == [(3, 4), (4, 3), (4, 5), (5, 4)], "between two, of which one promises 0.9, lies 0.45"


def test_settings_that_name_the_grid_are_those_of_older_stores() -> None:
    assert 'points"' not in GenerateSettings().canonical()
    assert GenerateSettings(points="grid").canonical() == GenerateSettings().canonical()
    assert GenerateSettings(points="adaptive").canonical() != GenerateSettings().canonical()


def test_without_a_threshold_the_adaptive_points_are_the_grid(nano: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    settings = GenerateSettings(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.5)
    [grid] = generate_masks(nano, [image], settings)
    [adaptive] = generate_masks(nano, [image], settings.model_copy(update={"points": "adaptive"}))
    assert len(grid)
    assert sorted(grid.rles) == sorted(adaptive.rles)


def test_fewer_points_find_nearly_all_masks(
    nano: Segmenter, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    decode = nano.decode

    def count(embedding: Embedding, prompts: Prompts, **more: Any) -> Decoded:
        asked.append(len(prompts.image_index_N))
        return decode(embedding, prompts, **more)

    monkeypatch.setattr(nano, "decode", count)
    path = sorted((shared_data / "nuclei/labelled/images").iterdir())[0]
    pixels = np.array(Image.open(path).convert("RGB"))
    found = {}
    for points in ("grid", "adaptive"):
        asked.clear()
        [masks] = generate_masks(nano, [pixels], GenerateSettings(points_per_side=24, points=points))
        found[points] = masks, sum(asked)
    (grid, all_points), (adaptive, some_points) = found.values()
    assert some_points < 0.75 * all_points
    again = mask_iou(grid.rles, adaptive.rles, grid.height, grid.width).max(1) >= 0.9
    assert len(grid) > 10
    assert again.mean() >= 0.9


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
