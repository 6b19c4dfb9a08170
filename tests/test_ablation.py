"""Someone asks what each part of the method is worth on their images: one command, one table, gone on with when killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_folder import write_coco
from PIL import Image

from engine.evaluate.ablation import VARIANTS, tabulate
from engine.evaluate.mask_results import MaskResult
from engine.learn.other_teachers import teach_otherwise
from engine.learn.training_images import pseudo_labelled_images
from engine.masks.rle import decode_rle
from engine.models.loading import load_segmenter
from engine.report.learning_plots import draw_ablation, draw_learning
from engine.store import Store
from engine.uncertainty.refiner_files import find_refiner

ROOT = Path(__file__).parents[1]


def gapmap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def result(data: str, group: int, points: int, iou: float) -> MaskResult:
    return MaskResult(data, str(group), f"{group}.png", 0, "part", points, iou, iou / 2, ((1.0, 1.0, 1),))


def rows_of(gains: dict[str, float]) -> list[MaskResult]:
    return [
        result(data, group, points, 0.5 + gain + group / 100)
        for data, gain in gains.items()
        for group in range(5)
        for points in (1, 3, 5)
    ]


def test_the_table_says_what_was_gained_and_what_was_forgotten() -> None:
    base = rows_of({"parts": 0.0, "cells": 0.0})
    rows = tabulate({"base": base, "sum": rows_of({"parts": 0.2, "cells": -0.1})}, learnt=["parts"])
    base_row, sum_row = rows
    assert base_row["points"][1]["gain"] == 0
    assert base_row["worst_unseen"] == 0
    assert sum_row["points"][3]["gain"] == pytest.approx(0.05)
    assert sum_row["points"][3]["boundary_gain"] == pytest.approx(0.025)
    assert sum_row["points"][3]["miou"] == pytest.approx(0.57)
    assert sum_row["sets"] == {"parts": pytest.approx([0.2] * 3), "cells": pytest.approx([-0.1] * 3)}
    assert sum_row["worst_unseen"] == pytest.approx(-0.1), "a set that was learnt from cannot be forgotten"


def test_pictures_of_learning_are_written_whole(tmp_path: Path) -> None:
    history = [{"step": 50.0 * n, "loss": 3.0 / (n + 1), "iou": 0.5 + 0.02 * n} for n in range(5)]
    draw_learning(history, 150, tmp_path / "learning.png", title="sam-nano@1, fine-tuned")
    draw_learning(
        [{"step": 0.0, "loss": 0.0, "iou": 0.0}], 0, tmp_path / "none.png", title="nothing held out"
    )
    base = rows_of({"parts": 0.0})
    variants = tabulate({"base": base, **{name: rows_of({"parts": 0.1}) for name in VARIANTS}})
    draw_ablation({"model": "sam-nano@1", "masks": 5, "variants": variants}, tmp_path / "ablation.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation.png", "learning.png", "none.png"]
    assert Image.open(tmp_path / "ablation.png").size[0] > 1000


@pytest.mark.slow
def test_one_command_fine_tunes_in_several_ways_and_goes_on_where_it_was(tmp_path: Path) -> None:
    labelled = write_coco(tmp_path / "labelled", range(970_000, 970_010))
    unseen = write_coco(tmp_path / "unseen", range(972_000, 972_006))
    write_coco(tmp_path / "pool", range(971_000, 971_003))
    shutil.copy(labelled / "03.png", tmp_path / "pool" / "labelled-already.png")
    store, folder = tmp_path / "masks", tmp_path / "ablation"
    grid = ["--points-per-side", 8, "--pred-iou-thresh", 0.1, "--stability-score-thresh", 0.1]
    made = gapmap("label", tmp_path / "pool", "--store", store, "--maps", "self", *grid)
    assert made.returncode == 0, made.stderr

    segmenter = load_segmenter("sam-nano", device="cpu")
    pseudo = pseudo_labelled_images(Store(str(store)), segmenter.model_id)
    refiner = find_refiner(segmenter, "self")
    assert refiner is not None
    confident, redrawn = teach_otherwise(refiner, segmenter, pseudo)
    kept = sum(len(image.masks) for image in confident)
    assert kept >= 0.9 * sum(len(image.masks) for image in pseudo) > 5, (
        "masks of the whole frame are found again"
    )
    for image, other, drawn in zip(pseudo, confident, redrawn, strict=True):
        stored = {mask.counts: mask for mask in image.masks}
        for mask in other.masks:
            ours, theirs = stored[mask.counts].uncertainty, mask.uncertainty
            assert ours is not None
            assert theirs is not None
            assert not np.array_equal(ours.values_hw, theirs.values_hw)
        for mask in drawn.masks:
            assert decode_rle([mask.counts], *mask.size).any()

    asked = [
        "evaluate",
        "ablation",
        "--data",
        labelled,
        "--also",
        unseen,
        "--store",
        store,
        "--folder",
        folder,
    ]
    asked += ["--maps", "self", "--steps", 2, "--rate", 1e-3, "--images", 1, "--masks", 2]
    first = gapmap(*asked, "--variants", "sum,confidence", "--json")
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(before) == 3
    several = ["base", "vanilla", "redrawn", "sum", "confidence"]
    every = gapmap(*asked, "--variants", ",".join(several), "--json", "--plot", tmp_path / "ablation.png")
    assert every.returncode == 0, every.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not done again"
    report = json.loads(every.stdout)
    assert [row["variant"] for row in report["variants"]] == several
    assert report["pseudo"] == sum(bool(image.masks) for image in pseudo) - 1, (
        "without the one that people labelled"
    )
    by_name = {row["variant"]: row for row in report["variants"]}
    assert by_name["sum"] == {row["variant"]: row for row in json.loads(first.stdout)["variants"]}["sum"]
    assert set(by_name["sum"]["sets"]) == {"labelled", "unseen"}
    # What two updates learn may be no better than the model as it was, whose weights are kept then.
    looks = [json.loads(path.read_text())["history"] for path in folder.glob("*.json")]
    losses = [look[-1]["loss"] for look in looks if look]
    assert len(set(losses)) == len(losses) == len(several) - 1, "the ways differ"
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    table = gapmap(*asked, "--variants", "sum,redrawn")
    assert "refiner's masks as labels" in table.stdout
    assert "unseen" in table.stdout

    unknown = gapmap(*asked, "--variants", "summ")
    assert unknown.returncode == 1
    assert "Did you mean 'sum'?" in unknown.stderr
