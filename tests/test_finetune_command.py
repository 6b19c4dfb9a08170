"""What the README tells of learning: label with maps, fine-tune on labels, and label with the new version."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coco_folder import write_coco

from engine.finetune import FinetunedModel, finetune_model
from engine.learn.data import read_coco
from engine.models.loading import load_segmenter
from engine.store import Store
from schemas.settings import FinetuneSettings

ROOT = Path(__file__).parents[1]


def gapmap(*arguments: object, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_a_model_is_fine_tuned_and_its_new_version_labels_with_its_own_maps_and_heads(tmp_path: Path) -> None:
    labelled = write_coco(tmp_path / "labelled", range(970_000, 970_010))
    write_coco(tmp_path / "pool", range(971_000, 971_002))
    shutil.copy(labelled / "03.png", tmp_path / "pool" / "labelled-already.png")
    store, models = tmp_path / "masks", tmp_path / "models"
    grid = ["--points-per-side", 8, "--pred-iou-thresh", 0.1, "--stability-score-thresh", 0.1]
    plain = gapmap("label", tmp_path / "pool", "--store", store, *grid)
    assert plain.returncode == 0, plain.stderr
    [row] = (
        Store(str(store))
        .query("SELECT count(*) AS n, count(map_mean) AS mapped, any_value(map_source) AS source FROM masks")
        .to_pylist()
    )
    assert row["n"] == row["mapped"] > 0
    few = ["--steps", 4, "--images", 2, "--masks", 2, "--rounds", 3]
    few += ["--refiner-steps", 3, "--refit-scenes", 6]
    learning = ["finetune", "--data", labelled, "--store", store, "--out", models, *few]
    tuned = gapmap(*learning)
    assert tuned.returncode == 0, tuned.stderr
    [weights] = models.glob("*/sam-nano.safetensors")
    new = load_segmenter(weights, device="cpu")
    assert f"{new.model_id}, from sam-nano@" in tuned.stdout
    assert weights.parent.name == new.version
    assert not list(models.glob("*.checkpoint"))
    [row] = Store(str(store)).query(f"SELECT * FROM models WHERE model = '{new.model_id}'").to_pylist()
    assert row["parent"].startswith("sam-nano@")
    assert json.loads(row["data"])["human"] == {"labelled": 8}
    assert json.loads(row["data"])["pseudo"]["masks"] > 0
    assert json.loads(row["data"])["pseudo"]["held"] == 2, (
        "not to what it said of an image that people labelled"
    )
    assert json.loads(row["settings"])["steps"] == 4
    assert json.loads(row["metrics"])["history"][0]["iou"] > 0

    again = gapmap("label", tmp_path / "pool", "--store", store, "--model", weights, *grid)
    assert again.returncode == 0, again.stderr
    scored = (
        Store(str(store))
        .query(f"SELECT DISTINCT map_source, uncertainty_source FROM masks WHERE model = '{new.model_id}'")
        .to_pylist()
    )
    assert scored == [{"map_source": "refiner", "uncertainty_source": "predicted_iou"}]
    [row] = Store(str(store)).query(f"SELECT parent FROM models WHERE model = '{new.model_id}'").to_pylist()
    assert row["parent"], "labelling does not hide where a model comes from"
    old = gapmap(
        "label",
        tmp_path / "pool",
        "--store",
        store,
        "--maps",
        weights.with_suffix("").with_suffix(".refiner.safetensors"),
    )
    assert old.returncode == 1
    assert "gapmap fit-refiner" in old.stderr

    shown = gapmap("show", _first_mask(store), "--store", store, "--out", tmp_path / "mask.png")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "mask.png").stat().st_size > 5_000
    judged = gapmap(
        "evaluate",
        "maps",
        "--model",
        weights,
        "--data",
        labelled,
        "--json",
        "--plot",
        tmp_path / "validity.png",
    )
    assert judged.returncode == 0, judged.stderr
    result = json.loads(judged.stdout)
    assert result["map_source"] == "refiner"
    assert result["results"]["labelled"]["masks"] > 0
    assert (tmp_path / "validity.png").stat().st_size > 10_000


def test_a_run_killed_before_its_version_was_recorded_has_nothing_to_learn_again(tmp_path: Path) -> None:
    sets = {"labelled": read_coco(write_coco(tmp_path / "labelled", range(970_000, 970_005)))}
    nano = load_segmenter("sam-nano", device="cpu")
    settings = FinetuneSettings(steps=2, images=1, masks=1, rounds=2)
    done: list[int] = []

    def learn() -> FinetunedModel:
        return finetune_model(
            nano, sets, None, settings, tmp_path / "models", progress=lambda at, *_: done.append(at)
        )

    made = learn()
    assert done == [1, 2]
    again = learn()
    assert done == [1, 2], "on from where it was: behind the last update"
    assert (again.path, again.record) == (made.path, made.record)


def _first_mask(store: Path) -> str:
    return str(Store(str(store)).query("SELECT min(mask_id) AS id FROM masks").to_pylist()[0]["id"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune"], "--data FOLDER"),
        (["finetune", "--data", "nowhere", "--steps", "1"], "not a readable COCO file"),
        (["finetune", "--data", "nowhere", "--train", "head"], "--train"),
        (["fit-refiner"], "--data FOLDER"),
        (["fit-refiner", "--scenes", "1", "--out", "nowhere/x.safetensors"], "no folder nowhere"),
        (["evaluate", "maps"], "--data FOLDER"),
        (["evaluate", "maps", "--maps", "none"], "nothing to evaluate"),
    ],
)
def test_what_cannot_work_says_what_to_do(arguments: list[str], said: str) -> None:
    result = gapmap(*arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
