"""On a GPU: the same masks as on a processor, what bf16 changes, and learning. Skipped where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.generate.generator import generate_masks
from engine.learn.curriculum import Recipe
from engine.learn.data import scene_images
from engine.learn.finetuning import finetune
from engine.learn.pretrain import train
from engine.learn.training_images import human_images
from engine.masks.rle import mask_iou
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS as REGISTRY
from engine.models.segmenter import Segmenter
from engine.scenes import make_scene
from engine.uncertainty.head_files import find_heads
from engine.uncertainty.maps import Refiner
from schemas.records import Prompts
from schemas.settings import FinetuneSettings, GenerateSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MODELS = ["sam-nano", "sam2-mini"]
GRID = GenerateSettings(points_per_side=16)


def load(name: str, device: str, precision: str) -> Segmenter:
    return load_segmenter(name, device=device, precision=precision)  # type: ignore[arg-type]


def decode_points(segmenter: Segmenter, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.from_numpy(np.random.default_rng(0).uniform(0, 384, (64, 1, 2)).astype(np.float32))
    prompts = Prompts(torch.zeros(64, dtype=torch.int64), points, torch.ones(64, 1, dtype=torch.int64))
    decoded = segmenter.decode(segmenter.embed([image]), prompts)
    return decoded.logits_NMhw.float().cpu(), decoded.iou_NM.float().cpu()


@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_says_what_a_processor_says(name: str) -> None:
    image = make_scene(3, 384).image
    said = [decode_points(load(name, device, "fp32"), image) for device in ("cpu", "cuda")]
    (logits, iou), (gpu_logits, gpu_iou) = said
    assert (logits - gpu_logits).abs().max() < 1e-3
    assert (iou - gpu_iou).abs().max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_chosen_by_itself_and_changes_few_pixels(name: str) -> None:
    image = make_scene(3, 384).image
    segmenter = load_segmenter(name)
    assert (segmenter.device.type, segmenter.precision) == ("cuda", "bf16")
    logits, iou = decode_points(load(name, "cuda", "fp32"), image)
    rounded, rounded_iou = decode_points(segmenter, image)
    assert (logits - rounded).abs().max() > 1e-4, "it did round"
    same, some = (logits > 0) & (rounded > 0), (logits > 0) | (rounded > 0)
    drawn = some.any(-1).any(-1)
    overlap = (same.flatten(2).sum(2) / some.flatten(2).sum(2).clamp(min=1))[drawn]
    print(
        f"{name}: bf16 masks overlap fp32's by {overlap.mean():.4f}, IoU differs by {(iou - rounded_iou).abs().mean():.4f}"
    )
    assert overlap.mean() > 0.95
    assert (iou - rounded_iou).abs().mean() < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_masks_scores_and_maps_of_a_pool_are_those_of_a_processor(name: str) -> None:
    images = [make_scene(seed, 384).image for seed in range(4)]
    made = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        segmenter = load(name, device, precision)
        heads = find_heads(segmenter)
        assert heads is not None
        refiner = Refiner(segmenter, "self")
        made[precision if device == "cuda" else device] = generate_masks(
            segmenter, images, GRID, scorer=heads, mapper=refiner
        )
    for precision, least, apart in (("fp32", 0.999, 0.001), ("bf16", 0.95, 0.02)):
        found, scores, maps = [], [], []
        for want, have in zip(made["cpu"], made[precision], strict=True):
            assert len(want.rles) > 0
            iou = mask_iou(want.rles, have.rles, 384, 384)
            best, again = iou.argmax(1), iou.max(1)
            found += again.tolist()
            same = again > 0.95
            for name_of, differences in (("predicted_iou", scores), ("map_mean", maps)):
                ours, theirs = want.rows_N[name_of], have.rows_N[name_of][best]
                differences += np.abs(ours - theirs)[same].tolist()
        print(
            f"{name} {precision}: found again {np.mean(found):.4f}, scores {np.mean(scores):.4f}, maps {np.mean(maps):.4f}"
        )
        assert np.mean(found) > least
        assert np.mean(scores) < apart
        assert np.mean(maps) < apart


@pytest.mark.parametrize("train_what", ["decoder", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_fine_tuning_learns(name: str, train_what: str) -> None:
    segmenter = load_segmenter(name)
    images = human_images([image for image in scene_images(range(9), 256) if image.masks])
    human, pseudo = images[:3], [replace(image, human=False) for image in images[3:]]
    settings = FinetuneSettings(train=train_what, steps=10, check_every=5, rounds=3, masks=4, rate=3e-4)
    # Of three groups none is held out: the last weights count.
    made = finetune(segmenter, human, pseudo, settings)
    before = segmenter.model.state_dict()
    moved = {name for name, value in made.weights.items() if not torch.equal(value.cpu(), before[name].cpu())}
    assert all(torch.isfinite(made.weights[name]).all() for name in moved)
    assert any("mask_decoder" in name for name in moved)
    assert any("image_encoder" in name for name in moved) == (train_what == "all")


def test_pretraining_learns(tmp_path: Path) -> None:
    start = load_file(REGISTRY["sam-nano"].path)
    recipe = Recipe("sam-nano", steps=50, images=4, masks=4, dense=0.0)
    made = train(recipe, [], tmp_path, start=REGISTRY["sam-nano"].path, device="cuda", workers=2)
    assert any(not torch.equal(value, start[name]) for name, value in load_file(made).items())
    [looked] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0.3 < looked["iou"] < 1, "it began as good as it was"
