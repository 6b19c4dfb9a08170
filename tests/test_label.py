"""`gapmap label`: a folder of images in, rows in the store, and nothing done twice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pytest

from engine.store import Store

ROOT = Path(__file__).parents[1]
FEW_POINTS = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


def gapmap(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_label_a_folder_then_again_then_more(
    prefect_server: dict[str, str], small_pool: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    first = gapmap(
        prefect_server, "label", str(small_pool), "--store", store, "--shard-size", "5", *FEW_POINTS
    )
    assert first.returncode == 0, first.stderr
    assert "12 labelled, 0 done before" in first.stderr
    assert "1 truncated" in first.stderr
    images = Store(store).query("SELECT * FROM images ORDER BY uri")
    assert images.num_rows == 13
    broken = [row for row in images.to_pylist() if row["error"]]
    assert [(Path(row["uri"]).name, row["n_masks"]) for row in broken] == [("broken.png", 0)]
    counted = (
        Store(store)
        .query(
            "SELECT count(*) AS masks, count(DISTINCT mask_id) AS ids, count(DISTINCT image_id) AS images FROM masks"
        )
        .to_pylist()[0]
    )
    assert counted["masks"] == counted["ids"] > 11
    assert counted["images"] == 11, "equal contents are masked once"
    said = pa.compute.sum(images["n_masks"]).as_py()
    copies = [row["n_masks"] for row in images.to_pylist() if Path(row["uri"]).name in ("00.png", "copy.png")]
    assert said == counted["masks"] + copies[0], "the copy's row counts the masks it shares"

    again = gapmap(prefect_server, "label", str(small_pool), "--store", store, *FEW_POINTS)
    assert again.returncode == 0, again.stderr
    assert "0 labelled, 13 done before" in again.stderr
    assert Store(store).query("FROM images").num_rows == 13

    (small_pool / "broken.png").write_bytes((small_pool / "02.png").read_bytes())
    mended = gapmap(prefect_server, "label", str(small_pool), "--store", store, *FEW_POINTS)
    assert mended.returncode == 0, mended.stderr
    assert "1 labelled, 12 done before" in mended.stderr
    assert "1 images had their masks already" in mended.stderr
    assert Store(store).query("SELECT count(*) AS n FROM images WHERE error IS NOT NULL").to_pylist() == [
        {"n": 0}
    ]
    model = Store(store).query("SELECT * FROM models").to_pylist()
    assert [row["name"] for row in model] == ["sam-nano"]
    assert re.fullmatch(r"sam-nano@[0-9a-f]{12}", model[0]["model"])


@pytest.mark.slow
def test_other_settings_label_anew_and_the_newer_masks_are_seen(
    prefect_server: dict[str, str], small_pool: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    for points in ("2", "4"):
        done = gapmap(
            prefect_server, "label", str(small_pool), "--store", store, "--limit", "3", "--points-per-side", points,
            "--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    images = Store(store).query("SELECT * FROM images").to_pylist()
    assert len(images) == 3
    assert all('"points_per_side": 4' in row["settings"] for row in images)
    assert Store(store).query("SELECT count(*) AS n FROM masks").to_pylist()[0]["n"] == sum(
        r["n_masks"] for r in images
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-folder"], "no-such-folder"),
        (["POOL", "--model", "sam-nono"], "Did you mean 'sam-nano'?"),
        (["POOL", "--points-per-side", "0"], "greater than or equal to 1"),
        (["POOL", "--device", "tpu"], "tpu"),
        (["POOL", "--include", "*.tif"], "*.tif"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    prefect_server: dict[str, str], small_pool: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [str(small_pool) if argument == "POOL" else argument for argument in arguments]
    result = gapmap(prefect_server, "label", *given, "--store", str(tmp_path / "store"))
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path).glob("store/masks/**/*.parquet"))
