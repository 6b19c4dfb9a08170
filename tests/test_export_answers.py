"""What people said is in an export, and an export is a labelled set like any other."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from review_sides import MODEL, SIZE, disk, label_pool, write_pool

from engine.learn.answers import read_answers
from engine.learn.data import read_coco
from engine.masks.rle import decode_rle, encode_masks
from engine.pool import list_pool, read_image
from engine.store import Store, export_coco
from schemas.settings import PoolSettings

OTHER = "nano@ba9876543210"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "masks"))


@pytest.fixture
def masks(tmp_path: Path, store: Store) -> list[dict[str, Any]]:
    """Four masks of one picture, which lies beside the export."""
    return label_pool(store, write_pool(tmp_path / "pool", 1))["00.jpg"]


def answer(
    store: Store, mask: dict[str, Any], verdict: str, drawn: np.ndarray | None = None, **more: Any
) -> None:
    """A row of `labels`; what was left as it was is the mask that was shown."""
    now = datetime.now(UTC)
    number = len(store.query("FROM labels")) + 1
    rle = mask["rle"] if verdict == "correct" else None
    if drawn is not None:
        rle = encode_masks(drawn[None])[0]
    row = {
        "label_id": f"{number:032x}",
        "queue": "folder:review",
        "item_key": f"{number:032x}",
        "model": MODEL,
    }
    row |= {"task_id": "1", "annotation_id": str(number), "region": "r", "verdict": verdict, "said": verdict}
    row |= {
        "image_id": mask["image_id"],
        "mask_id": None if verdict == "new" else mask["mask_id"],
        "rle": rle,
    }
    row |= {
        "height": SIZE[0],
        "width": SIZE[1],
        "area": None if rle is None else int(decode_rle([rle], *SIZE).sum()),
    }
    row |= {"answered_at": now, "task_changed_at": now, "pulled_at": now}
    store.append("labels", [row | more])


def export(store: Store, out: Path, **options: Any) -> list[dict[str, Any]]:
    export_coco(store, str(out), **options)
    return json.loads(out.read_text())["annotations"]  # type: ignore[no-any-return]


def pixels(annotation: dict[str, Any]) -> np.ndarray:
    return decode_rle([annotation["segmentation"]["counts"]], *SIZE)[0]


def test_an_export_holds_what_people_left_mended_and_drew_and_nothing_that_they_took_away(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    deleted, nothing, fixed, untouched = masks
    answer(store, deleted, "deleted")
    answer(store, nothing, "no object")
    answer(store, fixed, "fixed", disk(2, 6), task="part")
    answer(store, fixed, "new", disk(9))
    answer(store, untouched, "skipped")
    found = {a["mask_id"]: a for a in export(store, tmp_path / "masks.json")}
    assert found.keys() == {fixed["mask_id"], untouched["mask_id"], None}
    assert found[untouched["mask_id"]]["source"] == "model"
    mended, drawn = found[fixed["mask_id"]], found[None]
    assert (mended["source"], mended["task"], mended["uncertainty"]) == (
        "people",
        "part",
        pytest.approx(fixed["uncertainty"]),
    )
    assert (pixels(mended) == disk(2, 6)).all()
    assert mended["area"] == disk(2, 6).sum()
    assert mended["bbox"] == [62 - 6, 14 - 6, 13, 13]
    assert (drawn["source"], drawn["score"], "task" in drawn) == ("people", None, False)
    assert (pixels(drawn) == disk(9)).all()


def test_a_condition_can_ask_for_what_people_said(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    answer(store, masks[0], "correct")
    out = tmp_path / "masks.json"
    assert [a["mask_id"] for a in export(store, out, where="source = 'people'")] == [masks[0]["mask_id"]]
    assert len(export(store, out, where="source = 'people' OR uncertainty < 0.75")) == 3
    assert len(export(store, out, where="uncertainty < 0.75")) == 2


def test_of_several_answers_to_a_mask_the_one_that_agrees_with_the_others_is_exported(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    answer(store, masks[0], "fixed", disk(0, 5), agreement=0.4)
    answer(store, masks[0], "correct", agreement=0.6)
    answer(store, masks[1], "correct", agreement=0.0)
    answer(store, masks[1], "deleted", agreement=0.0)
    found = {a["mask_id"]: a for a in export(store, tmp_path / "masks.json")}
    assert (pixels(found[masks[0]["mask_id"]]) == disk(0)).all()
    assert masks[1]["mask_id"] not in found


def test_a_missing_object_that_two_annotators_drew_is_exported_and_learnt_from_once(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    for radius, agreement in ((7, 0.6), (8, 0.8), (9, 0.7)):
        answer(store, masks[0], "new", disk(9, radius), agreement=agreement)
    answer(store, masks[0], "new", disk(11), agreement=0.5)
    found = export(store, tmp_path / "masks.json", where="source = 'people'")
    assert sorted(a["area"] for a in found) == sorted(int(of.sum()) for of in (disk(9, 8), disk(11)))
    [image] = read_answers(store)
    assert {mask.area for mask in image.masks} == {a["area"] for a in found}
    assert len(image.masks) == 2


def test_an_object_and_a_large_part_of_it_that_people_drew_stay_two(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    pulled = {"pulled_at": datetime.now(UTC)}
    one, other = {"annotation_id": "one", **pulled}, {"annotation_id": "other", **pulled}
    answer(store, masks[0], "new", disk(9, 9), agreement=0.9, **one)
    answer(store, masks[0], "new", disk(9, 7), agreement=0.9, **one)
    answer(store, masks[0], "new", disk(9, 9), agreement=0.8, **other)
    answer(store, masks[0], "new", disk(9, 7), agreement=0.8, **other)
    answer(store, masks[0], "new", disk(11), task="part", **one)
    answer(store, masks[0], "new", disk(11), task="salient", **other)
    found = export(store, tmp_path / "masks.json", where="source = 'people'")
    drawn = (disk(9, 9), disk(9, 7), disk(11), disk(11))
    assert sorted(a["area"] for a in found) == sorted(int(of.sum()) for of in drawn)
    assert sorted(a["task"] for a in found if "task" in a) == ["part", "salient"]


def test_answers_about_a_former_version_stand_for_the_same_objects_of_a_new_one(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    label_pool(store, tmp_path / "pool", model=OTHER, tag="second", radius=8)
    answer(store, masks[0], "fixed", disk(0, 10))
    answer(store, masks[1], "deleted")
    annotations = export(store, tmp_path / "masks.json", model=OTHER)
    assert sorted(a["source"] for a in annotations) == ["model", "model", "people"]
    [mended] = [a for a in annotations if a["source"] == "people"]
    assert (pixels(mended) == disk(0, 10)).all()
    assert not any((pixels(a) & disk(1)).any() for a in annotations)


def test_an_export_is_read_back_wherever_it_lies(
    store: Store, masks: list[dict[str, Any]], tmp_path: Path
) -> None:
    [item] = list_pool(str(tmp_path / "pool"), PoolSettings())
    true_HW3 = read_image(item, PoolSettings()).pixels
    answer(store, masks[0], "correct", task="salient")
    (tmp_path / "elsewhere").mkdir()
    for out, name in (
        (tmp_path / "annotations.json", "pool/00.jpg"),
        (tmp_path / "elsewhere" / "annotations.json", str(tmp_path / "pool" / "00.jpg")),
    ):
        export_coco(store, str(out))
        [record] = json.loads(out.read_text())["images"]
        assert (record["file_name"], record["uri"]) == (name, item.uri)
        [image] = read_coco(out.parent)
        assert sorted(mask.task for mask in image.masks) == ["entity", "entity", "entity", "salient"]
        assert any((mask.decode() == disk(0)).all() for mask in image.masks)
        assert (image.load() == true_HW3).all()


def test_an_export_of_a_pool_in_a_storage_is_read_back_from_there(store: Store, tmp_path: Path) -> None:
    picture = write_pool(tmp_path / "pictures", 1) / "00.jpg"
    fsspec.filesystem("memory").pipe_file("/exported-pool/00.jpg", picture.read_bytes())
    label_pool(store, "memory://exported-pool")  # type: ignore[arg-type]
    out = tmp_path / "annotations.json"
    export_coco(store, str(out))
    [image] = read_coco(out)
    assert image.name == "memory://exported-pool/00.jpg"
    assert image.load().shape == (*SIZE, 3)
