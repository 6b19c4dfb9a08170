"""Settings and images at the edge of what the generator is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.generate.defaults import complete_settings
from engine.generate.filters import suppress
from engine.generate.generator import generate_masks
from engine.generate.records import MASK_ROW
from engine.mask_maker import MaskMaker
from engine.models.loading import load_segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.scenes import make_scene
from engine.store import Store
from schemas.records import Prompts
from schemas.settings import GenerateSettings, PoolSettings


def test_thresholds_nobody_chose_are_those_that_suit_the_model() -> None:
    nano = load_segmenter("sam-nano", device="cpu")
    own = complete_settings(GenerateSettings(points_per_side=8), nano)
    assert own.points_per_side == 8
    assert own.pred_iou_thresh is not None
    assert own.pred_iou_thresh < 0.88, "small models score themselves lower than the package's default"
    chosen = complete_settings(GenerateSettings(pred_iou_thresh=0.0), nano)
    assert (chosen.pred_iou_thresh, chosen.stability_score_thresh) == (0.0, own.stability_score_thresh)
    nano.name = "a-fine-tuned-vit"
    theirs = complete_settings(GenerateSettings(), nano)
    assert (theirs.pred_iou_thresh, theirs.stability_score_thresh) == (0.88, 0.95)


def test_settings_written_down_and_read_again_choose_nothing_more() -> None:
    settings = GenerateSettings(points_per_side=8)
    assert GenerateSettings.model_validate_json(settings.model_dump_json()) == settings
    assert complete_settings(
        GenerateSettings(**settings.model_dump()), load_segmenter("sam-nano", device="cpu")
    ) == complete_settings(settings, load_segmenter("sam-nano", device="cpu"))


@pytest.mark.parametrize("model", ["sam-nano", "sam2-mini"])
@pytest.mark.parametrize("size", [(2, 2000), (2000, 1), (1, 1)])
def test_a_line_of_pixels_is_an_image_too(model: str, size: tuple[int, int]) -> None:
    """Scaled to the model's input, its short side would round to nothing."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2 + 1, : size[1] // 2] = 255
    settings = GenerateSettings(
        points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=1
    )
    [masks] = generate_masks(load_segmenter(model, device="cpu"), [pixels], settings)
    assert (masks.height, masks.width) == size
    assert (masks.rows_N["area"] <= size[0] * size[1]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("model", ["sam-nano", "sam2-mini"])
def test_a_gpu_is_taken_by_itself_and_works_in_bf16(model: str) -> None:
    on_gpu, on_cpu = load_segmenter(model), load_segmenter(model, device="cpu")
    assert (on_gpu.device.type, on_gpu.precision) == ("cuda", "bf16")
    pixels = make_scene(3).image
    prompts = Prompts(
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([[[120.0, 200.0]]]),
        torch.ones(1, 1, dtype=torch.int64),
    )
    masks = [s.decode(s.embed([pixels]), prompts).logits_NMhw.cpu() > 0 for s in (on_gpu, on_cpu)]
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.9


def test_a_pool_with_a_picture_of_one_pixel_is_labelled_with_crops(tmp_path: Path) -> None:
    """Its crop is the picture once more."""
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    settings = GenerateSettings(
        points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=2
    )
    store = Store(str(tmp_path / "store"))
    maker = MaskMaker(load_segmenter("sam-nano", device="cpu"), settings)
    Pseudolabeller(maker, store, PoolSettings()).label(list(list_pool(str(tmp_path), PoolSettings())))
    [row] = store.query("SELECT count(*) AS masks, count(DISTINCT mask_id) AS ids FROM masks").to_pylist()
    assert row["masks"] == row["ids"] == 1, "there is one mask of one pixel"


def test_of_masks_of_the_same_pixel_the_best_is_kept() -> None:
    """Beside them a larger mask over it, which the packages do not hold against it."""
    rows = np.zeros(4, MASK_ROW)
    rows["box"] = [[10, 20, 11, 21], [10, 20, 11, 21], [40, 20, 41, 21], [10, 20, 19, 29]]
    kept = suppress(rows, np.array([0.5, 0.9, 0.7, 0.95]), 0.7)
    assert kept.tolist() == [3, 1, 2]
