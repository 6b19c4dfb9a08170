"""`gapmap label`: a folder of images in, rows in the store, and nothing done twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pyarrow as pa
import pyarrow.compute
import pytest

from engine.store import Store
from schemas.errors import ConfigError

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
FEW_POINTS = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


def gapmap(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


WITH_CREDENTIALS = [
    ("pool", "https://bob:s3cret@host/photos/"),
    ("store", "s3://key:s3cret@bucket/masks"),
    ("model", "https://host/vit.pth?X-Amz-Signature=s3cret"),
]


@pytest.mark.parametrize(("what", "address"), WITH_CREDENTIALS)
def test_an_address_with_credentials_is_refused_before_prefect_hears_of_it(
    tmp_path: Path, what: str, address: str
) -> None:
    given = {"pool": str(tmp_path), "store": str(tmp_path / "store"), "model": "sam-nano"} | {what: address}
    nobody = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_LOGGING_LEVEL": "DEBUG"}
    result = gapmap(nobody, "label", given["pool"], "--store", given["store"], "--model", given["model"])
    assert result.returncode == 1
    assert re.search(f"The {what} .* carries credentials.* environment", result.stderr)
    assert "s3cret" not in result.stderr + result.stdout


@pytest.mark.parametrize(("what", "address"), WITH_CREDENTIALS)
def test_a_deployment_refuses_addresses_with_credentials(what: str, address: str) -> None:
    from flows.pseudolabel import pseudolabel

    given = {"pool": "photos", "store": "masks", "model": "sam-nano"} | {what: address}
    with pytest.raises(ConfigError, match=f"The {what} .* carries credentials") as caught:
        pseudolabel.fn(**given)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("empty", ["pool", "store"])
def test_an_empty_address_does_not_mean_the_folder_one_is_in(tmp_path: Path, empty: str) -> None:
    """As of a variable that is not set: gapmap label "$POOL" --store "$STORE"."""
    given = {"pool": str(tmp_path), "store": str(tmp_path / "store")} | {empty: ""}
    nobody = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    result = gapmap(nobody, "label", given["pool"], "--store", given["store"])
    assert result.returncode == 1
    assert f"The {empty} needs an address" in result.stderr


@pytest.mark.parametrize("option", ["--shard-size", "--batch-size", "--limit"])
def test_a_number_below_one_is_refused_with_its_option(small_pool: Path, tmp_path: Path, option: str) -> None:
    result = gapmap(
        dict(os.environ), "label", str(small_pool), "--store", str(tmp_path / "store"), option, "0"
    )
    assert result.returncode == 2
    assert f"Invalid value for '{option}'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_prefect_server_that_does_not_answer_is_said_in_one_line(small_pool: Path, tmp_path: Path) -> None:
    nobody = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    result = gapmap(nobody, "label", str(small_pool), "--store", str(tmp_path / "store"))
    assert result.returncode == 1
    assert "gapmap: Prefect cannot run this:" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"POOL": "no-such-folder"}, "There is no pool at .*no-such-folder"),
        ({"--store": "a-file"}, "The store .*a-file cannot be written"),
        ({"--store": "/proc/nope"}, "The store /proc/nope cannot be written"),
        ({"--model": "sam-nono"}, "Did you mean 'sam-nano'"),
        ({"--model": "nowhere/vit.pth"}, "no checkpoint at nowhere/vit.pth"),
        ({"--heads": "mine.heads"}, "no file .*mine.heads: check the name given with --heads"),
        ({"--points-per-side": "0"}, "--points-per-side: .*greater than or equal to 1"),
        ({"--include": "*.tif"}, "No image in the pool"),
    ],
)
def test_a_typing_error_is_told_in_one_line_before_prefect_is_started(
    small_pool: Path, tmp_path: Path, mistake: dict[str, str], message: str
) -> None:
    (tmp_path / "a-file").touch()
    given = {"POOL": str(small_pool), "--store": "store", **mistake}
    options = [word for name, value in given.items() if name != "POOL" for word in (name, value)]
    nobody = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", "label", given["POOL"], *options],
        cwd=tmp_path, env=nobody, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 1
    assert re.fullmatch(f"gapmap: .*{message}.*\n", result.stderr)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 8.0])
def test_kill_leaves_no_server_behind(small_pool: Path, tmp_path: Path, after_s: float) -> None:
    """Killed while the temporary server starts, and later."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "label",
        str(small_pool),
        "--store",
        str(tmp_path / "store"),
    ]
    killed = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    servers = wait_for(lambda: [p for p in psutil.Process(killed.pid).children() if "uvicorn" in p.cmdline()])
    time.sleep(after_s)
    assert killed.poll() is None
    killed.kill()
    killed.wait()
    try:
        assert wait_for(lambda: not any(server.is_running() for server in servers))
    finally:
        for server in servers:
            if server.is_running():
                server.kill()


def wait_for(found: Callable[[], T], seconds: float = 60) -> T:
    deadline = time.monotonic() + seconds
    while not (result := found()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return result


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
    *_, on_bar, in_all = (float(rate) for rate in re.findall(r"([\d.]+) images/s", first.stderr))
    assert on_bar == pytest.approx(in_all, rel=0.02, abs=0.02), "one speed, by the clock"
    assert "broken.png: " in first.stderr
    assert f'WHERE error IS NOT NULL" --store {store}' in first.stderr
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
