"""From labelled images to heads, to scores in the store, to the tables that say what they are worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from coco_folder import write_coco

from engine.store import Store
from engine.uncertainty.head_files import read_heads

ROOT = Path(__file__).parents[1]
METHODS = {"sam_score", "entropy", "H_Y", "H_A", "H_Xp", "H_Theta", "delta", "delta_star", "random", "oracle"}


def gapmap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PREFECT_API_URL": ""},
    )


@pytest.mark.slow
def test_heads_are_fitted_used_and_evaluated(tmp_path: Path) -> None:
    labelled = write_coco(tmp_path / "labelled", range(910_000, 910_015))
    unseen = write_coco(tmp_path / "unseen", range(920_000, 920_010))
    heads, tokens = tmp_path / "own.heads.safetensors", tmp_path / "tokens"
    pair = ["--model", "sam-nano", "--larger", "sam2-mini", "--tokens", tokens]
    few = ["--objects", 4]
    fitted = gapmap(
        "fit-heads", *pair, *few, "--data", labelled, "--scenes", 2, "--evaluate-on", unseen, "--out", heads
    )
    assert fitted.returncode == 0, fitted.stderr
    card = (tmp_path / "own.heads.md").read_text()
    assert "| unseen |" in card
    assert "| labelled |" in card, "what was kept out of it"
    assert "- scenes: 2 images" in card
    [row] = (
        Store(str(tokens))
        .query("SELECT count(*) AS n, count(DISTINCT image_id) AS images FROM tokens")
        .to_pylist()
    )
    assert row["images"] >= 25
    assert row["n"] > 50

    store = tmp_path / "masks"
    grid = ["--points-per-side", 6, "--pred-iou-thresh", 0.1, "--stability-score-thresh", 0.1]
    relative = os.path.relpath(heads, ROOT)
    labelling = gapmap("label", unseen, "--store", store, "--heads", relative, *grid)
    assert labelling.returncode == 0, labelling.stderr
    counts = gapmap(
        "query", "SELECT count(*) = count(task_gap) AND count(*) > 10 AS all_scored FROM masks", "--store", store, "--format", "csv",
    )  # fmt: skip
    assert "true" in counts.stdout.lower(), counts.stdout + counts.stderr
    wrong = gapmap("label", unseen, "--store", store, "--heads", heads.as_uri(), "--model", "sam2-mini")
    assert wrong.returncode == 1
    assert "gapmap fit-heads" in wrong.stderr

    judged = gapmap(
        "evaluate", "uncertainty", *pair, *few, "--data", labelled, "--data", unseen, "--heads", heads,
        "--no-ablation", "--seeds", 2, "--json", "--plots", tmp_path / "plots",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    result = json.loads(judged.stdout)
    assert set(result["relative_auc"]) == {"model", "prompt", "task"}
    assert all(set(table) == METHODS for table in result["relative_auc"].values())
    assert all({"mean", "std"} == set(cell) for cell in result["relative_auc"]["task"].values())
    assert set(result["correlation"]) >= METHODS
    assert 0 <= result["calibration_error"] <= 1
    assert result["sets"]["labelled"]["n"] < result["sets"]["unseen"]["n"], (
        "what it was fitted to is left out"
    )
    assert result["automatic"]["n"] > 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "relative-auc.png", "correction-curves.png", "calibration.png", "correlation.png",
    }  # fmt: skip

    refitted = gapmap(
        "evaluate", "uncertainty", *pair, *few, "--data", labelled, "--data", unseen,
        "--refit", "--no-baselines", "--seeds", 1,
    )  # fmt: skip
    assert refitted.returncode == 0, refitted.stderr
    assert "Δ*" in refitted.stdout
    assert "heads that see iou_token" in refitted.stdout


def test_no_larger_model_can_be_asked_for_in_a_word(tmp_path: Path) -> None:
    """As `gapmap round` and `triage` take it."""
    labelled = write_coco(tmp_path / "labelled", range(910_000, 910_010))
    heads = tmp_path / "own.heads.safetensors"
    few = ["--model", "sam-nano", "--larger", "none", "--tokens", tmp_path / "tokens"]
    few += ["--data", labelled, "--objects", 2, "--automatic", 0]
    fitted = gapmap("fit-heads", *few, "--out", heads)
    assert fitted.returncode == 0, fitted.stderr
    assert "model_gap" not in read_heads(heads).names
    judged = gapmap(
        "evaluate", "uncertainty", *few, "--refit", "--no-baselines", "--no-ablation", "--seeds", 1
    )
    assert judged.returncode == 0, judged.stderr
    assert "larger none" in judged.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit-heads"], "--data FOLDER"),
        (["evaluate", "uncertainty"], "--data FOLDER"),
        (["fit-heads", "--data", "nowhere"], "not a readable COCO file"),
        (["fit-heads", "--scenes", "1", "--calibrate-on", "scene"], "Did you mean 'scenes'"),
        (["fit-heads", "--scenes", "1", "--out", "nowhere/x.heads.safetensors"], "no folder nowhere"),
        (["fit-heads", "--scenes", "1", "--model", "sam-nan"], "Did you mean 'sam-nano'"),
    ],
)
def test_what_cannot_work_says_what_to_do(arguments: list[str], said: str) -> None:
    result = gapmap(*arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("what", "of_label"), [("heads", "--heads"), ("refiner", "--maps")])
def test_what_label_uses_is_not_written_over_unless_asked(tmp_path: Path, what: str, of_label: str) -> None:
    weights, present = tmp_path / "own.safetensors", tmp_path / f"own.{what}.safetensors"
    weights.write_bytes((ROOT / "weights" / "sam-nano.safetensors").read_bytes())
    present.write_bytes(b"fitted before")
    words = [f"fit-{what}", "--model", weights, "--scenes", 1]
    few = (
        ["--tokens", tmp_path / "tokens", "--objects", 1, "--automatic", 0]
        if what == "heads"
        else ["--steps", 1]
    )
    result = gapmap(*words, *few)
    assert result.returncode == 1
    assert f"{present} is there already, and label uses it." in result.stderr
    assert all(word in result.stderr for word in ("--out FILE", of_label, "--replace"))
    assert present.read_bytes() == b"fitted before"
