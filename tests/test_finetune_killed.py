"""A fine-tuning that is killed while it fits a refiner and heads: the version has learnt, and gets them from the next run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from coco_folder import write_coco
from store_rows import fetch, image_row, mask_rows
from triage_rows import label_row

from engine.finetune import find_unfitted
from engine.models.loading import load_segmenter
from engine.store import Store
from engine.uncertainty.head_files import read_heads
from schemas.settings import FinetuneSettings

FEW = FinetuneSettings(steps=2, images=1, masks=1, rounds=2, check_every=1)
DEPLOYED = """
import json, sys
from flows.finetune import finetune
from schemas.settings import FinetuneSettings
data, store, settings = json.loads(sys.argv[1])
made = finetune(
    "models", data, store, "current:sam-nano", FinetuneSettings(**settings), refiner_steps=2, refit_scenes=4, device="cpu",
    least_new=1, anew=True,
)
print(made.model if made else "skipped")
"""


class Run:
    """A command in a folder where `models` is that of the versions."""

    def __init__(self, folder: Path, server: dict[str, str], *command: object) -> None:
        self.models, self._folder, self._environment = folder / "models", folder, server
        self._command = [sys.executable, *map(str, command)]

    def written(self, kind: str) -> list[Path]:
        return sorted(self.models.glob(f"*/sam-nano.{kind}"))

    def kill_between(self) -> None:
        """kill -9 once there is a refiner: heads take longer than to see it."""
        with self._start() as process:
            deadline = time.monotonic() + 600
            while not self.written("refiner.safetensors"):
                assert process.poll() is None, "".join(process.communicate())
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
        assert not self.written("heads.safetensors"), "it was killed in time"

    def end(self) -> str:
        with self._start() as process:
            printed, errors = process.communicate(timeout=600)
        assert process.returncode == 0, printed + errors
        return printed

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip


def check_fitted(run: Run, refiner_written: float) -> str:
    """There is one version, learnt once, with the refiner of then and heads; returns what it is called."""
    [weights], [refiner] = run.written("safetensors"), run.written("refiner.safetensors")
    [heads] = run.written("heads.safetensors")
    assert refiner.stat().st_mtime == refiner_written
    model = load_segmenter(weights, device="cpu").model_id
    assert read_heads(heads).model_id == model
    assert not list(run.models.glob("*.checkpoint"))
    return model


@pytest.mark.slow
def test_a_deployment_killed_before_the_heads_fits_them_in_its_next_run_though_nothing_was_answered(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    labelled = write_coco(tmp_path / "labelled", range(975_000, 975_005))
    write_coco(tmp_path / "pool", range(975_010, 975_012))
    store, label = Store(str(tmp_path / "masks")), ["label", "pool", "--store", "masks"]
    Run(tmp_path, prefect_server, "-m", "flows.cli", *label, "--points-per-side", 8).end()
    no_object = label_row(mask_rows(image_row("a"), "x")[0], "no object", pulled_at=datetime.now(UTC))
    store.append("labels", [no_object])
    given = [[str(labelled)], str(tmp_path / "masks"), FEW.model_dump()]
    run = Run(tmp_path, prefect_server, "-c", DEPLOYED, json.dumps(given))
    run.kill_between()
    [written] = [path.stat().st_mtime for path in run.written("refiner.safetensors")]
    printed = run.end()
    model = check_fitted(run, written)
    assert printed.endswith(f"{model}\n")
    assert fetch(store, "SELECT model FROM models WHERE parent IS NOT NULL") == [(model,)]
    assert run.end().endswith("skipped\n")


@pytest.mark.slow
def test_the_command_killed_before_the_heads_goes_on_there_when_it_is_run_again(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    labelled = write_coco(tmp_path / "labelled", range(975_000, 975_005))
    few = ["--steps", 2, "--images", 1, "--masks", 1, "--rounds", 2, "--refiner-steps", 2]
    given = ["-m", "flows.cli", "finetune", "--data", labelled, *few, "--refit-scenes", 4]
    run = Run(tmp_path, prefect_server, *given)
    run.kill_between()
    [written] = [path.stat().st_mtime for path in run.written("refiner.safetensors")]
    printed = run.end()
    assert check_fitted(run, written) in printed


def test_a_version_without_heads_is_left_alone_where_no_run_was_killed_or_it_was_refused(
    tmp_path: Path,
) -> None:
    store, models = Store(str(tmp_path / "masks")), tmp_path / "models"
    models.mkdir()
    weights = models / "nano.safetensors"
    weights.write_bytes(b"weights")
    about = {"package": "segment-anything", "source": str(weights), "sha256": "0", "parameters": 1}
    about |= {"image_size": 512, "model": "nano@1", "name": "nano", "version": "1", "parent": "nano@0"}
    store.record_model(about)
    assert find_unfitted(store, "nano", models) is None, "a round fits heads once it is promoted"
    (models / "finetune.checkpoint").touch()
    assert find_unfitted(store, "other", models) is None
    found = find_unfitted(store, "nano", models)
    assert found is not None
    assert found["model"] == "nano@1"
    (models / "nano.refiner.safetensors").touch()
    assert find_unfitted(store, "nano", models), "there are no heads yet"
    (models / "nano.heads.safetensors").touch()
    assert find_unfitted(store, "nano", models) is None
    (models / "nano.refiner.safetensors").unlink()
    decision = {
        "name": "nano",
        "source": "s",
        "previous": "nano@0",
        "previous_source": "p",
        "reason": "worse",
    }
    store.record_promotion({"model": "nano@1", "action": "refused", **decision})
    assert find_unfitted(store, "nano", models) is None
