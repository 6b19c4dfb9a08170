"""Mending with the real small models: children beside their parents, one of them holds, and a kill costs nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from review_sides import FolderSide
from store_rows import image_row, tables_of
from triage_rows import decisions_of, label_row, review_row

from engine.generate.records import MASK_ROW, ImageMasks
from engine.learn.data import LabelledImage
from engine.learn.image_loaders import FileLoader, PoolLoader
from engine.learn.training_images import pseudo_labelled_images
from engine.mask_maker import MaskMaker
from engine.masks.geometry import mask_boxes
from engine.masks.map_crop import MapCrop
from engine.masks.rle import encode_masks, mask_iou, measure_rle
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.report.contact_sheet import SheetCell, draw_contact_sheet, draw_masks
from engine.report.stored_sheet import draw_sheet
from engine.review.push import push_masks
from engine.scenes import make_scene
from engine.store import Snapshot, Store, export_coco
from engine.triage.costs import Evidence, learn_costs
from engine.triage.menders import find_menders
from engine.triage.mending import RepairReport, find_pending, mend_images
from engine.triage.prompts import DENSE_POINTS, dense_points, grid_mask
from engine.triage.repair import LEAST_PARENT_IOU, Mender, Parent
from engine.triage.shard_reader import ShardReader
from engine.triage.triage import triage_masks
from engine.uncertainty.head_files import find_heads
from engine.uncertainty.refiner_files import find_refiner
from flows.cli import main
from schemas.errors import ConfigError, TransientError
from schemas.settings import AcquisitionSettings, GenerateSettings, PoolSettings, TriageSettings

FEW = GenerateSettings(points_per_side=3, pred_iou_thresh=0.3, stability_score_thresh=0.3)
# Where machines cost nothing and people much, whatever promises a gain is tried.
EAGER = learn_costs(
    Evidence(*(np.zeros(0) for _ in range(5)), promised={}, gained={}, machine_s={}),
    TriageSettings(machine_rate=0, look_s=10, gap_trust=1),
)


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture(scope="module")
def menders(nano: Segmenter) -> dict[str, Mender]:
    return find_menders(nano, None, "cpu")


@pytest.fixture(scope="module")
def labelled(nano: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures and a copy of one, and the store of their masks."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "pool").mkdir()
    for seed in (1, 2, 3):
        Image.fromarray(make_scene(seed, 128).image).save(folder / "pool" / f"{seed}.png")
    shutil.copyfile(folder / "pool" / "1.png", folder / "pool" / "copy.png")
    maker = MaskMaker(nano, FEW, find_heads(nano), find_refiner(nano))
    labeller = Pseudolabeller(maker, Store(str(folder / "masks")), PoolSettings())
    labeller.record_model()
    labeller.find_done()
    labeller.label(list(list_pool(str(folder / "pool"), PoolSettings())))
    return folder


def copy_store(labelled: Path, to: Path) -> Store:
    shutil.copytree(labelled / "masks", to / "masks")
    return Store(str(to / "masks"))


def mend(
    store: Store, model: str, menders: dict[str, Mender], *, shard: int = 32, shards: int = 99
) -> RepairReport:
    """Decide and mend as the flow does; `shards` at most, then as if killed."""
    report = RepairReport()
    while True:
        triage_masks(store, model, EAGER, tuple(menders))
        pending = [of for of in find_pending(store, model, list(menders)) if of not in report.gone]
        if not pending or not shards:
            return report
        with ShardReader(store, model, pending, list(menders)) as reader:
            for start in range(0, len(pending), shard):
                if not shards:
                    return report
                report.add(mend_images(reader, pending[start : start + shard], menders))
                shards -= 1


@pytest.fixture(scope="module")
def mended(
    nano: Segmenter,
    menders: dict[str, Mender],
    labelled: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Store, RepairReport]:
    """The store when nothing is left to mend; not to be changed."""
    store = copy_store(labelled, tmp_path_factory.mktemp("mended"))
    return store, mend(store, nano.model_id, menders)


def masks_of(store: Store) -> dict[str, dict[str, Any]]:
    """Rows of masks by id, without what every commit writes anew."""
    return {row["mask_id"]: row for row in store.query("SELECT * EXCLUDE (attempt) FROM masks").to_pylist()}


def test_children_have_their_parent_and_everything_that_a_mask_has(
    mended: tuple[Store, RepairReport], labelled: Path, nano: Segmenter, menders: dict[str, Mender]
) -> None:
    store, report = mended
    before, after = masks_of(Store(str(labelled / "masks"))), masks_of(store)
    children = [row for row in after.values() if row["repair"]]
    assert {row["repair"] for row in children} == {"larger model", "better prompt"} == set(report.tried)
    for name, row in before.items():
        assert {**after[name], "replaced_by": None} == row, "what was there stays as it was"
    heads = {of.segmenter.model_id: of.heads.version for of in menders.values()}
    for row in children:
        parent = after[row["parent_mask_id"]]
        assert row["decoded_by"] != nano.model_id
        assert row["decoded_by"] is not None or row["repair"] == "better prompt"
        assert row["heads"] == heads[row["decoded_by"] or nano.model_id]
        assert row["image_id"] == parent["image_id"]
        assert row["model"] == nano.model_id
        assert row["uncertainty"] == pytest.approx(1 - row["predicted_iou"], abs=1e-6)
        area, box = measure_rle([row["rle"]], row["height"], row["width"])
        assert (row["area"], [row[edge] for edge in ("x0", "y0", "x1", "y1")]) == (area[0], box[0].tolist())
    drawn = {row["mask_id"] for row in children if row["area"]}
    assert len(drawn) > 10
    for table in ("maps", "embeddings"):
        rows = store.query(f"SELECT mask_id FROM {table}").to_pylist()
        assert sorted(row["mask_id"] for row in rows) == sorted({*before, *drawn})
    counts = store.query(
        "SELECT uri, n_masks, (SELECT count(*) FROM masks m WHERE m.image_id = i.image_id) AS there FROM images i"
    ).to_pylist()
    assert len(counts) == 4, "the copy is still a copy"
    assert all(row["n_masks"] == row["there"] for row in counts)


def test_of_parent_and_child_the_better_holds_and_it_is_of_the_same_object(
    mended: tuple[Store, RepairReport],
) -> None:
    store, report = mended
    rows = masks_of(store)
    held = dict.fromkeys(report.tried, 0)
    for row in rows.values():
        if row["replaced_by"]:
            assert rows[row["replaced_by"]]["image_id"] == row["image_id"]
            assert _end(rows, row)["replaced_by"] is None, "whoever it gave way to, one holds in the end"
        if row["repair"]:
            parent = rows[row["parent_mask_id"]]
            assert row["replaced_by"] or parent["replaced_by"], "never both"
            if parent["replaced_by"] == row["mask_id"]:
                assert row["predicted_iou"] > parent["predicted_iou"]
                iou = mask_iou([row["rle"]], [parent["rle"]], row["height"], row["width"])[0, 0]
                assert iou >= LEAST_PARENT_IOU
                held[row["repair"]] += 1
    assert sum(held.values()) > 5
    assert all(report.held[name] <= report.tried[name] for name in held)
    assert sum(report.tried.values()) == sum(row["repair"] is not None for row in rows.values())


def _end(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    for _ in rows:
        if not row["replaced_by"]:
            break
        row = rows[row["replaced_by"]]
    return row


def test_a_second_run_mends_nothing_and_decides_the_same(
    mended: tuple[Store, RepairReport], nano: Segmenter, menders: dict[str, Mender]
) -> None:
    store, _ = mended
    assert find_pending(store, nano.model_id, list(menders)) == []
    totals = triage_masks(store, nano.model_id, EAGER, tuple(menders), write=False)
    assert sum(of.masks for of in totals if of.decision in menders) == 0


def test_killed_after_one_shard_it_goes_on_and_comes_to_the_same(
    mended: tuple[Store, RepairReport],
    labelled: Path,
    nano: Segmenter,
    menders: dict[str, Mender],
    tmp_path: Path,
) -> None:
    store = copy_store(labelled, tmp_path)
    mend(store, nano.model_id, menders, shard=1, shards=1)
    touched = {row["image_id"] for row in masks_of(store).values() if row["repair"]}
    assert len(touched) == 1
    mend(store, nano.model_id, menders, shard=2)
    one, other = masks_of(mended[0]), masks_of(store)
    assert one.keys() == other.keys(), "the same work gives the same ids"
    for name, row in one.items():
        assert other[name]["rle"] == row["rle"]
        assert other[name]["replaced_by"] == row["replaced_by"]


def test_pictures_that_are_gone_are_left_out_and_named_and_a_copy_will_do(
    labelled: Path, nano: Segmenter, menders: dict[str, Mender], tmp_path: Path
) -> None:
    store = copy_store(labelled, tmp_path)
    pool, away = labelled / "pool", tmp_path / "away"
    away.mkdir()
    try:
        for name in ("1.png", "2.png"):
            (pool / name).rename(away / name)
        report = mend(store, nano.model_id, menders)
    finally:
        for path in away.iterdir():
            path.rename(pool / path.name)
    assert {name for name, _ in report.left_out} == {"2.png"}, "1.png has a copy"
    gone = {row["image_id"] for row in store.query("FROM images WHERE uri LIKE '%/2.png'").to_pylist()}
    assert report.gone == gone
    touched = {row["image_id"] for row in masks_of(store).values() if row["repair"]}
    assert len(touched) == 2
    assert not touched & gone


class Useless:
    """Stands for a mender: nothing comes of what it is asked."""

    def __init__(self, like: Mender) -> None:
        self.segmenter, self.heads, self.refiner = like.segmenter, like.heads, like.refiner
        self.asked = 0

    def mend(
        self, pixels_HW3: np.ndarray, parents: list[Parent], *, dense: bool
    ) -> tuple[list[int], ImageMasks]:
        self.asked += len(parents)
        empty = np.zeros(0, MASK_ROW)
        return [], ImageMasks(*pixels_HW3.shape[:2], empty, [], [], np.zeros((0, 256), np.float32))


def test_a_remedy_that_gave_not_a_pixel_is_spent(
    labelled: Path, nano: Segmenter, menders: dict[str, Mender], tmp_path: Path
) -> None:
    store = copy_store(labelled, tmp_path)
    useless = {name: Useless(of) for name, of in menders.items()}
    report = mend(store, nano.model_id, useless)  # type: ignore[arg-type]
    tried = sum(of.asked for of in useless.values())
    assert tried == sum(report.tried.values()) > 0
    assert sum(report.held.values()) == 0
    children = [row for row in masks_of(store).values() if row["repair"]]
    assert len(children) == tried
    assert {(row["area"], row["predicted_iou"], row["replaced_by"]) for row in children} == {
        (0, 0.0, row["parent_mask_id"]) for row in children
    }
    assert not find_pending(store, nano.model_id, list(menders))


class Interrupted(Useless):
    """Stands for a mender beside whom something else is done to the store, once."""

    def __init__(self, like: Mender, meanwhile: Callable[[], object]) -> None:
        super().__init__(like)
        self._meanwhile = meanwhile

    def mend(
        self, pixels_HW3: np.ndarray, parents: list[Parent], *, dense: bool
    ) -> tuple[list[int], ImageMasks]:
        if not self.asked:
            self._meanwhile()
        return super().mend(pixels_HW3, parents, dense=dense)


def begin_pass(
    labelled: Path, nano: Segmenter, menders: dict[str, Mender], tmp_path: Path
) -> tuple[Store, list[str], dict[str, Any]]:
    """A store of its own, the images of it that are to be mended, and menders that mend nothing."""
    store = copy_store(labelled, tmp_path)
    triage_masks(store, nano.model_id, EAGER, tuple(menders))
    useless = {name: Useless(of) for name, of in menders.items()}
    return store, find_pending(store, nano.model_id, list(menders)), useless


def test_a_long_pass_opens_the_store_once_and_not_for_every_shard(
    labelled: Path,
    nano: Segmenter,
    menders: dict[str, Mender],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, pending, useless = begin_pass(labelled, nano, menders, tmp_path)
    opened = []

    def open_snapshot() -> Snapshot:
        opened.append(1)
        return Store.open_snapshot(store)

    monkeypatch.setattr(store, "open_snapshot", open_snapshot)
    with ShardReader(store, nano.model_id, pending, list(menders)) as reader:
        for image_id in pending:
            assert mend_images(reader, [image_id], useless).tried
    assert (len(pending), len(opened)) == (3, 1)


def test_a_pass_goes_on_when_its_files_were_merged_and_swept(
    labelled: Path, nano: Segmenter, menders: dict[str, Mender], tmp_path: Path
) -> None:
    store, pending, useless = begin_pass(labelled, nano, menders, tmp_path)
    with ShardReader(store, nano.model_id, pending, list(menders)) as reader:
        for image_id in pending:
            assert mend_images(reader, [image_id], useless).tried
            store.compact()
            store.sweep(grace=timedelta(0))
    assert not find_pending(store, nano.model_id, list(menders))


def test_a_shard_that_failed_in_passing_is_read_whole_the_next_time(
    labelled: Path,
    nano: Segmenter,
    menders: dict[str, Mender],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, pending, useless = begin_pass(labelled, nano, menders, tmp_path)
    plain, failed = Snapshot.rows, []

    def rows(self: Snapshot, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        if "FROM decisions" in sql and not failed:
            failed.append(1)
            raise TransientError("The store did not answer as it should; try again.")
        return plain(self, sql, parameters)

    monkeypatch.setattr(Snapshot, "rows", rows)
    with ShardReader(store, nano.model_id, pending, list(menders)) as reader:
        with pytest.raises(TransientError):
            mend_images(reader, pending, useless)  # type: ignore[arg-type]
        assert mend_images(reader, pending, useless).tried  # type: ignore[arg-type]
    assert not find_pending(store, nano.model_id, list(menders))


def test_masks_that_people_are_asked_about_while_they_are_mended_stay_as_they_are(
    labelled: Path, nano: Segmenter, menders: dict[str, Mender], tmp_path: Path
) -> None:
    store = copy_store(labelled, tmp_path)
    triage_masks(store, nano.model_id, EAGER, tuple(menders))
    pending = find_pending(store, nano.model_id, list(menders))
    before = masks_of(store)
    asked = [[row for row in before.values() if row["image_id"] == of] for of in pending[:2]]

    def ask() -> None:
        store.append("reviews", [review_row(of, f"of {of[0]['image_id']}") for of in asked])

    among = {name: Interrupted(of, ask) for name, of in menders.items()}
    report = RepairReport()
    with ShardReader(store, nano.model_id, pending, list(menders)) as reader:
        for image_id in pending:
            report.add(mend_images(reader, [image_id], among))  # type: ignore[arg-type]
    after = masks_of(store)
    assert {name: row for name, row in after.items() if row["image_id"] in pending[:2]} == {
        row["mask_id"]: row for of in asked for row in of
    }
    mended = [row for row in after.values() if row["repair"]]
    assert {row["image_id"] for row in mended} == {pending[2]}
    assert sum(report.tried.values()) == len(mended)


def test_images_that_are_labelled_anew_while_they_are_mended_show_the_new_masks(
    labelled: Path, nano: Segmenter, menders: dict[str, Mender], tmp_path: Path
) -> None:
    store = copy_store(labelled, tmp_path)
    triage_masks(store, nano.model_id, EAGER, tuple(menders))
    pending = find_pending(store, nano.model_id, list(menders))
    [uri] = [row["uri"] for row in store.query("FROM images WHERE uri LIKE '%/2.png'").to_pylist()]
    image = image_row(uri)

    def label_anew() -> None:
        [content] = store.query(f"SELECT DISTINCT image_id FROM images WHERE uri = '{uri}'").to_pylist()
        store.commit_shard(nano.model_id, *tables_of([image | content], "anew"))

    among = {name: Interrupted(of, label_anew) for name, of in menders.items()}
    with ShardReader(store, nano.model_id, pending, list(menders)) as reader:
        mend_images(reader, pending, among)  # type: ignore[arg-type]
    made_by = (
        "SELECT DISTINCT uncertainty_source FROM masks JOIN images USING (image_id) WHERE uri LIKE '%/2.png'"
    )
    assert store.query(made_by).to_pylist() == [{"uncertainty_source": "anew"}]
    touched = {row["image_id"] for row in masks_of(store).values() if row["repair"]}
    assert len(touched) == len(pending) - 1


def test_readers_see_only_masks_that_hold(
    mended: tuple[Store, RepairReport],
    nano: Segmenter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A copy: to be asked about is written down.
    store = Store(str(shutil.copytree(Path(mended[0].files.root), tmp_path / "masks")))
    holding = {name for name, row in masks_of(store).items() if row["replaced_by"] is None}
    replaced = masks_of(store).keys() - holding
    assert len(replaced) > 5
    export_coco(store, str(tmp_path / "masks.json"))
    exported = json.loads((tmp_path / "masks.json").read_text())["annotations"]
    assert {row["mask_id"] for row in exported} == holding
    drawn: list[int] = []
    captions: list[str] = []

    def draw_counted(pixels: np.ndarray, masks: Iterable[tuple[np.ndarray, float]]) -> Image.Image:
        of = list(masks)
        drawn.append(len(of))
        return draw_masks(pixels, of)

    def lay_out(cells: Sequence[SheetCell], **about: Any) -> Image.Image:
        captions.extend(" ".join(cell.caption) for cell in cells)
        return draw_contact_sheet(cells, **about)

    monkeypatch.setattr("engine.report.stored_sheet.draw_masks", draw_counted)
    monkeypatch.setattr("engine.report.stored_sheet.draw_contact_sheet", lay_out)
    draw_sheet(store, tmp_path / "sheet.png")
    assert sum(drawn) == len(holding)
    assert all(f"{count} masks" in caption for count, caption in zip(drawn, captions, strict=True))
    learnt = pseudo_labelled_images(store, nano.model_id, masks=1000)
    words = decisions_of(store)
    accepted = sum(words[name] == "accept" for name in holding)
    assert sum(len(image.masks) for image in learnt) == accepted > 0, "those that hold and are accepted"
    triage_masks(store, nano.model_id, EAGER, ())
    side = FolderSide(tmp_path / "queue")
    everything = AcquisitionSettings(per_image=1000, per_stratum=1)
    push_masks(store, side.queue, 1000, acquisition=everything)
    asked = {name for row in store.query("FROM reviews").to_pylist() for name in row["mask_ids"]}
    assert asked
    assert asked <= holding


def test_what_triage_accepts_teaches_until_people_have_answered_for_it(
    mended: tuple[Store, RepairReport], nano: Segmenter, tmp_path: Path
) -> None:
    store = Store(str(shutil.copytree(Path(mended[0].files.root), tmp_path / "masks")))
    scores = sorted(row["predicted_iou"] for row in masks_of(store).values() if not row["replaced_by"])
    moved = float(np.median(scores)) - EAGER.threshold
    triage_masks(store, nano.model_id, replace(EAGER, middle=EAGER.middle + moved), ())
    accepted = {name for name, word in decisions_of(store).items() if word == "accept"}
    assert 0 < len(accepted) < len(scores)
    learnt = pseudo_labelled_images(store, nano.model_id, masks=1000)
    assert sum(len(image.masks) for image in learnt) == len(accepted)
    assert not any(image.answered for image in learnt)
    copies = [len(image.load.copies) for image in learnt if isinstance(image.load, PoolLoader)]
    assert sorted(copies) == [1, 1, 2], "an image that was moved is found where its copy lies"
    assert isinstance(learnt[0].load, PoolLoader)
    copy = shutil.copy(learnt[0].load.copies[0][0].removeprefix("file://"), tmp_path / "labelled.png")
    labelled = [LabelledImage("labelled.png", "labelled", "", (), FileLoader(Path(copy)))]
    rest = pseudo_labelled_images(store, nano.model_id, labelled=labelled, masks=1000)
    assert [image.key for image in rest] == [image.key for image in learnt[1:]], (
        "people's word counts in a copy, too"
    )
    rows = masks_of(store)
    image_of = {name: rows[name]["image_id"] for name in sorted(accepted)}
    crowded = max(image_of.values(), key=lambda image: list(image_of.values()).count(image))
    in_crowd = sorted(accepted, key=lambda name: image_of[name] != crowded)
    said = [label_row(rows[name], "fixed", model=nano.model_id) for name in in_crowd]
    store.append("labels", said[:1])
    answered = {
        image.key for image in pseudo_labelled_images(store, nano.model_id, masks=1000) if image.answered
    }
    assert answered == {crowded}, "there the model is not held to what it said before"
    store.append("labels", said[1:])
    silent = image_row("empty.png", n_masks=0)
    broken = image_row("broken.png", n_masks=0, error_kind="truncated")
    store.commit_shard(nano.model_id, *tables_of([silent, broken]))
    left = pseudo_labelled_images(store, nano.model_id, masks=1000)
    assert silent["image_id"] in {image.key for image in left}, "clicks there are answered as before"
    assert broken["image_id"] not in {image.key for image in left}
    assert not any(image.masks for image in left), "people's word counts"
    assert not {image.key for image in left} & set(image_of.values()), "and nothing holds the model there"
    with pytest.raises(ConfigError, match="holds no masks of another"):
        pseudo_labelled_images(store, "another@0", masks=1000)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("crop", [(0, 0, 128, 256), (112, 0, 256, 256), (0, 0, 256, 256)])
def test_a_mask_that_was_joined_over_a_seam_is_mended_whole(
    nano: Segmenter, menders: dict[str, Mender], crop: tuple[int, int, int, int], dense: bool
) -> None:
    """Its crop is that of its best part; drawn in there, the half of it would stand for all."""
    rows, columns = np.mgrid[:256, :256]
    disc_HW = (rows - 128) ** 2 + (columns - 140) ** 2 < 75**2
    pixels = np.where(disc_HW[..., None], (230, 200, 40), (30, 60, 90)).astype(np.uint8)
    box = tuple(mask_boxes(disc_HW[None])[0].tolist())
    parent = Parent((140.0, 128.0), crop, box, encode_masks(disc_HW[None])[0], None)
    places, made = menders["better prompt"].mend(pixels, [parent], dense=dense)
    assert places == [0]
    assert mask_iou(made.rles, [parent.rle], 256, 256)[0, 0] > 0.8
    x0, y0, x1, y1 = made.rows_N["crop"][0].tolist()
    assert x0 <= box[0] - 20 or x0 == 0
    assert x1 >= box[2] + 20 or x1 == 256
    assert (y0, y1) == (0, 256)


def test_a_dense_prompt_lies_in_the_certain_part_and_far_apart(nano: Segmenter) -> None:
    mask_HW = np.zeros((90, 120), bool)
    mask_HW[20:60, 30:90] = True
    box = (30, 20, 90, 60)
    points_P2 = dense_points(mask_HW, box, None)
    assert points_P2.shape == (DENSE_POINTS, 2)
    inside = mask_HW[points_P2[:, 1].astype(int), points_P2[:, 0].astype(int)]
    assert inside.all()
    assert len(np.unique(points_P2, axis=0)) == DENSE_POINTS
    unsure = MapCrop((30.0, 20.0, 90.0, 60.0), np.repeat(np.uint8([[0, 255]]), 4, 0))
    assert dense_points(mask_HW, box, unsure)[:, 0].max() < 65, "where the map is unsure nothing is said"
    doubtful = MapCrop((30.0, 20.0, 90.0, 60.0), np.full((4, 4), 255, np.uint8))
    assert np.array_equal(dense_points(mask_HW, box, doubtful), points_P2), "nothing certain: all of it"
    speck_HW = np.zeros((90, 120), bool)
    speck_HW[7, 9] = True
    assert dense_points(speck_HW, (9, 7, 10, 8), None).tolist() == [[9.0, 7.0]] * DENSE_POINTS
    logits_hw = grid_mask(mask_HW, nano)
    assert logits_hw.shape == (nano.grid_size, nano.grid_size)
    rows, columns = (round(of) for of in nano.mask_extent(mask_HW.shape))
    share = (logits_hw[:rows, :columns] > 0).mean()
    assert share == pytest.approx(mask_HW.mean(), abs=0.03)
    assert (logits_hw[rows:] < 0).all()


def test_heads_that_do_not_say_how_good_a_mask_is_mend_nothing(
    nano: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = find_heads(nano)
    assert heads is not None
    gaps_alone = replace(heads, names=tuple("iou_best" if name == "iou" else name for name in heads.names))
    monkeypatch.setattr("engine.triage.menders.find_heads", lambda segmenter: gaps_alone)
    assert find_menders(nano, "none", "cpu") == {}
    with pytest.raises(ConfigError, match="--larger none"):
        find_menders(nano, "sam-nano", "cpu")


def test_explain_says_what_would_be_decided_and_why_and_writes_nothing(
    labelled: Path, nano: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_store(labelled, tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(
            ["triage", "--store", store.files.label, "--explain", "--device", "cpu", "--error-seconds", "40"]
        )
    assert ended.value.code in (0, None)
    told = capsys.readouterr().out
    total = len(masks_of(store))
    assert nano.model_id in told
    counted = [
        int(re.search(rf"^  {name}\s+(\d+)", told, re.M)[1])  # type: ignore[index]
        for name in ("accept", "larger model", "better prompt", "people", "all")
    ]
    assert sum(counted[:-1]) == counted[-1] == total
    assert "as set: nobody has answered yet" in told
    assert "accepting a mask that is not good 40 s; a look 3.0 s, mending by hand 15.0 s more" in told
    assert re.search(r"accepting is cheaper than asking from predicted_iou 0\.\d\d on", told)
    assert "larger model: 0.020 s, and 80% of the promised gain" in told
    assert store.query("SELECT count(*) AS n FROM decisions").to_pylist() == [{"n": 0}]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--explain", "--larger=none"])
def test_triage_tells_that_slow_answers_made_it_accept_everything(
    labelled: Path,
    tmp_path: Path,
    option: str,
    prefect_server: dict[str, str],
) -> None:
    store = copy_store(labelled, tmp_path)
    answered = [
        label_row(row, "fixed", task="t", seconds=500.0, iou=0.5) for row in [*masks_of(store).values()][:8]
    ]
    store.append("labels", answered)
    command = [sys.executable, "-m", "flows.cli", "triage", "--store", store.files.label, "--device", "cpu"]
    ran = subprocess.run(
        [*command, option], cwd=tmp_path, env=prefect_server, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "Nothing is left to people, whatever its score" in ran.stderr
    assert "--error-seconds" in ran.stderr


@pytest.mark.slow
def test_the_command_mends_once_and_writes_down_what_is_left(
    labelled: Path, nano: Segmenter, tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    store = copy_store(labelled, tmp_path)
    command = [sys.executable, "-m", "flows.cli", "triage", "--store", store.files.label, "--device", "cpu"]
    command += ["--machine-rate", "0", "--look-seconds", "10"]
    runs = [
        subprocess.run(command, cwd=tmp_path, env=prefect_server, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert re.search(r"^larger model: \d+ of \d+ masks mended, \d", runs[0].stdout, re.M)
    assert re.search(r"^better prompt: \d+ of \d+ masks mended, \d", runs[0].stdout, re.M)
    assert "masks mended" not in runs[1].stdout
    left = {row["decision"] for row in store.query("SELECT DISTINCT decision FROM decisions").to_pylist()}
    assert left <= {"accept", "people"}
    decided, holding = (
        store.query(f"SELECT mask_id FROM {of} ORDER BY mask_id").to_pylist()
        for of in ("decisions", "masks WHERE replaced_by IS NULL")
    )
    assert [row for row in decided if row in holding] == holding
