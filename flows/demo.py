"""`make demo`: a whole round on the embedded defaults, from a sample pool to the report, with a simulated annotator."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flows.own_prefect import quiet_prefect, tether_server

if TYPE_CHECKING:
    import numpy as np

    from engine.store import Store
    from flows.round import RoundSummary

FOLDER = Path("gapmap-demo")
# Photographs and micrographs that come with scikit-image.
_PHOTOS = "data/coins.png data/coffee.png data/ihc.png"
_SCENES = range(400, 412)
_SCENE_SIZE = 256
_BUDGET = 60


def make_sample_pool(folder: Path) -> dict[str, list[np.ndarray]]:
    """Real pictures from an installed package, procedural scenes, and one broken file, as pools have; returns the scenes' masks
    by image_id: what the simulated annotator knows."""
    import importlib

    from PIL import Image

    from engine.pool import list_pool, read_image
    from engine.scenes import make_scene
    from schemas.settings import PoolSettings

    folder.mkdir(parents=True, exist_ok=True)
    root = Path(str(importlib.import_module("skimage").__file__)).parent
    for name in _PHOTOS.split():
        with Image.open(root / name) as photo:
            photo.thumbnail((512, 512))
            photo.save(folder / Path(name).name)
    scenes = {f"scene-{seed}.png": make_scene(seed, _SCENE_SIZE) for seed in _SCENES}
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "coins.png").read_bytes()[:2000])
    truth = {}
    for item in list_pool(str(folder.absolute()), PoolSettings()):
        if (name := item.uri.rpartition("/")[2]) in scenes:
            truth[read_image(item, PoolSettings()).image_id] = [of.mask for of in scenes[name].masks]
    return truth


def answer_tasks(queue: Path, truth: dict[str, list[np.ndarray]]) -> int:
    """Let a simulated annotator answer every task of a folder queue; returns how many."""
    from engine.review.simulated_people import SimulatedAnnotator

    annotator = SimulatedAnnotator(truth, noise=0.5)
    tasks = json.loads((queue / "tasks.json").read_text())
    numbers = itertools.count(1)
    answered = [
        {
            "data": task["data"],
            "annotations": [{"id": next(numbers), "completed_by": 1, **annotator.answer(task)}],
        }
        for task in tasks
    ]
    (queue / "answers").mkdir(exist_ok=True)
    (queue / "answers" / "simulated.json").write_text(json.dumps(answered))
    return len(answered)


def run_round(pool: Path, store: Path, queue: Path) -> RoundSummary:
    """One call of the round flow with settings that are over in minutes on two cores."""
    from flows.console import steps_progress
    from flows.round import round as run
    from schemas.round_settings import RoundSettings
    from schemas.settings import AcquisitionSettings, FinetuneSettings, GenerateSettings
    from tasks.progress import hearing_steps

    settings = RoundSettings(
        generate=GenerateSettings(points_per_side=12),
        acquisition=AcquisitionSettings(strategy="uncertainty", random_share=0.2),
        finetune=FinetuneSettings(steps=12, images=2, masks=4, rounds=3, check_every=6),
        refiner_steps=8,
        refit_scenes=8,
        judged_images=4,
        shard_size=8,
    )
    with steps_progress("round") as bar, hearing_steps(bar):
        return run(
            str(pool.absolute()),
            str(store.absolute()),
            out=str((FOLDER / "models").absolute()),
            queue=str(queue.absolute()),
            budget=_BUDGET,
            least_new=20,
            report=str((FOLDER / "report.html").absolute()),
            settings=settings,
        )


def main() -> None:
    # A Prefect of the demo's own: what the user set, and a server that may be down, play no part in it.
    home = (FOLDER / "prefect").absolute()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ.pop("PREFECT_API_URL", None)
    quiet_prefect()
    tether_server()
    from engine.report.stored_sheet import draw_sheet
    from engine.store import Store
    from flows.round_command import show_round

    pool, store, queue, sheet = (FOLDER / name for name in ("pool", "store", "review", "contact-sheet.png"))
    shutil.rmtree(queue, ignore_errors=True)
    truth = make_sample_pool(pool)
    print(f"pool: {pool}   store: {store}")
    summary = run_round(pool, store, queue)
    show_round(summary)
    if summary.waits:
        print(f"a simulated annotator answers {answer_tasks(queue, truth)} tasks in {queue}")
        summary = run_round(pool, store, queue)
        show_round(summary)
    opened = Store(str(store))
    _print_uncertain(opened, summary.model)
    draw_sheet(opened, sheet, images=10, model=summary.model)
    print(f"\ncontact sheet: {sheet}")
    print(
        f'ask it something: .venv/bin/gapmap query "SELECT count(*) FROM masks WHERE replaced_by IS NULL" --store {store}'
    )
    print(f"report of the round: {FOLDER / 'report.html'}")


def _print_uncertain(store: Store, model: str) -> None:
    from tasks.results import most_uncertain

    print("\nThe ten most uncertain masks")
    print("  what IoU is expected to gain from: a larger model, a better prompt, another of the three masks")
    print(f"  {'uncertainty':>11}  {'model':>6} {'prompt':>6} {'task':>6}  {'area':>8}  {'box':20}  image")
    for row in most_uncertain(store, model):
        box = f"{row['x0']},{row['y0']}..{row['x1']},{row['y1']}"
        gaps = " ".join(
            f"{row[name]:+6.2f}" if row[name] is not None else f"{'-':>6}"
            for name in ("model_gap", "prompt_gap", "task_gap")
        )
        print(f"  {row['uncertainty']:11.3f}  {gaps}  {row['area']:8d}  {box:20}  {Path(row['uri']).name}")


if __name__ == "__main__":
    main()
