"""A user measures masks: boxes, stability, edges, regions, boundaries."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from segment_anything.utils import amg

from engine.masks.boundary import boundary_iou
from engine.masks.geometry import mask_boxes, remove_small_regions, touches_edge
from engine.masks.rle import decode_rle, mask_iou


def random_masks(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [ndimage.gaussian_filter(rng.standard_normal((height, width)), 2) > 0.03 for _ in range(n)]
    )


def test_boxes_are_the_packages_with_exclusive_ends() -> None:
    masks_NHW = random_masks(5, 40, 60) & (np.arange(60) > 20) & (np.arange(40) < 33)[:, None]
    masks_NHW[3] = False
    ours = mask_boxes(masks_NHW)
    theirs = amg.batched_mask_to_box(torch.from_numpy(masks_NHW)).numpy()
    theirs[[0, 1, 2, 4], 2:] += 1
    assert (ours == theirs).all()
    assert ours.dtype == np.int32


def test_boxes_at_a_crops_edge_but_not_the_images() -> None:
    crop, image = np.array([0, 100, 300, 400]), np.array([0, 0, 640, 400])
    boxes_N4 = np.array([[0, 200, 90, 300], [100, 110, 200, 300], [100, 200, 285, 300], [100, 200, 200, 400]])
    expected = [False, True, True, False]
    assert touches_edge(boxes_N4, crop, image).tolist() == expected
    local_N4 = torch.from_numpy(boxes_N4 - crop[[0, 1, 0, 1]])
    assert amg.is_box_near_crop_edge(local_N4, crop.tolist(), image.tolist()).tolist() == expected


@pytest.mark.parametrize("min_area", [5, 60, 10_000])
def test_small_regions_go_as_in_the_package(min_area: int) -> None:
    for mask in random_masks(6, 50, 70, seed=3):
        filled, changed_holes = amg.remove_small_regions(mask, min_area, "holes")
        expected, changed_islands = amg.remove_small_regions(filled, min_area, "islands")
        ours, changed = remove_small_regions(mask, min_area)
        assert (ours == expected).all()
        assert changed == (changed_holes or changed_islands)


def test_an_empty_mask_stays_empty() -> None:
    mask, changed = remove_small_regions(np.zeros((9, 9), bool), 5)
    assert not mask.any()
    assert not changed


def test_boundary_is_a_band_inside_the_mask() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 0:60] = True
    band = mask.copy()
    band[23:77, 3:57] = False  # 0.02 of the diagonal is 3 pixels
    assert boundary_iou(mask, band, 0.02) == 1
    band[0:100, 3] |= mask[0:100, 3]
    assert boundary_iou(mask, band, 0.02) < 1
    assert boundary_iou(np.zeros((9, 9), bool), np.zeros((9, 9), bool)) == 0


def test_a_boundary_is_the_same_whether_the_mask_is_cut_out_or_eroded_in_its_image() -> None:
    def band(mask: np.ndarray, ratio: float) -> np.ndarray:
        distance = max(round(ratio * float(np.hypot(*mask.shape))), 1)
        return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)

    for ratio in (0.004, 0.02, 0.2):
        for masks in (
            random_masks(6, 70, 90, seed=5),
            random_masks(3, 33, 200, seed=6) & (np.arange(200) > 150),
        ):
            for a, b in pairwise(masks):
                mine, theirs = band(a, ratio), band(b, ratio)
                assert boundary_iou(a, b, ratio) == (mine & theirs).sum() / (mine | theirs).sum()


def test_boundary_iou_equals_the_published_code(shared_data: Path) -> None:
    reference = json.loads((shared_data.parent / "reference" / "boundary_iou.json").read_text())
    annotations = json.loads((shared_data / "salient" / "annotations.json").read_text())["annotations"]
    counts = {item["id"]: item["segmentation"]["counts"] for item in annotations}
    assert len(reference["cases"]) == 20
    for case in reference["cases"]:
        truth = counts[case["annotation"]]
        masks = decode_rle([case["pred"], truth], *case["size"])
        assert boundary_iou(*masks, reference["dilation_ratio"]) == pytest.approx(
            case["boundary_iou"], abs=1e-9
        )
        assert mask_iou([case["pred"]], [truth], *case["size"])[0, 0] == pytest.approx(case["iou"], abs=1e-9)
