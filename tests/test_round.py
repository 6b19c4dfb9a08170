"""A round as a person runs it: `gapmap round`, again and again, while people answer and whatever is killed when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import write_coco
from PIL import Image
from safetensors.torch import load_file, save_file
from store_rows import fetch

from engine.learn.checkpoints import save_checkpoint
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from engine.pool import list_pool, read_image
from engine.promotion import find_current
from engine.review.simulated_people import SimulatedAnnotator
from engine.scenes import make_scene
from engine.store import Store
from engine.triage.menders import find_larger
from engine.uncertainty.head_files import read_heads, write_heads
from schemas.settings import PoolSettings

ROOT = Path(__file__).parents[1]
STEPS = ["pseudolabel", "triage", "push", "pull", "finetune", "promote", "rescore", "report"]
SMALL = {
    "generate": {"points_per_side": 8},
    "acquisition": {"per_image": 5},
    "finetune": {"steps": 3, "images": 2, "masks": 2, "rounds": 2, "check_every": 2},
    "refiner_steps": 2,
    "refit_scenes": 0,
    "judged_images": 2,
    "shard_size": 4,
}


class RoundCommand:
    """`gapmap round` in a folder, with a queue of files and settings that are over in seconds."""

    def __init__(self, folder: Path, server: dict[str, str], *options: object) -> None:
        self.store = Store(str(folder / "masks"))
        self.queue = folder / "review"
        self.models = folder / "models"
        (folder / "small.json").write_text(json.dumps(SMALL))
        given = ["round", "pool", "--store", "masks", "--queue", "review", "--settings", "small.json"]
        self._command = [sys.executable, "-m", "flows.cli", *given, "--larger", "none", *map(str, options)]
        self._folder, self._environment = folder, server

    def run(self) -> str:
        """To its end; what it prints."""
        with self._start() as process:
            printed, errors = process.communicate(timeout=600)
        assert process.returncode == 0, printed + errors
        return printed

    def run_in_vain(self) -> str:
        """What it says is in the way."""
        with self._start() as process:
            printed, errors = process.communicate(timeout=600)
        assert process.returncode == 1, printed + errors
        return errors

    def run_until(self, come_true: Callable[[], bool]) -> None:
        """Until something is there, and not a moment longer: kill -9."""
        with self._start() as process:
            deadline = time.monotonic() + 600
            while not come_true():
                assert process.poll() is None, "".join(process.communicate())
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)

    def rows(self) -> list[tuple[str, str]]:
        """(step, outcome) of the newest round, in the order in which they ended."""
        newest = "(SELECT max(round_id) FROM rounds)"
        return fetch(
            self.store, f"SELECT step, outcome FROM rounds WHERE round_id = {newest} ORDER BY ended_at"
        )

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip


def write_scenes(folder: Path, seeds: range) -> dict[str, list[np.ndarray]]:
    """A pool of scenes, and the masks of each by image_id."""
    folder.mkdir(exist_ok=True)
    scenes = {f"{seed}.png": make_scene(seed, 160) for seed in seeds}
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(folder / name)
    truth = {}
    for item in list_pool(str(folder), PoolSettings()):
        if scene := scenes.get(item.uri.rpartition("/")[2]):
            truth[read_image(item, PoolSettings()).image_id] = [of.mask for of in scene.masks]
    return truth


def answer_tasks(queue: Path, truth: dict[str, list[np.ndarray]], name: str) -> int:
    """Answer every task of the queue in an export; returns how many."""
    tasks = json.loads((queue / "tasks.json").read_text())
    annotator = SimulatedAnnotator(truth, noise=0.5)
    answered = [
        {"data": task["data"], "annotations": [{"id": n, "completed_by": 1, **annotator.answer(task)}]}
        for n, task in enumerate(tasks)
    ]
    (queue / "answers" / f"{name}.json").write_text(json.dumps(answered))
    return len(tasks)


@pytest.mark.slow
def test_a_round_waits_goes_on_after_every_kill_does_nothing_twice_and_the_next_begins(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    truth = write_scenes(tmp_path / "pool", range(700, 704))
    labelled = write_coco(tmp_path / "labelled", range(710, 720))
    amounts = ("--budget", 10, "--least-new", 10)
    command = RoundCommand(tmp_path, prefect_server, "--data", labelled, *amounts)

    begun = command.run()
    assert "0 masks were answered since the last fine-tuning; 10 have to be" in begun
    assert "The same command goes on" in begun
    assert command.rows() == [(step, "done") for step in STEPS[:3]]
    assert fetch(command.store, "SELECT sum(len(mask_ids)) FROM reviews") == [(10,)]
    decided = "SELECT numbers->>'good_iou', numbers->>'warning' FROM rounds WHERE step = 'triage'"
    assert fetch(command.store, decided) == [("0.7", "")], "the report asks for it"

    truth |= write_scenes(tmp_path / "pool", range(704, 706))
    still = command.run()
    assert "0 masks were answered" in still
    assert command.rows() == [(step, "done") for step in STEPS[:3]]
    assert fetch(command.store, "SELECT sum(len(mask_ids)) FROM reviews") == [(10,)], "nothing is asked twice"
    assert fetch(command.store, "SELECT count(*) FROM images") == [(6,)], (
        "what is new in the pool is labelled"
    )

    assert answer_tasks(command.queue, truth, "first") >= 3
    save_checkpoint(command.models / "finetune.checkpoint", "fewer answers", {"step": 1})
    records = command.store.files.root + "/models"
    command.run_until(lambda: len(list(Path(records).glob("*/*.parquet"))) == 2)
    assert command.rows() == [(step, "done") for step in STEPS[:4]], "learnt, but not written down"
    command.run_until(lambda: any((tmp_path / "masks" / "promotions").glob("*/*.parquet")))
    ended = command.run()
    rows = command.rows()
    assert [step for step, _ in rows] == STEPS, "each step once, in order"
    assert {outcome for step, outcome in rows if step != "rescore"} == {"done"}
    assert fetch(command.store, "SELECT count(*) FROM models WHERE parent IS NOT NULL") == [(1,)]
    [(new, action)] = fetch(command.store, "SELECT model, action FROM promotions")
    assert f"{new}, held-out IoU" in ended
    assert f"  promote      {action}" in ended
    assert "begins the next round" in ended
    assert (tmp_path / "gapmap-report.html").stat().st_size > 10_000
    answered = "SELECT count(*) FROM labels WHERE verdict IN ('correct', 'fixed', 'no object')"
    assert fetch(command.store, answered)[0][0] >= 10

    following = command.run()
    assert "0 masks were answered since the last fine-tuning" in following, "the same labels teach only once"
    assert fetch(command.store, "SELECT count(DISTINCT round_id) FROM rounds") == [(2,)]
    assert command.rows() == [(step, "done") for step in STEPS[:3]]


@pytest.mark.slow
def test_images_that_another_run_labels_while_people_answer_are_decided_on_and_asked_about(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    write_scenes(tmp_path / "pool", range(740, 742))
    command = RoundCommand(tmp_path, prefect_server, "--budget", 40)
    command.run()
    write_scenes(tmp_path / "pool", range(742, 744))
    given = ["pool", "--store", "masks", "--model", "current:sam-nano", "--points-per-side", "8"]
    label = [sys.executable, "-m", "flows.cli", "label", *given]
    subprocess.run(label, cwd=tmp_path, env=prefect_server, check=True, capture_output=True, timeout=600)
    command.run()
    undecided = "SELECT count(*) FROM masks WHERE mask_id NOT IN (SELECT mask_id FROM decisions)"
    assert fetch(command.store, f"{undecided} AND replaced_by IS NULL") == [(0,)]
    assert fetch(command.store, "SELECT count(DISTINCT image_id) FROM reviews") == [(4,)]
    decided = "SELECT count(DISTINCT triage_id) FROM decisions"
    before = fetch(command.store, decided)
    command.run()
    assert fetch(command.store, decided) == before, "nothing is new: nothing is decided again"


def write_version(folder: Path, noise: float, seed: int) -> Path:
    """sam-nano with its decoder disturbed."""
    weights = load_file(MODELS["sam-nano"].path)
    generator = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if name.startswith("mask_decoder.output_hypernetworks"):
            weights[name] = value + noise * torch.randn(value.shape, generator=generator).to(value.dtype)
    folder.mkdir(parents=True)
    save_file(weights, folder / "sam-nano.safetensors", {"architecture": "sam-nano", "image_size": "512"})
    return folder / "sam-nano.safetensors"


@pytest.mark.slow
def test_a_version_that_somebody_else_taught_is_judged_and_labels_with_heads_of_its_own(
    prefect_server: dict[str, str], tmp_path: Path
) -> None:
    """As by the finetune deployment. A bad version is in use, so that the better one passes for certain."""
    write_scenes(tmp_path / "pool", range(720, 722))
    labelled = write_coco(tmp_path / "labelled", range(730, 738))
    command = RoundCommand(tmp_path, prefect_server, "--data", labelled, "--budget", 4, "--report", "r.html")
    store = command.store
    bad = load_segmenter(write_version(command.models / "bad", 0.3, 0), device="cpu")
    shipped = read_heads(MODELS["sam-nano"].path.with_name("sam-nano.heads.safetensors"))
    good = load_segmenter(write_version(command.models / "good", 1e-5, 1), device="cpu")
    for segmenter in (bad, good):  # whoever taught it was killed after the heads: those stay
        beside = Path(segmenter.source).with_name("sam-nano.heads.safetensors")
        write_heads(replace(shipped, model_id=segmenter.model_id), beside)
    fitted = read_heads(command.models / "good" / "sam-nano.heads.safetensors").version
    decision = {"name": "sam-nano", "action": "promoted", "source": bad.source, "reason": "a test"}
    before = {"previous": "sam-nano@0", "previous_source": "sam-nano"}
    store.record_promotion({"model": bad.model_id, **decision, **before})
    history = [{"step": 0, "loss": 0, "iou": 0.5}, {"step": 4, "loss": 0.1, "iou": 0.6}]
    about = {"name": "sam-nano", "version": good.version, "package": good.package, "source": good.source}
    about |= {"sha256": good.sha256, "parent": bad.model_id, "data": json.dumps({"human": {"answers": 8}})}
    about |= {"metrics": json.dumps({"step": 4, "history": history})}
    sizes = {"parameters": good.parameters, "image_size": good.image_size}
    store.record_model({"model": good.model_id, **about, **sizes})

    judged_by = (labelled / "06.png").rename(tmp_path / "elsewhere.png")
    assert "06.png cannot be read" in command.run_in_vain()
    assert command.rows() == [(step, "done") for step in STEPS[:5]], "nothing was decided"
    judged_by.rename(labelled / "06.png")

    printed = command.run()
    assert f"{good.model_id}, held-out IoU 0.500 to 0.600" in printed
    assert f"{good.model_id} is in use" in printed
    assert command.rows() == [(step, "done") for step in STEPS]
    assert find_current(store, "sam-nano").model == good.model_id
    assert len(list(command.models.glob("*/sam-nano.safetensors"))) == 2, "nothing was taught again"
    heads = read_heads(command.models / "good" / "sam-nano.heads.safetensors")
    assert heads.version == fitted
    scored = f"SELECT DISTINCT map_source, uncertainty_source FROM masks WHERE model = '{good.model_id}'"
    assert fetch(store, scored) == [("refiner", "predicted_iou")]
    decided = f"SELECT count(*) > 0 FROM decisions WHERE model = '{good.model_id}'"
    assert fetch(store, decided) == [(True,)]
    assert (tmp_path / "r.html").is_file()


def test_new_heads_know_the_larger_model_that_the_old_ones_knew() -> None:
    nano = load_segmenter("sam-nano", device="cpu")
    assert find_larger(nano, None) == "sam2-mini"
    assert find_larger(nano, "none") is None
    assert find_larger(nano, "models/large.pt") == "models/large.pt"
    assert find_larger(load_segmenter("sam2-mini", device="cpu"), None) is None


def test_what_cannot_work_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    for options, said in (
        (["--report", "page.pdf"], "does not end in .html"),
        (["--report", "nowhere/page.html"], "There is no folder"),
        (["--settings", "none.json"], "cannot be read as JSON"),
        (["--settings", "list.json"], "has to hold an object"),
        (["--strategy", "guess"], "gapmap: --strategy: "),
    ):
        command = [sys.executable, "-m", "flows.cli", "round", "pool", "--store", "masks", *options]
        where = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 1, ran.stdout + ran.stderr
        assert said in ran.stderr
        assert "Traceback" not in ran.stderr
    assert not (tmp_path / "masks").exists()
