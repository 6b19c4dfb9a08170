"""`make demo`: the main job on the embedded defaults, from a sample pool to a contact sheet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flows.own_prefect import quiet_prefect, tether_server

FOLDER = Path("gapmap-demo")
# Photographs and micrographs that come with scikit-image and scikit-learn.
_PHOTOS = {
    "skimage": "data/coins.png data/coffee.png data/chelsea.png data/ihc.png data/hubble_deep_field.jpg",
    "sklearn": "datasets/images/china.jpg",
}
_SCENES = (3, 7)


def make_sample_pool(folder: Path) -> Path:
    """Six real pictures from installed packages, two procedural scenes, and one broken file, as pools have."""
    import importlib

    from PIL import Image

    from engine.scenes import make_scene

    folder.mkdir(parents=True, exist_ok=True)
    for package, names in _PHOTOS.items():
        root = Path(str(importlib.import_module(package).__file__)).parent
        for name in names.split():
            shutil.copyfile(root / name, folder / Path(name).name)
    for seed in _SCENES:
        Image.fromarray(make_scene(seed).image).save(folder / f"scene-{seed}.png")
    (folder / "broken.jpg").write_bytes((folder / "china.jpg").read_bytes()[:2000])
    return folder


def main() -> None:
    # A Prefect of the demo's own: what the user set, and a server that may be down, play no part in it.
    home = (FOLDER / "prefect").absolute()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ.pop("PREFECT_API_URL", None)
    quiet_prefect()
    tether_server()
    from engine.store import Store
    from flows.console import LabelBar
    from tasks.progress import listening
    from tasks.results import most_uncertain
    from tasks.sheet import draw_sheet

    pool, store, sheet = FOLDER / "pool", FOLDER / "store", FOLDER / "contact-sheet.png"
    make_sample_pool(pool)
    print(f"pool: {pool}   store: {store}")
    with LabelBar() as bar, listening(bar):
        from flows.pseudolabel import pseudolabel

        summary = pseudolabel(str(pool.absolute()), str(store.absolute()))
    bar.summarise(summary)
    opened = Store(str(store))
    print("\nThe ten most uncertain masks")
    print("  what IoU is expected to gain from: a larger model, a better prompt, another of the three masks")
    print(f"  {'uncertainty':>11}  {'model':>6} {'prompt':>6} {'task':>6}  {'area':>8}  {'box':20}  image")
    for row in most_uncertain(opened, summary.model):
        box = f"{row['x0']},{row['y0']}..{row['x1']},{row['y1']}"
        gaps = " ".join(
            f"{row[name]:+6.2f}" if row[name] is not None else f"{'-':>6}"
            for name in ("model_gap", "prompt_gap", "task_gap")
        )
        print(f"  {row['uncertainty']:11.3f}  {gaps}  {row['area']:8d}  {box:20}  {Path(row['uri']).name}")
    draw_sheet(opened, sheet, images=10, model=summary.model)
    print(f"\ncontact sheet: {sheet}")
    print(f'ask it something: .venv/bin/gapmap query "SELECT count(*) FROM masks" --store {store}')


if __name__ == "__main__":
    main()
