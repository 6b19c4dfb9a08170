"""Equal contents under several names: masked once, seen once, and never counted with another's masks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from store_rows import MODEL, SETTINGS, commit, content_id, fetch, image_row, tables_of

from engine.mask_maker import MaskMaker
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.store import LostMasksError, Store
from engine.store.files import StoredFile, StoreFiles
from schemas.records import PoolItem
from schemas.settings import GenerateSettings, PoolSettings

pytest_plugins = ("store_fixtures",)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture
def items(small_pool: Path) -> dict[str, PoolItem]:
    return {Path(item.uri).stem: item for item in list_pool(str(small_pool), PoolSettings())}


def labeller(segmenter: Segmenter, store: Store, points: int) -> Pseudolabeller:
    settings = GenerateSettings(
        points_per_side=points, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
    )
    made = Pseudolabeller(MaskMaker(segmenter, settings), store, PoolSettings())
    made.find_done()
    return made


def stored_masks(store: Store) -> int:
    """Mask rows in the files, seen or not."""
    return sum(pq.ParquetFile(f.path).metadata.num_rows for f in store.files.list_table("masks"))


def test_a_copy_in_a_later_shard_is_not_masked_again(
    segmenter: Segmenter, local_store: Store, items: dict[str, PoolItem]
) -> None:
    run = labeller(segmenter, local_store, 2)
    reports = [run.label([items[name]]) for name in ("00", "01", "copy")]
    assert [report.reused for report in reports] == [0, 0, 1]
    made = sum(report.masks for report in reports)
    assert made > 0
    assert stored_masks(local_store) == made
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(made,)]
    assert fetch(local_store, "SELECT count(DISTINCT attempt), count(*) FROM images") == [(2, 3)]


def test_a_long_run_asks_the_store_what_it_has_masked_and_remembers_only_the_last_of_it(
    segmenter: Segmenter, local_store: Store, items: dict[str, PoolItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pseudolabel._REMEMBERED", 2)
    run = labeller(segmenter, local_store, 2)
    reports = [run.label([items[name]]) for name in ("00", "02", "01", "copy")]
    assert [report.reused for report in reports] == [0, 0, 0, 1]
    assert len(run._since) <= 2
    assert stored_masks(local_store) == sum(report.masks for report in reports)
    assert run.find_pending(list(items.values())) == [
        item for name, item in items.items() if name not in ("00", "02")
    ], "as it was when it was last asked"


def test_a_pool_with_copies_throughout_does_not_list_the_store_for_every_shard(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []

    def list_table(table: str) -> list[StoredFile]:
        listed.append(table)
        return StoreFiles.list_table(local_store.files, table)

    monkeypatch.setattr(local_store.files, "list_table", list_table)
    for n in range(5):
        attempt = commit(local_store, [f"a{n}"])
        copy = image_row(f"copy of a{n}", content=f"a{n}", attempt=attempt)
        local_store.commit_shard(MODEL, *tables_of([copy]))
    assert listed == ["images"]
    assert fetch(local_store, "SELECT count(*), sum(n_masks) FROM images") == [(10, 30)]
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(15,)]


@pytest.mark.parametrize("swept", [False, True])
def test_copies_find_masks_that_moved_after_the_store_was_listed(local_store: Store, swept: bool) -> None:
    first, second = commit(local_store, ["a"]), commit(local_store, ["b"])
    copies = [image_row(f"{n}", content="a", attempt=first) for n in range(2)]
    local_store.commit_shard(MODEL, *tables_of(copies[:1]))
    local_store.compact()
    if swept:
        local_store.sweep(grace=timedelta(0))
    local_store.commit_shard(MODEL, *tables_of(copies[1:]))
    local_store.commit_shard(MODEL, *tables_of([image_row("2", content="b", attempt=second)]))
    assert fetch(local_store, "SELECT count(*), sum(n_masks) FROM images") == [(5, 15)]
    for _ in range(2):
        assert fetch(local_store, "SELECT count(*), count(DISTINCT mask_id) FROM masks") == [(6, 6)]
        local_store.compact()
        local_store.sweep(grace=timedelta(0))


def test_a_copy_in_a_later_shard_finds_masks_that_a_compaction_moved(
    segmenter: Segmenter, local_store: Store, items: dict[str, PoolItem]
) -> None:
    run = labeller(segmenter, local_store, 2)
    made = sum(run.label([items[name]]).masks for name in ("00", "01"))
    local_store.compact()
    assert run.label([items["copy"]]).reused == 1
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(made,)]


def test_a_copy_is_masked_anew_when_other_settings_took_the_place_of_its_masks(
    segmenter: Segmenter, local_store: Store, items: dict[str, PoolItem]
) -> None:
    labeller(segmenter, local_store, 2).label([items["00"]])
    run = labeller(segmenter, local_store, 2)
    labeller(segmenter, local_store, 3).label([items["00"], items["01"]])
    local_store.compact()
    steps: list[tuple[int, int, int]] = []
    report = run.label([items["copy"]], lambda *counts: steps.append(counts))
    assert (report.images, report.reused) == (1, 0)
    assert [sum(column) for column in zip(*steps, strict=True)] == [1, report.masks, 0]
    assert fetch(
        local_store,
        "SELECT n_masks, count(*) FROM images JOIN masks USING (image_id) WHERE uri LIKE '%/copy.png' GROUP BY ALL",
    ) == [(report.masks, report.masks)]
    assert local_store.compact() > 0


def test_rows_do_not_follow_to_masks_of_other_settings(local_store: Store) -> None:
    first = commit(local_store, ["a"])
    local_store.commit_shard(MODEL, *tables_of([image_row("a", settings="{}", n_masks=5)], "second"))
    commit(local_store, ["other"])
    local_store.compact()
    for change in ({}, {"settings": "{}"}):
        row = image_row("b", content="a", attempt=first, **change)
        with pytest.raises(LostMasksError, match="label these images anew") as caught:
            local_store.commit_shard(MODEL, *tables_of([row]))
        assert caught.value.image_ids == [content_id("a")]
    row = image_row("b", content="a", attempt=first, settings="{}", n_masks=5)
    local_store.commit_shard(MODEL, *tables_of([row]))
    assert fetch(local_store, "SELECT count(*), sum(n_masks) FROM images") == [(3, 13)]
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(8,)]
    commit(local_store, ["one more"])
    assert local_store.compact() > 0


def test_a_compaction_does_not_offer_masks_of_other_settings_for_copies(local_store: Store) -> None:
    commit(local_store, ["a"])
    local_store.commit_shard(
        MODEL, *tables_of([image_row("b", content="a", settings="{}", n_masks=5)], "second")
    )
    for _ in range(2):
        assert local_store.find_done(MODEL, SETTINGS).find_content([content_id("a")]) == {}
        offered = local_store.find_done(MODEL, "{}").find_content([content_id("a")])
        assert offered[content_id("a")]["n_masks"] == 5
        local_store.compact()
