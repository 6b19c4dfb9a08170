"""A pool that was moved and labelled again: the rows of where it lay stay in the store, and its pictures are had from where they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from review_sides import MODEL, FolderSide, label_pool, write_pool

from engine.learn.data import read_coco
from engine.report.mask_picture import draw_mask_picture
from engine.report.round_gallery import draw_gallery
from engine.report.stored_sheet import draw_sheet
from engine.review.push import push_masks
from engine.store import Store, export_coco
from tasks.results import most_uncertain


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "masks"))


@pytest.fixture
def masks(store: Store, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Of two pictures, labelled where they lay and again where they lie; the old address comes first by name."""
    label_pool(store, write_pool(tmp_path / "a-pool", 2))
    (tmp_path / "a-pool").rename(tmp_path / "renamed")
    return label_pool(store, tmp_path / "renamed")


def test_the_sheet_and_the_picture_of_a_mask_show_a_moved_pool(
    store: Store, masks: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert draw_sheet(store, tmp_path / "sheet.png") == []
    mask_id = masks["00.jpg"][0]["mask_id"]
    assert draw_mask_picture(store, mask_id, tmp_path / "mask.png").is_file()
    assert {Path(row["uri"]).parent for row in most_uncertain(store, MODEL)} == {
        Path(f"file:/{tmp_path}/renamed")
    }


def test_people_are_asked_about_a_moved_pool(
    store: Store, masks: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    report = push_masks(store, FolderSide(tmp_path / "queue").queue, 20)
    assert (report.masks, report.left_out) == (8, [])


def test_the_gallery_of_a_report_shows_a_moved_pool(
    store: Store, masks: dict[str, list[dict[str, Any]]]
) -> None:
    gallery = store.read(lambda snapshot: draw_gallery(snapshot, MODEL))
    assert (len(gallery.pictures), gallery.missing) == (8, [])


@pytest.mark.parametrize("moved_back", [False, True])
def test_an_export_names_the_files_where_they_lie(
    store: Store, masks: dict[str, list[dict[str, Any]]], tmp_path: Path, moved_back: bool
) -> None:
    place = tmp_path / "renamed"
    if moved_back:
        place = place.rename(tmp_path / "a-pool")
    out = tmp_path / "annotations.json"
    export_coco(store, str(out))
    assert {record["uri"] for record in json.loads(out.read_text())["images"]} == {
        f"file://{place}/{name}" for name in masks
    }
    assert all(image.load().any() for image in read_coco(out))


def test_an_export_of_a_pool_that_is_gone_names_where_it_was_last(
    store: Store, masks: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    (tmp_path / "renamed").rename(tmp_path / "away")
    out = tmp_path / "annotations.json"
    export_coco(store, str(out))
    names = [record["file_name"] for record in json.loads(out.read_text())["images"]]
    assert names == ["renamed/00.jpg", "renamed/01.jpg"]
