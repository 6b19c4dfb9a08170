"""Reading labelled images, splitting them by group, and drawing views and prompts from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.learn.augment import draw_box, draw_points, draw_view
from engine.learn.data import LabelledImage, read_coco, scene_images
from engine.learn.image_loaders import FileLoader
from engine.learn.splits import split_groups
from schemas.errors import ConfigError


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Ten images in five groups; one mask as polygon, one as uncompressed RLE, one crowd."""
    images, annotations = [], []
    for index in range(10):
        Image.new("RGB", (40, 30), (index * 20, 0, 0)).save(tmp_path / f"{index}.png")
        images.append(
            {"id": index, "file_name": f"{index}.png", "width": 40, "height": 30, "group": f"g{index // 2}"}
        )
        square = [5, 5, 25, 5, 25, 15, 5, 15]
        annotations.append({"id": 3 * index, "image_id": index, "segmentation": [square], "iscrowd": 0})
        counts = {"size": [30, 40], "counts": [0, 60, 1140]}
        annotations.append(
            {"id": 3 * index + 1, "image_id": index, "segmentation": counts, "iscrowd": 0, "task": "part"}
        )
        annotations.append({"id": 3 * index + 2, "image_id": index, "segmentation": counts, "iscrowd": 1})
    (tmp_path / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": []})
    )
    return tmp_path


def test_read_coco_with_polygons_and_run_lengths(coco: Path) -> None:
    images = read_coco(coco)
    assert len(images) == 10
    polygon, run_lengths = images[3].masks
    assert (polygon.task, polygon.area, run_lengths.task, run_lengths.area) == ("entity", 200, "part", 60)
    assert polygon.decode()[5:15, 5:25].all()
    assert run_lengths.decode()[:, :2].all()
    assert images[3].load()[0, 0].tolist() == [60, 0, 0]
    assert images[3].boxes_M4.tolist() == [[5, 5, 25, 15], [0, 0, 2, 30]]


def test_a_file_that_is_no_coco_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="annotations"):
        read_coco(tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"x\.json is not a readable COCO file"):
        read_coco(tmp_path / "x.json")


def test_the_split_never_cuts_a_group_and_does_not_depend_on_order(coco: Path) -> None:
    images = read_coco(coco)
    training, kept_out = split_groups(images)
    assert {image.group for image in kept_out} == {"g3"}
    assert not {image.group for image in training} & {image.group for image in kept_out}
    assert {i.name for i in split_groups(images[::-1])[1]} == {i.name for i in kept_out}


def images_of(groups: Iterable[str]) -> list[LabelledImage]:
    return [LabelledImage(f"{group}.png", group, "", (), lambda: np.zeros((1, 1, 3))) for group in groups]


def test_what_was_learnt_from_is_never_judged_by_when_a_set_grows() -> None:
    rng = np.random.default_rng(0)
    for start in range(40):
        groups = [f"{start}/{number:03}" for number in rng.permutation(60)]
        learnt: set[str] = set()
        for count in (2, 3, 5, 8, 20, 60):
            training, kept_out = split_groups(images_of(groups[:count]))
            assert kept_out, "of two groups one is there to judge by"
            assert not learnt & {image.group for image in kept_out}
            learnt |= {image.group for image in training}
    assert 0.15 < len(split_groups(images_of(map(str, range(1000))))[1]) / 1000 < 0.25
    assert split_groups(images_of(["06.png"]))[1] == [], "its hash is in the lowest fifth"


@pytest.fixture(scope="module")
def scene() -> LabelledImage:
    return scene_images([5], 160)[0]


@pytest.mark.parametrize("letterbox", [True, False])
def test_views_show_masks_where_their_pixels_are(letterbox: bool) -> None:
    """A white square on black stays a white square, whatever the crop, turn and scale."""
    from pycocotools import mask as coco_mask

    from engine.learn.data import LabelledMask

    pixels = np.zeros((90, 130, 3), np.uint8)
    truth = np.zeros((90, 130), bool)
    truth[30:60, 40:80] = True
    pixels[truth] = 255
    mask = LabelledMask(coco_mask.encode(np.asfortranarray(truth, np.uint8)), int(truth.sum()), "entity")
    image = LabelledImage("square", "square", "", (mask,), lambda: pixels)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        view = draw_view(rng, image, 64, (0.4, 1.4), 4, letterbox=letterbox)
        assert view is not None
        height, width = view.valid_hw
        grey = view.pixels[:height, :width].astype(int).sum(2)
        inside = view.masks_MSS[0, :height, :width]
        if inside.all() or not inside.any():
            continue
        middle = (grey[inside].mean() + grey[~inside].mean()) / 2
        agree = (grey > middle) == (inside if grey[inside].mean() > middle else ~inside)
        assert agree.mean() > 0.93, seed
        assert not view.masks_MSS[:, height:].any()


def test_prompts_lie_where_they_should(scene: LabelledImage) -> None:
    rng = np.random.default_rng(0)
    for labelled in scene.masks:
        mask = labelled.decode()
        points = draw_points(rng, mask, 5)
        assert points.shape == (5, 2)
        assert all(mask[int(y), int(x)] for x, y in points)
        x0, y0, x1, y1 = draw_box(rng, mask)
        rows, columns = np.nonzero(mask)
        slack_x, slack_y = 0.1 * (np.ptp(columns) + 1), 0.1 * (np.ptp(rows) + 1)
        assert abs(x0 - columns.min()) <= slack_x + 1e-4
        assert abs(x1 - columns.max() - 1) <= slack_x + 1e-4
        assert abs(y0 - rows.min()) <= slack_y + 1e-4
        assert abs(y1 - rows.max() - 1) <= slack_y + 1e-4


def test_box_jitter_moves_both_ways() -> None:
    mask = np.zeros((100, 100), bool)
    mask[40:60, 40:60] = True
    boxes = np.stack([draw_box(np.random.default_rng(seed), mask) for seed in range(50)])
    assert (boxes[:, 0] < 40).any()
    assert (boxes[:, 0] > 40).any()


def test_kept_out_images_of_the_shipped_weights_are_listed(shared_data: Path) -> None:
    listed = json.loads((Path(__file__).parents[1] / "weights" / "kept-out.json").read_text())
    for name, folder in (("nuclei/labelled", "nuclei/labelled"), ("everyday", "everyday")):
        kept_out = split_groups(read_coco(shared_data / folder))[1]
        assert listed[name] == sorted(image.name for image in kept_out)


def test_a_labelled_file_that_is_gone_is_named_with_what_to_do(tmp_path: Path) -> None:
    gone = LabelledImage("gone.png", "gone", "", (), FileLoader(tmp_path / "gone.png"))
    with pytest.raises(ConfigError, match=r"gone\.png cannot be read .* take it out of its COCO file"):
        gone.load()
    with pytest.raises(ConfigError, match=r"gone\.png cannot be read .* take it out of its COCO file"):
        _ = gone.fingerprint
