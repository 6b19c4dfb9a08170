"""Keeping the number of files small without losing, doubling or hiding a row."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from store_rows import MODEL, SETTINGS, commit, content_id, fetch, image_row, tables_of

from engine.store import DamagedStoreError, Store
from engine.store.commit import commit_attempt
from engine.store.layout import new_attempt, table_path
from schemas.records import PoolItem

pytest_plugins = ("store_fixtures",)
NOW = timedelta(0)


def files_of(store: Store, table: str) -> list[str]:
    return sorted(f.name for f in store.files.list_table(table))


def view(store: Store) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """All that a user can tell from the views, but for which attempt holds what."""
    images = fetch(store, "SELECT * EXCLUDE (attempt) FROM images ORDER BY ALL")
    return images, fetch(store, "SELECT * EXCLUDE (attempt) FROM masks ORDER BY ALL")


def test_many_small_files_become_one_and_nothing_changes(store: Store) -> None:
    for index in range(4):
        commit(store, [f"a{index}", f"b{index}"])
    commit(store, ["a0"], "second")
    commit(store, ["empty"], n_masks=0)
    before = view(store)
    steps: list[tuple[int, int]] = []
    assert store.compact(progress=lambda done, total: steps.append((done, total))) == 6
    assert steps == [(0, 1), (1, 1)]
    assert view(store) == before
    assert fetch(store, "SELECT count(DISTINCT attempt) FROM images") == [(1,)]
    assert len(files_of(store, "masks")) == 7, "nothing is deleted before the grace time"
    assert store.sweep() == 0
    assert store.sweep(grace=NOW) == 6 + 6 + 1
    assert view(store) == before
    assert [len(files_of(store, table)) for table in ("images", "masks")] == [1, 1]
    assert store.compact() == 0


def test_compacted_masks_are_sorted_by_uncertainty(local_store: Store, tmp_path: Path) -> None:
    for index in range(3):
        commit(local_store, [f"a{index}"])
    local_store.compact()
    local_store.sweep(grace=NOW)
    (path,) = (tmp_path / "store" / "masks").rglob("*.parquet")
    uncertainty = pq.read_table(path, partitioning=None)["uncertainty"].to_pylist()
    assert len(uncertainty) == 9
    assert uncertainty == sorted(uncertainty, reverse=True)


def test_large_files_are_left_as_they_are(local_store: Store) -> None:
    large = commit(local_store, [f"a{index}" for index in range(400)])
    commit(local_store, ["b"])
    commit(local_store, ["c"])
    size = max(f.size for f in local_store.files.list_table("masks"))
    assert local_store.compact(target_bytes=size) == 2
    assert fetch(local_store, "SELECT count(*), count(DISTINCT attempt) FROM masks") == [(1206, 2)]
    assert fetch(local_store, "SELECT DISTINCT attempt FROM images WHERE uri = 'a7'") == [(large,)]


def test_groups_keep_to_the_target(local_store: Store) -> None:
    for index in range(6):
        commit(local_store, [f"a{index}"])
    size = max(f.size for f in local_store.files.list_table("masks"))
    assert local_store.compact(target_bytes=int(size * 2.5)) == 6
    assert fetch(local_store, "SELECT count(DISTINCT attempt) FROM images") == [(3,)]


def test_one_model_is_compacted_alone(local_store: Store) -> None:
    for model in (MODEL, "mini@ba9876543210"):
        commit(local_store, ["a"], model=model)
        commit(local_store, ["b"], model=model)
    assert local_store.compact("mini@ba9876543210") == 2
    assert fetch(
        local_store, "SELECT model, count(DISTINCT attempt) FROM images GROUP BY ALL ORDER BY ALL"
    ) == [
        ("mini@ba9876543210", 1),
        (MODEL, 2),
    ]


def test_a_result_committed_during_a_compaction_wins(local_store: Store, tmp_path: Path) -> None:
    """The compaction publishes after it, though it read before it."""
    commit(local_store, ["a"])
    commit(local_store, ["b"])
    images = tmp_path / "store" / "images" / f"model={MODEL}"
    newer = commit(local_store, ["a"], "second")
    (images / f"{newer}.parquet").rename(tmp_path / "held back")
    local_store.compact()
    (tmp_path / "held back").rename(images / f"{newer}.parquet")
    assert fetch(local_store, "SELECT uncertainty_source, count(*) FROM masks GROUP BY ALL ORDER BY ALL") == [
        ("first", 3),
        ("second", 3),
    ]


def test_two_compactions_at_once_do_no_harm(local_store: Store, tmp_path: Path) -> None:
    commit(local_store, ["a", "b"])
    commit(local_store, ["b", "c"], "second")
    before = view(local_store)
    folder = tmp_path / "store" / "images" / f"model={MODEL}"
    local_store.compact()
    hidden = {path: path.read_bytes() for path in folder.iterdir() if json_of(path) is not None}
    (note,) = hidden
    part = note.with_suffix(".parquet")
    content = part.read_bytes()
    note.unlink()
    part.unlink()
    local_store.compact()  # the second one, which has not seen the first
    note.write_bytes(hidden[note])
    part.write_bytes(content)
    assert view(local_store) == before
    local_store.compact()
    local_store.sweep(grace=NOW)
    assert view(local_store) == before


def json_of(path: Path) -> list[str] | None:
    return json.loads(path.read_text()) if path.suffix == ".replaces" else None


def test_a_compaction_killed_before_its_commit_is_harmless(local_store: Store, tmp_path: Path) -> None:
    commit(local_store, ["a"])
    commit(local_store, ["b"])
    before = view(local_store)
    local_store.compact()
    folder = tmp_path / "store" / "images" / f"model={MODEL}"
    newest = max(folder.glob("*.parquet"))
    newest.unlink()
    assert view(local_store) == before
    local_store.sweep(grace=NOW)
    assert view(local_store) == before
    assert len(files_of(local_store, "masks")) == 2
    assert local_store.compact() == 2
    assert view(local_store) == before


def test_a_sweep_leaves_writers_and_their_masks_alone(local_store: Store, tmp_path: Path) -> None:
    commit(local_store, ["a"])
    attempt = commit(local_store, ["b"])
    part = next((tmp_path / "store" / "images").rglob(f"{attempt}.parquet"))
    content = part.read_bytes()
    part.unlink()  # as if the writer were between its masks and its images
    temporary = part.with_name(f"{new_attempt()}.parquet.01234567.tmp")
    temporary.write_bytes(b"half")
    assert local_store.sweep() == 0
    part.write_bytes(content)
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(6,)]
    part.unlink()
    assert local_store.sweep(grace=NOW) == 2
    assert not temporary.exists()
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(3,)]


def test_a_compaction_killed_long_ago_does_not_end_the_grace_time_of_a_later_one(store: Store) -> None:
    old = [begun_ago(timedelta(minutes=50)) for _ in range(2)]
    for attempt, uri in zip(old, "ab", strict=True):
        commit_attempt(store.files, attempt, MODEL, *tables_of([image_row(uri)]))
    killed = table_path(store.files.root, "images", MODEL, begun_ago(timedelta(minutes=40)) + ".replaces")
    store.files.publish(killed, lambda path: path.write_text(json.dumps(old)))
    with store.open_snapshot() as snapshot:
        store.compact()
        assert store.sweep(grace=timedelta(minutes=30)) == 1, "the note of the killed one, and nothing else"
        assert snapshot.con.sql("SELECT count(*) FROM masks").fetchall() == [(6,)]
        copy = image_row("copy of a", content="a", attempt=old[0])
        commit_attempt(store.files, new_attempt(), MODEL, tables_of([copy])[0], {})
    assert fetch(store, "SELECT count(*) FROM masks") == [(6,)]
    assert store.sweep(grace=NOW) == 2 + 1 + 1, "parts, the later note, the masks that no row names"
    assert fetch(store, "SELECT count(*) FROM masks") == [(6,)]


def begun_ago(time: timedelta) -> str:
    """An attempt's id as a writer made it some time ago."""
    return f"{datetime.now(UTC) - time:%Y%m%dT%H%M%S%f}-{uuid4().hex[:16]}"


def test_a_snapshot_opened_before_goes_on_reading(store: Store) -> None:
    for index in range(3):
        commit(store, [f"a{index}"])
    with store.open_snapshot() as snapshot:
        commit(store, ["a0"], "second")
        store.compact()
        store.sweep()
        commit(store, ["a9"])
        assert snapshot.con.sql("SELECT uncertainty_source, count(*) FROM masks GROUP BY ALL").fetchall() == [
            ("first", 9)
        ]


def test_copies_follow_masks_that_were_moved(local_store: Store) -> None:
    """A run that read what is done before a compaction and a sweep names an attempt that is gone."""
    commit(local_store, ["a"])
    commit(local_store, ["b"])
    known = local_store.find_done(MODEL, SETTINGS).find_content([content_id("a")])[content_id("a")]
    local_store.compact()
    local_store.sweep(grace=NOW)
    row = image_row("copy of a", content="a", attempt=known["attempt"])
    local_store.commit_shard(MODEL, *tables_of([row, image_row("c")]))
    assert fetch(local_store, "SELECT count(*) FROM images") == [(4,)]
    assert fetch(local_store, "SELECT count(*), count(DISTINCT mask_id) FROM masks") == [(9, 9)]


def test_masks_changed_by_a_stranger_stop_a_compaction(local_store: Store, tmp_path: Path) -> None:
    attempt = commit(local_store, ["a"])
    commit(local_store, ["b"])
    path = next((tmp_path / "store" / "masks").rglob(f"{attempt}.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)
    with pytest.raises(DamagedStoreError, match="found 5 masks where their images rows count 6"):
        local_store.compact()
    assert fetch(local_store, "SELECT count(*) FROM images") == [(2,)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_commits_copies_compactions_and_sweeps_shows_the_latest(
    local_store: Store, seed: int
) -> None:
    """Against a plain model in memory: for each uri its last commit, for each content the last live one's masks."""
    chance = random.Random(seed)
    last: dict[tuple[str, str], tuple[str, str]] = {}  # (model, uri) -> (content, tag); newest last
    models = [MODEL, "mini@ba9876543210"]
    for step in range(14):
        model = chance.choice(models)
        action = chance.random()
        if action < 0.6:
            uris = chance.sample("abcdefgh", chance.randint(1, 3))
            images = [
                image_row(uri, content=chance.choice([uri, uri, "shared", "shared too"])) for uri in uris
            ]
            if chance.random() < 0.5:
                known = local_store.find_done(model, SETTINGS).find_content(
                    [row["image_id"] for row in images]
                )
                images = [row | known.get(row["image_id"], {}) for row in images]
            shown = {content: tag for (m, _), (content, tag) in last.items() if m == model}
            for row in images:
                content = row["fingerprint"].removeprefix("f-")
                last.pop((model, row["uri"]), None)
                last[model, row["uri"]] = (content, shown[content] if row["attempt"] else f"step {step}")
            local_store.commit_shard(model, *tables_of(images, f"step {step}"))
        elif action < 0.85:
            local_store.compact(target_bytes=chance.choice([2**28, 20_000, 45_000]))
        else:
            local_store.sweep(grace=NOW)
        images_seen = fetch(local_store, "SELECT model, uri, fingerprint FROM images ORDER BY ALL")
        assert images_seen == sorted((m, uri, f"f-{content}") for (m, uri), (content, _) in last.items())
        wanted = {(m, content_id(content)): tag for (m, _), (content, tag) in last.items()}
        masks_seen = fetch(
            local_store,
            "SELECT model, image_id, uncertainty_source, count(*) FROM masks GROUP BY ALL ORDER BY ALL",
        )
        assert masks_seen == sorted((m, image_id, tag, 3) for (m, image_id), tag in wanted.items())
    local_store.compact()
    local_store.sweep(grace=NOW)
    local_store.compact()
    local_store.sweep(grace=NOW)
    assert fetch(local_store, "SELECT count(*) FROM images") == [(len(last),)]
    assert len(files_of(local_store, "masks")) <= len(models)
    items = [PoolItem(uri, f"f-{content}") for (m, uri), (content, _) in last.items() if m == MODEL]
    assert local_store.find_done(MODEL, SETTINGS).pending(items) == []
