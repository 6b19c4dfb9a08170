"""Answers come one by one, and each is a file: keeping their number small loses none and doubles none."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from store_rows import MODEL, fetch

from engine.store import Store
from engine.store.layout import table_path
from engine.store.records import RECORD_TABLES, list_records, pack

pytest_plugins = ("store_fixtures",)
NOW = timedelta(0)
OTHER = "mini@ba9876543210"


def answer(task: str, verdict: str, model: str = MODEL) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "label_id": task,
        "queue": "q",
        "item_key": task,
        "task_id": task,
        "annotation_id": "1",
        "image_id": "0" * 32,
        "model": model,
        "mask_id": task,
        "region": task,
        "verdict": verdict,
        "height": 48,
        "width": 64,
        "answered_at": now,
        "task_changed_at": now,
        "pulled_at": now,
    }


def answers(store: Store) -> list[tuple[object, ...]]:
    return fetch(store, "SELECT model, task_id, verdict FROM labels ORDER BY ALL")


def files_of(store: Store) -> list[str]:
    return sorted(f.name for f in store.files.list_table("labels"))


def test_answers_pulled_one_by_one_become_one_file_and_each_is_still_there(store: Store) -> None:
    for n in range(5):
        store.append("labels", [answer(f"t{n}", "correct")])
    store.append("labels", [answer("t0", "fixed"), answer("u", "wrong", OTHER)])
    before = answers(store)
    assert len(before) == 6
    assert store.compact() == 6
    assert answers(store) == before
    assert store.sweep() == 0, "nothing is deleted before the grace time"
    assert store.sweep(grace=NOW) == 6 + 1
    assert answers(store) == before
    assert len(files_of(store)) == 2, "one of each model"
    assert store.compact() == 0
    store.append("labels", [answer("t1", "wrong")])
    assert (MODEL, "t1", "wrong") in answers(store)
    assert len(answers(store)) == 6


def test_a_merge_killed_before_its_file_is_harmless(local_store: Store) -> None:
    for n in range(3):
        local_store.append("labels", [answer(f"t{n}", "correct")])
    before = answers(local_store)
    local_store.compact()
    [merged] = list_records(local_store.files, "labels").counting
    Path(merged.path).unlink()
    assert answers(local_store) == before
    local_store.sweep(grace=NOW)
    assert answers(local_store) == before
    assert local_store.compact() == 3
    assert answers(local_store) == before


def test_merges_that_began_at_once_show_no_answer_twice(local_store: Store) -> None:
    """The later one has merged files that the earlier one had merged, and one more."""
    for n in range(3):
        local_store.append("labels", [answer(f"t{n}", "correct")])
    local_store.compact()
    folder = Path(local_store.files.root) / "labels" / f"model={MODEL}"
    first = {path: path.read_bytes() for path in folder.iterdir() if is_of_a_merge(path)}
    for path in first:
        path.unlink()
    local_store.append("labels", [answer("t3", "correct")])
    before = answers(local_store)
    local_store.compact()
    for path, content in first.items():
        path.write_bytes(content)
    assert answers(local_store) == before
    local_store.compact()
    assert answers(local_store) == before
    local_store.sweep(grace=NOW)
    assert answers(local_store) == before
    local_store.compact()
    local_store.sweep(grace=NOW)
    assert answers(local_store) == before
    assert len(files_of(local_store)) == 1


def test_a_merge_killed_long_ago_does_not_end_the_grace_time_of_a_later_one(local_store: Store) -> None:
    for n in range(2):
        local_store.append("labels", [answer(f"t{n}", "correct")])
    old = [f.attempt for f in list_records(local_store.files, "labels").counting]
    long_ago = f"{datetime.now(UTC) - timedelta(minutes=40):%Y%m%dT%H%M%S%f}-{'0' * 16}"
    killed = table_path(local_store.files.root, "labels", MODEL, long_ago + ".replaces")
    local_store.files.publish(killed, lambda path: path.write_text(json.dumps(old)))
    with local_store.open_snapshot() as snapshot:
        local_store.compact()
        assert local_store.sweep(grace=timedelta(minutes=30)) == 1, (
            "the note of the killed one, and nothing else"
        )
        assert snapshot.con.sql("SELECT count(*) FROM labels").fetchall() == [(2,)]


def is_of_a_merge(path: Path) -> bool:
    return path.with_suffix(".replaces").exists()


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_answers_merges_kills_and_sweeps_shows_the_latest(local_store: Store, seed: int) -> None:
    """Against a dict: of each task the answer that was pulled last. A third of the merges are killed before their file."""
    chance = random.Random(seed)
    last: dict[tuple[str, str], str] = {}
    for step in range(24):
        action = chance.random()
        if action < 0.6:
            model, task = chance.choice([MODEL, OTHER]), f"t{chance.randint(0, 5)}"
            local_store.append("labels", [answer(f"{model}-{task}", f"step {step}", model)])
            last[model, f"{model}-{task}"] = f"step {step}"
        elif action < 0.85:
            there = set(files_of(local_store))
            local_store.compact(target_bytes=chance.choice([2**28, 30_000]))
            if chance.random() < 1 / 3:
                for file in local_store.files.list_table("labels"):
                    if file.name not in there and file.name.endswith(".parquet"):
                        Path(file.path).unlink()
        else:
            local_store.sweep(grace=NOW)
        assert answers(local_store) == sorted((*key, verdict) for key, verdict in last.items())


def decision(image: str, triage: int) -> dict[str, Any]:
    return {
        "triage_id": f"{triage:04}",
        "mask_id": f"of {image}",
        "image_id": image,
        "model": MODEL,
        "decision": "accept",
        "p_good": 0.5,
        "cost": 1.0,
        "gain": 0.0,
        "decided_at": datetime.now(UTC),
    }


def decided(store: Store) -> list[tuple[object, ...]]:
    return fetch(store, "SELECT image_id, triage_id FROM decisions ORDER BY ALL")


def stored_decisions(store: Store) -> int:
    """Rows in the files, seen or not."""
    listed = [Path(f.path) for f in store.files.list_table("decisions")]
    return sum(pq.ParquetFile(path).metadata.num_rows for path in listed if path.suffix == ".parquet")


@pytest.mark.parametrize("target_bytes", [2**28, 1])
def test_triages_night_after_night_do_not_fill_the_disk(local_store: Store, target_bytes: int) -> None:
    """Files that are large count, too: of an old one nothing is seen."""
    for triage in range(4):
        local_store.append("decisions", [decision(image, triage) for image in "abc"])
    local_store.append("decisions", [decision("d", 4)])
    before = decided(local_store)
    assert local_store.compact(target_bytes=target_bytes) > 0
    assert decided(local_store) == before
    assert stored_decisions(local_store) > 4, "whoever reads may go on reading the old files"
    local_store.sweep(grace=NOW)
    assert decided(local_store) == before
    assert stored_decisions(local_store) == 4


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_triages_merges_kills_and_sweeps_shows_the_newest(local_store: Store, seed: int) -> None:
    """Against a dict. A third of the merges are killed before their file; some come into sight after a later one."""
    chance = random.Random(seed)
    last: dict[str, int] = {}
    late: dict[Path, bytes] = {}
    folder = Path(local_store.files.root) / "decisions" / f"model={MODEL}"
    folder.mkdir(parents=True)
    for step in range(30):
        action = chance.random()
        if action < 0.55:
            images = chance.sample("abcdef", chance.randint(1, 6))
            local_store.append("decisions", [decision(image, step) for image in images])
            last |= dict.fromkeys(images, step)
        elif action < 0.85:
            there = set(folder.iterdir())
            local_store.compact(target_bytes=chance.choice([2**28, 1, 6_000]))
            made = {path: path.read_bytes() for path in sorted(folder.iterdir()) if path not in there}
            fate = chance.random()
            for path, content in made.items():
                if fate < 1 / 3 and path.suffix == ".parquet":
                    path.unlink()
                elif fate < 2 / 3:
                    path.unlink()
                    late[path] = content
        elif late:
            for path, content in late.items():
                path.write_bytes(content)
            late = {}
        else:
            local_store.sweep(grace=NOW)
        assert decided(local_store) == sorted((image, f"{of:04}") for image, of in last.items())


def test_versions_that_were_recorded_are_merged_and_still_known(local_store: Store) -> None:
    about = {"name": "nano", "version": "0123456789ab", "package": "segment-anything"}
    record = {"model": MODEL, **about, "sha256": "0" * 64, "parameters": 5_000_000, "image_size": 256}
    for source in ("file", "elsewhere", "here"):
        local_store.record_model(record | {"source": source})
    assert local_store.compact() == 3
    assert fetch(local_store, "SELECT source FROM models") == [("here",)]
    local_store.record_model(record | {"source": "here"})
    assert len(list_records(local_store.files, "models").counting) == 1, "nothing new was said"


def test_very_many_small_files_are_grouped_at_once() -> None:
    class Counted:
        def __init__(self, size: int) -> None:
            self._size, self.asked = size, 0

        @property
        def size(self) -> int:
            self.asked += 1
            return self._size

    chance = random.Random(0)
    some = [Counted(chance.randint(1, 100)) for _ in range(25_000)]
    groups = pack(some, 400_000)
    assert max(of.asked for of in some) <= 2, "the time grows with their number, not with its square"
    assert [of for group in groups for of in group] == some
    sizes = [sum(of.size for of in group) for group in groups]
    assert all(400_000 - 100 < size <= 400_000 for size in sizes[:-1])
    assert {len(group) for group in pack(some, 10**9)} == {10_000, 5_000}


def test_all_tables_that_only_grow_are_merged() -> None:
    assert set(RECORD_TABLES) == {"labels", "reviews", "decisions", "rounds", "models", "promotions"}
