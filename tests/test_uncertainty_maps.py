"""Where a mask is uncertain: maps, what they cover, and whether they are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.evaluate.map_validity import evaluate_maps
from engine.learn.data import make_head_scenes
from engine.learn.losses import cell_loss, focal_loss
from engine.mask_maker import MaskMaker
from engine.models.loading import load_segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.store import Store
from engine.uncertainty.maps import Refiner, crop_maps, doubt, frame_maps
from engine.uncertainty.refiner_files import find_refiner
from schemas.settings import GenerateSettings, PoolSettings


def test_a_cell_is_as_uncertain_as_it_is_likely_to_be_wrong() -> None:
    logits = torch.tensor([[[9.0, -9.0, 0.1, -0.1, 3.0, -3.0]]])
    redrawn = torch.tensor([[[9.0, -9.0, -0.1, 0.1, -9.0, 9.0]]])
    said = doubt(logits, redrawn, 0.0)[0, 0].tolist()
    assert max(said[:2]) < 1e-3, "both are sure of it"
    assert said[2:4] == pytest.approx([0.5, 0.5]), (
        "a coin's toss for both, though the refiner changes next to nothing"
    )
    assert min(said[4:]) > 0.9, "the refiner is sure of the other side"
    assert torch.allclose(doubt(logits + 1, redrawn + 1, 1.0), doubt(logits, redrawn, 0.0), atol=1e-6)


def test_a_map_covers_its_masks_box_and_a_margin_and_ends_with_the_image() -> None:
    boxes = np.array([[40.0, 20.0, 80.0, 60.0], [0.0, 0.0, 4.0, 4.0], [150.0, 90.0, 160.0, 100.0]])
    extent, size = (25.0, 40.0), (100, 160)  # four pixels a cell
    frames = frame_maps(boxes, extent, size)
    assert frames.tolist() == [[7, 2, 23, 18], [0, 0, 3, 3], [35, 20, 40, 25]]
    crops = crop_maps(np.zeros((3, 40, 40), np.uint8), boxes, extent, size)
    assert [crop.frame for crop in crops] == [
        tuple(4.0 * cells for cells in frame) for frame in frames.tolist()
    ]
    assert [crop.values_hw.shape for crop in crops] == [(16, 16), (3, 3), (5, 5)]


def test_what_a_refiner_is_taught_is_how_often_a_cell_belongs() -> None:
    target = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2)
    near = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    chances = torch.linspace(0.05, 0.95, 19)
    drawn = [chance.logit().expand(1, 1, 2, 2) for chance in chances]
    best = int(torch.tensor([cell_loss(logits, target, near) for logits in drawn]).argmin())
    assert chances[best] == pytest.approx(0.75)
    assert int(torch.tensor([focal_loss(logits, target) for logits in drawn]).argmin()) != best
    far = near.clone()
    far[..., 1, 1] = False
    wrong = torch.tensor([5.0, 5.0, 5.0, 5.0]).view(1, 1, 2, 2)
    assert cell_loss(wrong, target, far) < cell_loss(wrong, target, near), "what is not near counts little"


def test_images_with_maps_of_another_kind_are_labelled_again(tmp_path: Path) -> None:
    segmenter = load_segmenter("sam-nano", device="cpu")
    (tmp_path / "pool").mkdir()
    Image.fromarray(np.full((40, 40, 3), 120, np.uint8)).save(tmp_path / "pool" / "grey.png")
    items = list(list_pool(str(tmp_path / "pool"), PoolSettings()))
    store = Store(str(tmp_path / "masks"))
    maker = MaskMaker(segmenter, GenerateSettings(points_per_side=2), None, Refiner(segmenter, "self"))
    now, before = maker.settings, {**json.loads(maker.settings)}
    del before["map"]
    maker.settings = json.dumps(before, sort_keys=True)
    Pseudolabeller(maker, store, PoolSettings()).label(items)
    assert Pseudolabeller(maker, store, PoolSettings()).find_pending(items) == []
    maker.settings = now
    assert Pseudolabeller(maker, store, PoolSettings()).find_pending(items) == items


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
def test_certain_cells_are_right_and_the_shipped_refiners_know_better_than_the_model(name: str) -> None:
    segmenter = load_segmenter(name, device="cpu")
    refiner = find_refiner(segmenter)
    assert refiner is not None
    assert refiner.source == "refiner"
    scenes = make_head_scenes(24, 384)  # of seeds that nothing was taught with
    result = evaluate_maps(segmenter, refiner, {"scenes": scenes})["scenes"]
    assert result["masks"] >= 20
    assert result["certain_right"] > 0.94 > 0.75 > result["rest_right"]
    assert result["separation"] > max(result["separation_confidence"], result["separation_change"])
