"""A user asks which of two models needs fewer clicks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_folder import write_coco
from PIL import Image

from engine.evaluate.interactive import choose_images, evaluate_interactive
from engine.learn.data import read_sets
from engine.learn.splits import split_groups
from engine.models.loading import load_segmenter
from engine.report.click_pictures import draw_clicks, draw_examples

ROOT = Path(__file__).parents[1]


def gapmap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "COLUMNS": "120"}
    )


def with_modality(folder: Path, modality: str) -> Path:
    """The same set with its last image of that look."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    content["images"][-1]["modality"] = modality
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_two_models_are_compared_click_by_click(tmp_path: Path) -> None:
    first = write_coco(tmp_path / "first", range(910_000, 910_006))
    second = with_modality(write_coco(tmp_path / "second", range(910_010, 910_013)), "purple_white")
    sets = ["--data", first, "--data", second, "--masks", 4]
    ran = gapmap(
        "evaluate", "interactive", "--model", "sam-nano", "--against", "sam2-mini", *sets,
        "--points", "3,1", "--json", "--pictures", tmp_path / "pictures",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert set(report) == {"model", "results", "against", "differences"}
    assert report["model"] == load_segmenter("sam-nano").model_id
    assert report["against"].startswith("sam2-mini@")
    assert all(set(row) == {"data", "task", "points", "miou", "mbiou", "n"} for row in report["results"])
    assert {row["points"] for row in report["results"]} == {1, 3}
    assert {row["data"] for row in report["results"]} == {"first", "second", "second, unknown modalities"}
    assert all(0 <= row["mbiou"] <= 1 and 0 < row["miou"] <= 1 for row in report["results"])
    keys = {"task", "points", "metric", "mean", "low", "high", "n", "groups"}
    assert all(set(row) == keys for row in report["differences"])
    assert {row["metric"] for row in report["differences"]} == {"miou", "mbiou"}
    tasks = {row["task"] for row in report["results"]}
    assert {row["task"] for row in report["differences"]} == {*tasks, "all"}
    [overall] = [
        r for r in report["differences"] if (r["task"], r["points"], r["metric"]) == ("all", 3, "miou")
    ]
    assert overall["n"] == sum(row["n"] for row in report["results"] if row["points"] == 3)
    assert overall["low"] < overall["mean"] < overall["high"]
    named = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert named == {
        f"{data}-{row['task']}.png"
        for row in report["results"]
        for data in [row["data"].replace(", ", "-").replace(" ", "-")]
    }
    assert "picture: " in ran.stderr

    other = gapmap("evaluate", "interactive", "--model", "sam2-mini", *sets, "--points", "1,3", "--json")
    theirs = json.loads(other.stdout)["results"]
    n = [row["n"] for row in report["results"] if row["points"] == 3]
    ours, them = (
        np.average([row["miou"] for row in rows if row["points"] == 3], weights=n)
        for rows in (report["results"], theirs)
    )
    assert overall["mean"] == pytest.approx(ours - them, abs=1e-4)


@pytest.mark.slow
def test_the_table_says_the_same_and_only_kept_out_groups_count_if_asked(tmp_path: Path) -> None:
    labelled = write_coco(tmp_path / "labelled", range(910_000, 910_005))
    command = ["evaluate", "interactive", "--data", labelled, "--points", "1,2", "--kept-out"]
    told = gapmap(*command, "--json")
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)["results"]
    shown = gapmap(*command)
    assert shown.returncode == 0, shown.stderr
    assert "1 click " in shown.stdout
    assert "2 clicks" in shown.stdout
    for row in rows:
        assert f"{100 * row['miou']:.1f} / {100 * row['mbiou']:.1f}" in shown.stdout
    [kept_out] = split_groups(read_sets([labelled])["labelled"])[1]
    assert sum(row["n"] for row in rows if row["points"] == 1) == len(kept_out.masks)


def test_pictures_show_the_best_and_the_worst_with_their_clicks(tmp_path: Path) -> None:
    sets = choose_images(read_sets([write_coco(tmp_path / "few", range(910_000, 910_003))]), masks=4)
    results = evaluate_interactive(load_segmenter("sam-nano"), sets, (1, 2), keep_masks=True)
    written = draw_examples(results, sets, tmp_path / "pictures", model="sam-nano")
    tasks = {result.task for result in results}
    assert {path.name for path in written} == {f"few-{task}.png" for task in tasks}
    for path in written:
        with Image.open(path) as page:
            assert page.width > 600
            assert len(np.unique(np.asarray(page).reshape(-1, 3), axis=0)) > 1000
    assert not list((tmp_path / "pictures").glob(".*")), "nothing half written is left"


def test_a_picture_has_the_clicks_where_they_were() -> None:
    pixels = np.full((100, 160, 3), 128, np.uint8)
    truth, mask = np.zeros((2, 100, 160), bool)
    truth[20:80, 20:80] = True
    mask[30:90, 30:150] = True
    drawn = np.asarray(draw_clicks(pixels, truth, mask, [(50, 50, 1), (120, 60, 0)], side=320)).astype(int)
    assert drawn.shape == (200, 320, 3)
    red, green, blue = drawn[110, 200]
    assert blue > red + 40, "the prediction is blue"
    red, green, blue = drawn[100, 40]
    assert red > 200
    assert green > 150 > blue, "the truth is outlined in yellow"
    red, green, blue = drawn[101, 96]
    assert green > red + 80, "a click on the mask is green"
    red, green, blue = drawn[121, 236]
    assert red > blue + 100, "a click beside it is red"


def test_what_an_evaluation_needs_is_in_its_help() -> None:
    text = " ".join(gapmap("evaluate", "interactive", "--help").stdout.replace("│", " ").split())
    for word in (
        "--points",
        "--against",
        "--kept-out",
        "--pictures",
        "innermost",
        "best of three",
        "Example:",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--data FOLDER"),
        (["--points", "1;3", "--data", "x"], "--points 1,3,5"),
        (["--points", "0", "--data", "x"], "from 1 to 20"),
        (["--points", "", "--data", "x"], "--points 1,3,5"),
        (["--data", "nowhere"], "not a readable COCO file"),
        (["--data", "{empty}"], "'empty' has no labelled image"),
        (["--data", "{one}", "--kept-out"], "--all"),
        (["--data", "{one}", "--model", "sam-nan"], "Did you mean 'sam-nano'"),
    ],
)
def test_what_cannot_work_says_what_to_do(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "annotations.json").write_text('{"images": [], "annotations": []}')
    one = write_coco(tmp_path / "one", range(910_000, 910_001))
    filled = [text.format(empty=tmp_path / "empty", one=one) for text in arguments]
    result = gapmap("evaluate", "interactive", *filled)
    assert result.returncode == 1
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
