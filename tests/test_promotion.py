"""A new version takes the place of the present one only if it is better, and going back is one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coco_folder import write_coco
from safetensors.torch import load_file, save_file

from engine.evaluate.bootstrap import Difference
from engine.evaluate.gate import decide
from engine.models.registry import MODELS
from engine.promotion import find_current, roll_back
from engine.store import Store
from flows.cli import main
from schemas.errors import ConfigError

ROOT = Path(__file__).parents[1]


def difference(task: str, mean: float, low: float = -0.1, high: float = 0.1) -> Difference:
    return Difference(task, 1, "miou", mean, low, high, 50, 9)


def alone(task: str, mean: float, n: int = 1) -> Difference:
    return Difference(task, 1, "miou", mean, None, None, n, 1)


def test_a_gain_of_the_mean_passes_if_no_task_pays_for_it() -> None:
    gains = [difference("salient", 0.02), difference("part", -0.004), difference("all", 0.01)]
    assert decide(gains).passed
    loses = [difference("salient", 0.03), difference("part", -0.006), difference("all", 0.01)]
    verdict = decide(loses)
    assert not verdict.passed
    assert "part loses 0.6 points" in verdict.reason
    surely = [
        difference("salient", 0.03),
        difference("part", -0.004, -0.007, -0.001),
        difference("all", 0.01),
    ]
    assert not decide(surely).passed, "a small loss, but a certain one"
    level = [difference("salient", 0.0), difference("all", 0.0)]
    assert "does not gain" in decide(level).reason
    boundary = Difference("salient", 1, "mbiou", -0.3, -0.4, -0.2, 50, 9)
    assert decide([*gains, boundary]).passed, "the gate is about IoU"


def test_a_verdict_says_on_how_much_it_was_judged_and_where_a_gain_may_be_luck() -> None:
    enough = decide([difference("salient", 0.02), difference("all", 0.01)])
    assert enough.reason.endswith("the mean gains 1.0; judged on 50 masks in 9 groups of images")
    lucky = decide([alone("entity", 0.01), alone("all", 0.01)])
    assert lucky.passed
    assert "judged on 1 mask in 1 group of images. For entity one group gives no interval" in lucky.reason
    partly = decide([difference("salient", 0.02), alone("part", -0.02, 4), difference("all", 0.01)])
    assert partly.reason.startswith(
        "part loses 2.0 points of IoU at 1 clicks; judged on 50 masks in 9 groups"
    )
    assert (
        "For part one group gives no interval, so what is lost or gained may be luck: judge on more"
        in partly.reason
    )


def record(store: Store, model: str, action: str, source: str, previous: str, previous_source: str) -> None:
    store.record_promotion(
        {
            "model": model,
            "name": "sam-nano",
            "action": action,
            "source": source,
            "previous": previous,
            "previous_source": previous_source,
            "reason": "a test",
        }
    )


def test_going_back_twice_goes_two_versions_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert find_current(store, "sam-nano").source == "sam-nano"
    record(store, "sam-nano@1", "promoted", "m/1", "sam-nano@0", "sam-nano")
    record(store, "sam-nano@x", "refused", "m/x", "sam-nano@1", "m/1")
    assert find_current(store, "sam-nano").source == "m/1"
    record(store, "sam-nano@2", "promoted", "m/2", "sam-nano@1", "m/1")
    assert roll_back(store, "sam-nano").model == "sam-nano@1"
    assert find_current(store, "sam-nano").source == "m/1"
    assert roll_back(store, "sam-nano").model == "sam-nano@0"
    assert find_current(store, "sam-nano").source == "sam-nano"
    with pytest.raises(ConfigError, match="nothing to go back to"):
        roll_back(store, "sam-nano")
    record(store, "sam-nano@3", "promoted", "m/3", "sam-nano@0", "sam-nano")
    assert roll_back(store, "sam-nano").model == "sam-nano@0"
    with pytest.raises(ConfigError, match="nothing to go back from"):
        roll_back(store, "other")
    with pytest.raises(
        ConfigError, match=r"No version of other was promoted.*: gapmap models promote WEIGHTS"
    ):
        find_current(store, "other")


def test_the_versions_in_a_store_are_listed_with_their_parents_and_the_one_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    for version, parent, source in (
        ("0", None, "weights/sam-nano.safetensors"),
        ("1", "sam-nano@0", "m/1"),
        ("2", "sam-nano@1", "m/2"),
        ("3", "sam-nano@1", "m/3"),
    ):
        row = {"model": f"sam-nano@{version}", "name": "sam-nano", "version": version, "parent": parent}
        row |= {"package": "segment-anything", "source": source, "sha256": version * 64}
        store.record_model(row | {"parameters": 1, "image_size": 512})

    def states() -> list[tuple[str, ...]]:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main(["models", "--store", str(tmp_path)])
        lines = [re.split(r"\s\s+", line.strip()) for line in capsys.readouterr().out.splitlines()[1:]]
        return [(line[0], line[1], *line[3:]) for line in lines]

    assert states() == [
        ("sam-nano@0", "-", "in use"),
        ("sam-nano@1", "sam-nano@0"),
        ("sam-nano@2", "sam-nano@1"),
        ("sam-nano@3", "sam-nano@1"),
    ]
    record(store, "sam-nano@1", "promoted", "m/1", "sam-nano@0", "sam-nano")
    record(store, "sam-nano@2", "refused", "m/2", "sam-nano@1", "m/1")
    record(store, "sam-nano@3", "promoted", "m/3", "sam-nano@1", "m/1")
    assert [state for _, _, state in states()] == ["replaced", "replaced", "refused", "in use"]
    roll_back(store, "sam-nano")
    assert [state for _, _, state in states()] == ["replaced", "in use", "refused", "replaced"]


def gapmap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)


def spoil(path: Path, seed: int) -> Path:
    """sam-nano with its decoder disturbed."""
    weights = load_file(MODELS["sam-nano"].path)
    generator = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if name.startswith("mask_decoder.output_hypernetworks"):
            weights[name] = value + 0.1 * torch.randn(value.shape, generator=generator).to(value.dtype)
    path.parent.mkdir()
    save_file(weights, path, {"architecture": "sam-nano", "image_size": "512"})
    return path


@pytest.mark.slow
def test_a_worse_version_is_refused_and_a_better_one_labels_from_then_on(tmp_path: Path) -> None:
    labelled = write_coco(tmp_path / "labelled", range(980_060, 980_086))
    pool = write_coco(tmp_path / "pool", range(981_000, 981_001))
    store = tmp_path / "masks"
    few = ["--points-per-side", 4, "--maps", "none"]
    first = gapmap("label", pool, "--store", store, *few)
    assert first.returncode == 0, first.stderr
    spoilt = spoil(tmp_path / "spoilt" / "sam-nano.safetensors", 0)
    refused = gapmap("models", "promote", spoilt, "--store", store, "--data", labelled)
    assert refused.returncode == 3, refused.stderr
    assert refused.stdout.startswith("refused: ")
    [row] = Store(str(store)).query("FROM promotions").to_pylist()
    assert row["action"] == "refused"
    assert json.loads(row["numbers"])["images"] == {"labelled": 5}
    assert re.search(r"; judged on \d+ masks in 5 groups of images", row["reason"])
    assert find_current(Store(str(store)), "sam-nano").source == "sam-nano"

    # As if the spoilt one were in use: then the shipped one is better.
    record(Store(str(store)), row["model"], "promoted", str(spoilt), "sam-nano@0", "sam-nano")
    again = gapmap("models", "promote", "sam-nano", "--store", store, "--data", labelled)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.startswith("promoted: no task loses")
    back = gapmap("models", "rollback", "sam-nano", "--store", store)
    assert back.returncode == 0, back.stderr
    assert row["model"] in back.stdout
    labelling = gapmap("label", pool, "--store", store, "--model", "current:sam-nano", *few)
    assert labelling.returncode == 0, labelling.stderr
    models = Store(str(store)).query("SELECT DISTINCT model FROM images").to_pylist()
    assert {"model": row["model"]} in models, "current:sam-nano is the version that is in use"


def test_what_cannot_work_says_what_to_do(tmp_path: Path) -> None:
    record(Store(str(tmp_path)), "sam-nano@1", "refused", "sam-nano", "sam-nano@0", "sam-nano")
    nothing = gapmap("models", "promote", "sam-nano", "--store", tmp_path)
    assert nothing.returncode == 1
    assert "--data FOLDER" in nothing.stderr, "nobody has answered in this store"
    mistyped = gapmap("models", "promote", "sam-nano", "--store", tmp_path, "--datum", "labelled")
    assert mistyped.returncode == 2, "and a version that is refused ends it with another"
    nowhere = gapmap("models", "rollback", "sam-nano", "--store", tmp_path / "none")
    assert nowhere.returncode == 1
    assert "no store" in nowhere.stderr
