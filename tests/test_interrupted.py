"""kill -9 at any moment, start again: the store ends like one that was never disturbed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
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


def command(pool: Path, store: Path) -> list[str]:
    options = ["--shard-size", "4", "--batch-size", "2", "--points-per-side", "3"]
    return [
        sys.executable, "-m", "flows.cli", "label", str(pool), "--store", str(store), *options,
        "--pred-iou-thresh", "0", "--stability-score-thresh", "0",
    ]  # fmt: skip


def run(pool: Path, store: Path, environment: dict[str, str]) -> None:
    subprocess.run(
        command(pool, store), cwd=ROOT, env=environment, check=True, capture_output=True, timeout=900
    )


@pytest.mark.slow
def test_ten_kills_leave_the_store_of_an_undisturbed_run(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for seed in range(60):
        Image.fromarray(make_scene(seed, 96).image).save(pool / f"{seed:03}.png")
    (pool / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than this")
    run(pool, tmp_path / "calm", prefect_server)

    store, chance, kills, committed = tmp_path / "killed", random.Random(7), 0, [0]
    while kills < 10:
        process = subprocess.Popen(
            command(pool, store),
            cwd=ROOT,
            env=prefect_server,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # The moment counts from the first sign of labelling, so that every part of a shard is hit, not only the start.
        seen = len(list(store.rglob("*.parquet")))
        deadline = time.monotonic() + 120
        while (
            len(list(store.rglob("*.parquet"))) == seen
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.8))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
        now = Store(str(store)).query("SELECT count(*) AS n FROM images").to_pylist()[0]["n"]
        assert now >= committed[-1], "what was committed stays"
        committed.append(now)
    assert kills >= 5, f"the run ended after {kills} kills: too few to show anything"
    run(pool, store, prefect_server)

    calm, killed = Store(str(tmp_path / "calm")), Store(str(store))
    assert without_root(killed.query(IMAGES)) == without_root(calm.query(IMAGES))
    assert killed.query(MASKS).equals(calm.query(MASKS))
    # No shard was labelled twice: rows of superseded commits would still lie in the images files.
    rows = sum(pa.parquet.read_metadata(path).num_rows for path in (store / "images").rglob("*.parquet"))
    assert rows == 61


def without_root(images: pa.Table) -> list[dict]:
    return [{**row, "uri": Path(row["uri"]).name} for row in images.to_pylist()]
