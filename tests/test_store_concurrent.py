"""Writers killed at any moment, several writers, readers and compactions at once: real processes, disk and S3."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from store_rows import MODEL, SETTINGS, commit, fetch

from engine.store import Store
from schemas.records import PoolItem

pytest_plugins = ("store_fixtures",)
SHARD = 4
CONSISTENT = """
    SELECT (SELECT count(*) FROM images), (SELECT count(DISTINCT uri) FROM images), (SELECT coalesce(sum(n_masks), 0) FROM images),
        (SELECT count(*) FROM masks), (SELECT count(DISTINCT mask_id) FROM masks)"""


def start(action: str, root: tuple[str, dict[str, Any]], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, action, root[0], json.dumps(root[1]), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


def write_pool(store: Store, uris: Sequence[str], tag: str) -> None:
    """What a labelling run does: ask what is left, commit it shard by shard."""
    left = store.find_done(MODEL, SETTINGS).pending([PoolItem(uri, f"f-{uri}") for uri in uris])
    print("ready", flush=True)
    for first in range(0, len(left), SHARD):
        commit(store, [item.uri for item in left[first : first + SHARD]], tag)


def check_consistent(store: Store) -> int:
    """Every image once, with exactly its masks; returns the number of images."""
    ((images, uris, said, masks, mask_ids),) = fetch(store, CONSISTENT)
    assert images == uris
    assert said == masks == mask_ids
    return images


@pytest.mark.slow
def test_a_run_killed_at_any_moment_loses_nothing_and_doubles_nothing(
    root: tuple[str, dict[str, Any]],
) -> None:
    store = Store(*root)
    uris = [f"image {index}" for index in range(200)]
    chance = random.Random(7)
    for _ in range(5):
        writer = start("write", root, len(uris), "a run")
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0, 0.4))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        check_consistent(store)
        shards = fetch(store, "SELECT count(*) FROM images GROUP BY attempt")
        assert all(count == (SHARD,) for count in shards)
    assert start("write", root, len(uris), "a run").wait() == 0
    assert check_consistent(store) == len(uris)
    assert fetch(store, "SELECT count(*) FROM masks") == [(3 * len(uris),)]


@pytest.mark.slow
def test_writers_readers_and_compactions_at_once(root: tuple[str, dict[str, Any]]) -> None:
    """Three writers commit the same images, two processes compact and sweep, this one reads all the time."""
    store = Store(*root)
    writers = [start("rewrite", root, 40, f"writer {index}", index) for index in range(3)]
    compactors = [start("compact", root) for _ in range(2)]
    reads = 0
    seen = 0
    try:
        while any(writer.poll() is None for writer in writers):
            images = check_consistent(store)
            assert images >= seen, "an image that was seen stays"
            seen = images
            reads += 1
        assert [writer.wait() for writer in writers] == [0, 0, 0]
        assert [compactor.poll() for compactor in compactors] == [None, None], "a compaction failed"
    finally:
        for process in (*writers, *compactors):
            process.kill()
            process.wait()
    assert reads > 3
    assert check_consistent(store) == 40
    store.compact()
    assert check_consistent(store) == 40
    assert fetch(store, "SELECT count(DISTINCT attempt) FROM images") == [(1,)]


@pytest.mark.slow
def test_a_compaction_killed_at_any_moment_changes_nothing_that_is_seen(
    root: tuple[str, dict[str, Any]],
) -> None:
    store = Store(*root)
    for index in range(12):
        commit(store, [f"image {index}", f"other {index % 5} {index}"])
    commit(store, [f"image {index}" for index in range(6)], "second")
    columns = "* EXCLUDE (attempt)"
    before = [fetch(store, f"SELECT {columns} FROM {table} ORDER BY ALL") for table in ("images", "masks")]
    chance = random.Random(3)
    for _ in range(4):
        compactor = start("compact", root)
        assert compactor.stdout is not None
        compactor.stdout.readline()
        time.sleep(chance.uniform(0, 0.8))
        compactor.kill()
        compactor.wait()
        assert [
            fetch(store, f"SELECT {columns} FROM {table} ORDER BY ALL") for table in ("images", "masks")
        ] == before


def main(action: str, root: str, options: str, *arguments: str) -> None:
    store = Store(root, json.loads(options))
    if action == "write":
        write_pool(store, [f"image {index}" for index in range(int(arguments[0]))], arguments[1])
    elif action == "rewrite":
        uris = [f"image {index}" for index in range(int(arguments[0]))]
        random.Random(int(arguments[2])).shuffle(uris)
        for first in range(0, len(uris), SHARD):
            commit(store, uris[first : first + SHARD], arguments[1])
            time.sleep(0.05)
    elif action == "compact":
        print("ready", flush=True)
        while True:
            store.compact(target_bytes=60_000)
            store.sweep()


if __name__ == "__main__":
    main(*sys.argv[1:])
