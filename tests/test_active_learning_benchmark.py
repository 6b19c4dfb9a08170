"""The benchmark of active learning, tiny: from the pool to curves, and what its parts say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import active_learning
from active_learning_report import labels_to_reach, read_series, summarise
from simulated_people import Costs, answer

from engine.learn.data import LabelledImage, LabelledMask


def square(x: int, size: int = 10) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[5 : 5 + size, x : x + size] = True
    return mask


def encode(mask: np.ndarray) -> dict[str, object]:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


@pytest.fixture
def oracle() -> LabelledImage:
    masks = tuple(LabelledMask(encode(square(x)), 100, "entity") for x in (5, 30))
    return LabelledImage("a", "a", "", masks, lambda: np.zeros((40, 60, 3), np.uint8))


@pytest.mark.parametrize(
    ("shown", "verdict", "thing"),
    [(square(30), "correct", 1), (square(34), "fixed", 1), (square(45), "no object", -1)],
)
def test_people_say_what_a_mask_shows(
    oracle: LabelledImage, shown: np.ndarray, verdict: str, thing: int
) -> None:
    said = answer(oracle, encode(shown)["counts"].decode(), Costs(), np.random.default_rng(0))  # type: ignore[attr-defined]
    assert (said.verdict, said.thing) == (verdict, thing)
    assert (said.counts is None) == (thing < 0)


def test_mending_takes_the_longer_the_worse_the_mask_is(oracle: LabelledImage) -> None:
    rng = np.random.default_rng(0)
    seconds = [
        answer(oracle, encode(square(x))["counts"].decode(), Costs(), rng).seconds  # type: ignore[attr-defined]
        for x in (30, 32, 35)
    ]
    assert seconds == sorted(seconds)
    assert seconds[0] == Costs().accept


def test_labels_to_reach_a_value_lie_between_the_points_of_a_curve() -> None:
    curve = [{"labels": 0, "miou": 0.5}, {"labels": 10, "miou": 0.6}, {"labels": 20, "miou": 0.5}]
    assert labels_to_reach(curve, 0.55) == pytest.approx(5)
    assert labels_to_reach(curve, 0.4) == 0
    assert labels_to_reach(curve, 0.7) is None


@pytest.mark.slow
def test_a_tiny_run_goes_from_the_pool_to_curves(shared_data: Path, tmp_path: Path) -> None:
    words = [
        "--data",
        str(shared_data / "nuclei"),
        "--folder",
        str(tmp_path),
        "--cache",
        str(tmp_path / "cache"),
    ]
    words += [
        "--half",
        "tuning",
        "--pool-images",
        "12",
        "--points-per-side",
        "3",
        "--images",
        "1",
        "--masks",
        "1",
    ]
    words += [
        "--strategies",
        "random",
        "badge+looks",
        "--seeds",
        "0",
        "--steps",
        "2",
        "--labels",
        "4",
        "--updates",
        "3",
    ]
    active_learning.main(words)
    series = read_series(tmp_path)
    assert set(series) == {("random", 0), ("badge+looks", 0)}
    for of in series.values():
        assert [point["labels"] for point in of["curve"]] == [0, 4, 8]
        assert len({said["mask"] for said in of["asked"]}) == 8, "no mask is asked about twice"
    assert summarise(series, "random")["labels"] == 8
    before = {path: path.read_text() for path in tmp_path.glob("*.json")}
    active_learning.main(words)
    assert {path: path.read_text() for path in tmp_path.glob("*.json")} == before, (
        "what is done is not done again"
    )
    with pytest.raises(SystemExit, match="other settings"):
        active_learning.main([*words, "--rate", "1e-3"])
    assert json.loads(next(iter(before.values())))["protocol"]["rate"] == 2e-4
