"""COCO files as users have them: exported by other tools, merged, cut, and mended by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coco_folder import write_coco

from engine.learn.answers import read_lessons
from engine.learn.data import read_coco
from engine.store import Store
from flows.cli import main
from schemas.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set", range(950_000, 950_002))


def change(folder: Path, at: str = "annotations", **changes: object) -> Path:
    """Change the first image or annotation; ... takes a key away."""
    path = folder / "annotations.json"
    content: dict[str, Any] = json.loads(path.read_text())
    first = content[at][0]
    content[at][0] = {key: value for key, value in (first | changes).items() if value is not ...}
    path.write_text(json.dumps(content))
    return folder


OUTSIDE = [500, 500, 600, 500, 600, 600]


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        None,
        ...,
        [OUTSIDE],
        [[5, 5, 5, 5, 5, 5]],
        [[1, 2, 3, 4]],
        {"size": [128, 128], "counts": [128 * 128]},
    ],
    ids=str,
)
def test_boxes_without_a_mask_are_left_out_and_counted(
    segmentation: object, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_coco(folder)
    assert not caplog.text
    after = read_coco(change(folder, segmentation=segmentation))
    assert after[0].masks == before[0].masks[1:]
    assert after[1].digest == before[1].digest
    [record] = caplog.records
    assert (
        "annotations.json: 1 annotations have no mask and are left out. First: annotation 0" in record.message
    )


def test_an_image_of_which_no_annotation_has_a_mask_is_no_labelled_image(folder: Path) -> None:
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] == 0:
            annotation["segmentation"] = []
    path.write_text(json.dumps(content))
    assert [image.name for image in read_coco(folder)] == ["01.png"]


def runs(counts: object, size: object = (128, 128)) -> dict[str, object]:
    return {"size": size, "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        (runs([5, -3, 10]), "run lengths that do not fill its 128 x 128 pixels"),
        (runs([5, -3, 128 * 128 - 2]), "do not fill"),
        (runs([0, 128]), "do not fill"),
        (runs([0.5, 128 * 128 - 0.5]), "do not fill"),
        (runs("garbage!!"), "do not fill"),
        (runs(""), "do not fill"),
        (runs(None), "do not fill"),
        (runs([128 * 128], size=[128]), r"run lengths of the size \[128\]; give height and width"),
        (runs([2**40], size=[2**20, 2**20]), "of the size"),
        ({"counts": [128 * 128]}, "of the size None"),
        ([[1, 2, 30, 4, 5, 60, 7]], "a polygon of 7 numbers; each point has x and y"),
        ([OUTSIDE, [1, 2, 3, 4, 5]], "a polygon of 5 numbers"),
        ([[float("nan")] * 6], "a point that is no number, or far outside"),
        ([[0, 0, 1e12, 0, 1e12, 1e12]], "far outside"),
        ([1, 2, 30, 4, 5, 60], "a polygon that is no list of numbers"),
        ([[[1, 2], [30, 4], [5, 60]]], "a polygon that is no list of numbers"),
        ([["a"] * 6], "a polygon that is no list of numbers"),
        ("mask.png", "neither polygons nor run lengths"),
    ],
    ids=str,
)
def test_a_damaged_mask_is_named_with_what_is_wrong_before_it_is_used(
    segmentation: object, says: str, folder: Path
) -> None:
    with pytest.raises(
        ConfigError, match=rf"annotations\.json: annotation 0 has .*{says}.* Mend it, or take"
    ):
        read_coco(change(folder, segmentation=segmentation))


def test_records_that_do_not_go_together_are_named(folder: Path) -> None:
    whole = (folder / "annotations.json").read_text()

    def says(at: str, **changes: object) -> str:
        (folder / "annotations.json").write_text(whole)
        with pytest.raises(ConfigError) as caught:
            read_coco(change(folder, at, **changes))
        return str(caught.value).partition("annotations.json: ")[2]

    assert says("annotations", image_id=99999).startswith(
        "annotation 0 names image 99999, which is not in images."
    )
    assert says("annotations", id=..., image_id=[0]).startswith("annotation number 1 names image [0]")
    assert says("images", id=1) == "00.png and 01.png have the same id, 1. Give each image its own."
    assert says("images", file_name=...).startswith("image number 1 has no id or no file_name.")
    polygon = [[5, 5, 25, 5, 25, 15]]
    change(folder, segmentation=polygon)
    whole = whole.replace(
        json.dumps(json.loads(whole)["annotations"][0]["segmentation"]), json.dumps(polygon)
    )
    for height in (..., "128", 0):
        assert says("images", height=height).startswith(
            "annotation 0 is of 00.png, which has no height and width in pixels."
        )


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"images": []}', '{"images": [1], "annotations": []}'])
def test_another_json_is_told_without_an_exception_of_python(text: str, folder: Path) -> None:
    (folder / "annotations.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"annotations\.json is not a readable COCO file \([\w :()]+\); give a"
    ):
        read_coco(folder)


def test_a_task_that_does_not_exist_is_refused_before_anything_learns_or_is_judged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, task="entitty")
    with pytest.raises(ConfigError, match=r"annotation 0 has the task 'entitty', .* Did you mean 'entity'"):
        read_lessons([folder], None)
    store = tmp_path / "masks"
    Store(str(store)).record_model(
        {"model": "sam-nano@0", "name": "sam-nano", "version": "0", "package": "segment-anything"}
        | {"source": "sam-nano", "sha256": "0" * 64, "parameters": 1, "image_size": 512}
    )
    with pytest.raises(SystemExit, match="1"):
        main(["models", "promote", "sam-nano", "--store", str(store), "--data", str(folder)])
    assert "annotation 0 has the task 'entitty'" in " ".join(capsys.readouterr().err.split())
