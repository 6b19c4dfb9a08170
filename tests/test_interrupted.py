"""kill -9 at any moment, SIGTERM or Ctrl-C, and start again: the store ends like one that was never disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from engine.scenes import make_scene
from engine.store import Store

ROOT = Path(__file__).parents[1]
IMAGES = "SELECT uri, image_id, n_masks, error_kind, settings, model FROM images ORDER BY uri"
MASKS = "SELECT * EXCLUDE (attempt) FROM masks ORDER BY mask_id"


KILLS, IMAGES_IN_POOL = 10, 24


def command(pool: Path, store: Path) -> list[str]:
    options = ["--shard-size", "2", "--batch-size", "2", "--points-per-side", "3"]
    return [
        sys.executable, "-m", "flows.cli", "label", str(pool), "--store", str(store), *options,
        "--pred-iou-thresh", "0", "--stability-score-thresh", "0",
    ]  # fmt: skip


def run(pool: Path, store: Path, environment: dict[str, str]) -> float:
    """Label without a disturbance; returns the seconds it took."""
    began = time.monotonic()
    subprocess.run(
        command(pool, store), cwd=ROOT, env=environment, check=True, capture_output=True, timeout=900
    )
    return time.monotonic() - began


@pytest.mark.slow
def test_ten_kills_leave_the_store_of_an_undisturbed_run(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for seed in range(IMAGES_IN_POOL):
        Image.fromarray(make_scene(seed, 96).image).save(pool / f"{seed:03}.png")
    (pool / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than this")
    calm, store = tmp_path / "calm", tmp_path / "killed"
    whole_s = run(pool, calm, prefect_server)

    chance, kills, done, finished = random.Random(7), 0, 0, []
    while kills < KILLS:
        process = subprocess.Popen(
            command(pool, store), cwd=ROOT, env=prefect_server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        if kills % 2:  # while it labels: every part of a shard, and what lies between two
            wait_for_a_new_file(store, process)
            time.sleep(chance.uniform(0, 0.5))
        else:  # while it starts, loads, lists and begins
            time.sleep(chance.uniform(0, whole_s / 2))
        if process.poll() is not None:
            assert process.returncode == 0
            finished.append(store)
            store, done = tmp_path / f"killed-{len(finished)}", 0
            continue
        process.kill()
        process.wait()
        kills += 1
        now = committed(store)
        assert now >= done, "what was committed stays"
        done = now
    run(pool, store, prefect_server)
    for each in (*finished, store):
        assert_equal_stores(each, calm)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "number", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.killpg, signal.SIGTERM, 143), (os.kill, signal.SIGTERM, 143)],
    ids=["ctrl-c", "its job is ended", "it is ended"],
)
def test_a_command_that_is_stopped_ends_at_once_and_the_same_command_goes_on(
    end: Callable[[int, int], None], number: int, code: int, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to the command and to the temporary server of Prefect that it started, as `timeout` sends SIGTERM."""
    pool, store = tmp_path / "pool", tmp_path / "store"
    pool.mkdir()
    for seed in range(IMAGES_IN_POOL):
        Image.fromarray(make_scene(seed, 96).image).save(pool / f"{seed:03}.png")
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command(pool, store), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    wait_for_a_new_file(store / "images", process)
    began = time.monotonic()
    end(process.pid, number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert time.monotonic() - began < 45
    assert "stopped. What was committed stays; the same command goes on from there." in said
    assert "Traceback" not in said
    assert "Prefect" not in said
    done = committed(store)
    assert 0 < done < IMAGES_IN_POOL
    run(pool, store, environment)
    assert committed(store) == IMAGES_IN_POOL


def hear_ctrl_c() -> None:
    """As in a terminal: what is started in the background, as tests may be, ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_a_new_file(store: Path, process: subprocess.Popen[bytes]) -> None:
    seen = len(list(store.rglob("*.parquet")))
    deadline = time.monotonic() + 300
    while len(list(store.rglob("*.parquet"))) == seen and process.poll() is None:
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.02)


def committed(store: Path) -> int:
    return Store(str(store)).query("SELECT count(*) AS n FROM images").to_pylist()[0]["n"]


def assert_equal_stores(killed: Path, calm: Path) -> None:
    assert without_root(Store(str(killed)).query(IMAGES)) == without_root(Store(str(calm)).query(IMAGES))
    assert Store(str(killed)).query(MASKS).equals(Store(str(calm)).query(MASKS))
    # No shard was labelled twice: rows of superseded commits would still lie in the images files.
    rows = sum(pa.parquet.read_metadata(path).num_rows for path in (killed / "images").rglob("*.parquet"))
    assert rows == IMAGES_IN_POOL + 1


def without_root(images: pa.Table) -> list[dict]:
    return [{**row, "uri": Path(row["uri"]).name} for row in images.to_pylist()]
