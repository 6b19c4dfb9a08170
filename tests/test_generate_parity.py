"""A user who moves from the packages' automatic mask generators gets the same masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import calculate_stability_score

from engine.generate.enlarge import Enlargement
from engine.generate.generator import generate_masks
from engine.generate.tables import mask_id, mask_table
from engine.masks.entropy import pixel_entropy
from engine.masks.geometry import mask_boxes
from engine.masks.rle import decode_rle, mask_iou
from engine.models.loading import load_segmenter
from engine.models.nano import build_sam2_mini, build_sam_nano
from engine.models.registry import MODELS
from engine.models.sam import SamSegmenter
from engine.models.sam2 import Sam2Segmenter
from engine.models.segmenter import Segmenter
from schemas.records import Prompts
from schemas.settings import GenerateSettings
from schemas.tables import MASKS

INPUT = 128
LOOSE = GenerateSettings(points_per_side=6, pred_iou_thresh=0.5, stability_score_thresh=0.1)


def build_segmenter(package: str) -> Segmenter:
    """A small model with random weights, whose masks are blobs and whose scores spread."""
    torch.manual_seed(0)
    model: Any = build_sam_nano(INPUT) if package == "segment-anything" else build_sam2_mini(INPUT)
    decoder = model.mask_decoder if package == "segment-anything" else model.sam_mask_decoder
    adapter = SamSegmenter if package == "segment-anything" else Sam2Segmenter
    segmenter = adapter(model, name="random", sha256="0" * 64, device="cpu")
    with torch.no_grad():
        # One feature is constant, gelu(1): its weight moves every logit by the same.
        decoder.output_upscaling[3].weight[:, 0] = 0
        decoder.output_upscaling[3].bias[0] = 1
        decoder.iou_prediction_head.layers[-1].weight *= 3
        image = np.random.default_rng(1).integers(0, 255, (INPUT, INPUT, 3), dtype=np.uint8)
        points = torch.rand(30, 1, 2) * INPUT
        prompts = Prompts(torch.zeros(30, dtype=torch.int64), points, torch.ones(30, 1, dtype=torch.int64))
        decoded = segmenter.decode(segmenter.embed([image]), prompts)
        for i, layers in enumerate(decoder.output_hypernetworks_mlps[1:]):
            logits = decoded.logits_NMhw[:, i].flatten()[::7]
            layers.layers[-1].weight *= 9 / logits.std()
            layers.layers[-1].bias *= 9 / logits.std()
            layers.layers[-1].bias[0] -= 9 / logits.std() * logits.quantile(0.9) / 0.8413
        decoder.iou_prediction_head.layers[-1].bias += 0.6 - decoded.iou_NM.median()
    return segmenter


@pytest.fixture(scope="module", params=["segment-anything", "sam2"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return build_segmenter(request.param)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(96, 150), (200, 90), (128, 128), (61, 45)]
    return [rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for height, width in shapes]


def generate_with_package(
    segmenter: Segmenter, images: Sequence[np.ndarray], settings: GenerateSettings
) -> list[list[dict[str, Any]]]:
    ours_alone = {"points", "tile_size", "tile_overlap"}
    options = settings.model_dump(exclude=ours_alone) | {"output_mode": "coco_rle"}
    if segmenter.package == "segment-anything":
        generator: Any = SamAutomaticMaskGenerator(segmenter.model, **options)
    else:
        generator = SAM2AutomaticMaskGenerator(segmenter.model, **options)
        # The package writes down the feature sizes of 1024-pixel inputs.
        generator.predictor._bb_feat_sizes = [(segmenter.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return [generator.generate(image) for image in images]


def expect_the_packages_masks(
    segmenter: Segmenter, images: list[np.ndarray], settings: GenerateSettings
) -> int:
    theirs_B = generate_with_package(segmenter, images, settings)
    ours_B = generate_masks(segmenter, images, settings)
    for image, theirs, ours in zip(images, theirs_B, ours_B, strict=True):
        height, width = image.shape[:2]
        assert len(theirs) == len(ours)
        if not theirs:
            continue
        pixels = decode_rle([mask["segmentation"]["counts"] for mask in theirs], height, width)
        # Rounding may turn a pixel that lies on the cut.
        assert (decode_rle(ours.rles, height, width) != pixels).sum() <= 2
        x0, y0, w, h = np.array([mask["bbox"] for mask in theirs]).T
        assert (np.stack([x0, y0, x0 + w + 1, y0 + h + 1], 1) == ours.rows_N["box"]).mean() > 0.99
        x0, y0, w, h = np.array([mask["crop_box"] for mask in theirs]).T
        assert (np.stack([x0, y0, x0 + w, y0 + h], 1) == ours.rows_N["crop"]).all()
        for name, column in (("predicted_iou", "sam_score"), ("area", "area")):
            np.testing.assert_allclose(
                [mask[name] for mask in theirs], ours.rows_N[column], atol=1e-3, rtol=1e-3
            )
        # The same of the two cuts that stability counts the pixels of.
        unstable = np.array([mask["stability_score"] for mask in theirs]) - ours.rows_N["stability"]
        assert (np.abs(unstable) * ours.rows_N["area"] <= 2).all()
        points = np.array([mask["point_coords"][0] for mask in theirs])
        np.testing.assert_allclose(points, ours.rows_N["point"], atol=1e-4)
    return sum(len(ours) for ours in ours_B)


def test_masks_and_scores_are_the_packages(segmenter: Segmenter, images: list[np.ndarray]) -> None:
    assert expect_the_packages_masks(segmenter, images, LOOSE.model_copy(update={"box_nms_thresh": 1.0})) > 60


def test_duplicates_go_as_in_the_packages(segmenter: Segmenter, images: list[np.ndarray]) -> None:
    many = generate_masks(segmenter, images, LOOSE.model_copy(update={"box_nms_thresh": 1.0}))
    few = expect_the_packages_masks(segmenter, images, LOOSE.model_copy(update={"box_nms_thresh": 0.9}))
    assert len(images) < few < sum(map(len, many)) / 2


def test_crops_are_the_packages(images: list[np.ndarray]) -> None:
    segmenter = build_segmenter("sam2")  # the other's random masks all touch the crops' edges
    changes = {
        "crop_n_layers": 1,
        "box_nms_thresh": 0.95,
        "crop_nms_thresh": 0.95,
        "stability_score_thresh": 0.02,
    }
    large = [images[0].repeat(3, 0).repeat(3, 1)]
    settings = LOOSE.model_copy(update=changes)
    expect_the_packages_masks(segmenter, large, settings)
    crops = {
        tuple(crop) for masks in generate_masks(segmenter, large, settings) for crop in masks.rows_N["crop"]
    }
    assert len(crops) > 3


def test_small_regions_are_mended_as_in_segment_anything(images: list[np.ndarray]) -> None:
    segmenter = build_segmenter("segment-anything")
    changes = {"min_mask_region_area": 30, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.95}
    settings = LOOSE.model_copy(update=changes)
    assert expect_the_packages_masks(segmenter, images, settings) > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
@pytest.mark.parametrize("folder", ["everyday", "nuclei/labelled"])
def test_the_shipped_models_make_the_packages_masks_on_real_images(
    name: str, folder: str, shared_data: Path
) -> None:
    if not MODELS[name].path.exists():
        pytest.skip(f"{MODELS[name].path} is not there: make weights")
    segmenter = load_segmenter(name, device="cpu", precision="fp32")
    paths = sorted((shared_data / folder / "images").iterdir())[:: 40 if folder == "everyday" else 100]
    photographs = [np.array(Image.open(path).convert("RGB")) for path in paths]
    settings = GenerateSettings(
        points_per_side=12,
        pred_iou_thresh=0.3,
        stability_score_thresh=0.4,
        crop_n_layers=1 if name == "sam-nano" else 0,
        crop_n_points_downscale_factor=2,
    )
    theirs_B = generate_with_package(segmenter, photographs, settings)
    for theirs, ours in zip(theirs_B, generate_masks(segmenter, photographs, settings), strict=True):
        assert len(theirs) == len(ours) > 0
        counts = [mask["segmentation"]["counts"] for mask in theirs]
        assert mask_iou(counts, ours.rles, ours.height, ours.width).max(1).mean() > 0.999


def test_batches_do_not_change_the_masks(segmenter: Segmenter, images: list[np.ndarray]) -> None:
    together = generate_masks(segmenter, images, LOOSE, points_per_batch=50, images_per_batch=3)
    alone = [generate_masks(segmenter, [image], LOOSE, points_per_batch=7)[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        assert one.rles == other.rles
        np.testing.assert_allclose(one.rows_N["sam_score"], other.rows_N["sam_score"], atol=1e-5)


@pytest.mark.parametrize("size", [(96, 150), (33, 200), (500, 340), (20, 17), (5, 3), (1, 1)])
def test_enlarging_only_where_a_cut_runs_changes_nothing(segmenter: Segmenter, size: tuple[int, int]) -> None:
    grid = segmenter.grid_size
    noise = torch.randn(30, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    logits_Nhw = torch.nn.functional.interpolate(noise, (grid, grid), mode="bicubic")[:, 0] * 5 - 2
    logits_Nhw[0], logits_Nhw[1] = -9, 9
    enlargement = Enlargement(segmenter, size)
    measures = enlargement.measure(logits_Nhw, 0.0, 1.0)
    full_NHW = segmenter.upscale(logits_Nhw, size)
    masks_NHW = (full_NHW > 0).numpy()
    torch.testing.assert_close(
        measures.stability_N, calculate_stability_score(full_NHW, 0.0, 1.0), atol=1e-4, rtol=0, equal_nan=True
    )
    assert np.abs(measures.area_N.numpy() - masks_NHW.sum((1, 2))).max() <= 1
    assert (measures.boxes_N4.numpy() == mask_boxes(masks_NHW)).mean() > 0.99
    for crop, mask, (x0, y0, x1, y1) in zip(
        enlargement.draw(logits_Nhw, 0.0, measures.boxes_N4),
        masks_NHW,
        measures.boxes_N4.tolist(),
        strict=True,
    ):
        assert (crop != mask[y0:y1, x0:x1]).sum() <= 1


def test_entropy_is_that_of_the_cells_in_the_box(segmenter: Segmenter, images: list[np.ndarray]) -> None:
    [masks] = generate_masks(segmenter, images[:1], LOOSE)
    embedding = segmenter.embed(images[:1])
    (height, width), (rows, columns) = images[0].shape[:2], segmenter.mask_extent(images[0].shape[:2])
    assert len(masks)
    for row in masks.rows_N:
        point = torch.from_numpy(row["point"].copy())[None, None]
        prompts = Prompts(torch.zeros(1, dtype=torch.int64), point, torch.ones(1, 1, dtype=torch.int64))
        logits_hw = segmenter.decode(embedding, prompts).logits_NMhw[0, row["output_index"]]
        x0, y0, x1, y1 = row["box"] * np.array([columns / width, rows / height] * 2)
        inside = logits_hw[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        assert pixel_entropy(inside).mean().item() == pytest.approx(row["entropy"], abs=1e-4)


def test_masks_become_rows_of_the_table(segmenter: Segmenter, images: list[np.ndarray]) -> None:
    masks = generate_masks(segmenter, images[:1], LOOSE.model_copy(update={"box_nms_thresh": 1.0}))[0]
    table = mask_table(masks, "a" * 32, "random@000000000000")
    added_at_commit = ("model", "attempt")
    columns = pa.schema([field for field in MASKS if field.name not in added_at_commit])
    assert table.schema.equals(columns, check_metadata=True)
    assert table.num_rows == len(masks)
    assert len(set(table["mask_id"].to_pylist())) == len(masks)
    again = generate_masks(segmenter, images[:1], LOOSE.model_copy(update={"box_nms_thresh": 1.0}))[0]
    assert mask_table(again, "a" * 32, "random@000000000000").equals(table)
    expected = np.clip(1 - masks.rows_N["sam_score"], 0, 1)
    np.testing.assert_array_equal(table["uncertainty"].to_numpy(), expected)
    assert set(table["uncertainty_source"].to_pylist()) == {"sam_score"}


def test_a_mask_id_tells_image_model_prompt_and_output_apart() -> None:
    base = ("a" * 32, "m@1", (0, 0, 9, 9), (1.5, 2.5), 0)
    others = [("b" * 32, *base[1:]), (base[0], "m@2", *base[2:]), (*base[:2], (0, 0, 9, 8), *base[3:])]
    others += [(*base[:3], (1.5, 2.25), 0), (*base[:4], 1)]
    ids = {mask_id(*arguments) for arguments in [base, *others]}
    assert len(ids) == 6
    assert all(len(one) == 32 for one in ids)
    assert mask_id(*base) == mask_id(*base)
