"""Training of the small models that ship, from random weights or from one of them.

    python -m engine.learn.pretrain sam-nano --data FOLDER…      (what `make weights` runs)

It can be killed at any moment; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch

from engine.learn.curriculum import Batches, Recipe, curriculum, describe_data, read_sources
from engine.learn.examples import Examples
from engine.learn.rounds import train_step
from engine.learn.trainee import describe_start, export, small_model, warm_start
from schemas.errors import ConfigError


def train(
    recipe: Recipe,
    data: list[Path],
    folder: Path,
    *,
    start: Path | None = None,
    device: str = "cpu",
    workers: int = 2,
    save_every: int = 250,
) -> Path:
    """Train, or go on from `folder/last.pt`; returns the path of the exported safetensors.

    Args:
        data: COCO files that may be learnt from; their kept-out groups and unknown modalities are not touched.
        start: weights of a small model to begin with (shared parts only).
        workers: processes that paint scenes and draw views; 0 for none beside this one.
        save_every: steps between checkpoints.

    Raises:
        ConfigError: the folder holds a run with another recipe, start or data.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    sources = read_sources(data)
    identity = {**asdict(recipe), **describe_data(sources), "start": describe_start(start)}
    model = small_model(recipe.model).to(device)
    last, exported = folder / "last.pt", folder / f"{recipe.model}.safetensors"
    if start is not None and not last.exists():
        print(f"starting with {warm_start(model.net, start)} shared tensors of {start.name}")
    average = {key: value.detach().clone() for key, value in model.net.state_dict().items()}
    optimizer = torch.optim.AdamW(
        model.net.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98), fused=True
    )
    first = 0
    if last.exists():
        saved = torch.load(last, weights_only=True, map_location=device)
        if saved["identity"] != identity:
            raise ConfigError(
                f"{folder} holds another run: {saved['identity']}, not {identity}. Choose another --folder."
            )
        model.net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first = saved["average"], saved["step"]
    batches = Batches(
        recipe, sources, curriculum(model.image_size, recipe.dense), letterbox=recipe.model == "sam-nano"
    )
    # Before there is a progress bar, whose thread a fork would leave behind with its locks.
    loaded = iter(_load(batches, range(first, recipe.steps), workers, device))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, (folder / "log.jsonl").open("a") as log:
        bar = progress.add_task(recipe.model, total=recipe.steps, completed=first)
        began, sums = time.monotonic(), torch.zeros(3, device=device)
        for step, examples in enumerate(loaded, first):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _schedule(step, recipe.steps)
            rng = np.random.default_rng([recipe.seed, 1, step])
            sums += train_step(model, optimizer, examples, rng, device)
            momentum = min(0.999, (step + 1) / (step + 20))
            with torch.no_grad():
                state = model.net.state_dict()
                torch._foreach_lerp_([average[key] for key in state], list(state.values()), 1 - momentum)
            done = step + 1
            progress.advance(bar)
            if done % 50 == 0:
                values = dict(zip(("loss", "iou", "iou_error"), (sums / 50).tolist(), strict=True))
                log.write(
                    json.dumps({"step": done, "seconds": round(time.monotonic() - began, 1), **values}) + "\n"
                )
                log.flush()
                progress.update(
                    bar, description=f"{recipe.model} loss {values['loss']:.3f} IoU {values['iou']:.3f}"
                )
                sums.zero_()
            if done % save_every == 0 or done == recipe.steps:
                torch.save(
                    {
                        "identity": identity,
                        "model": model.net.state_dict(),
                        "average": average,
                        "optimizer": optimizer.state_dict(),
                        "step": done,
                    },
                    folder / "last.pt.new",
                )
                (folder / "last.pt.new").replace(last)
                export(average, identity, model.image_size, done, exported)
    # Once more, for a run that was killed between its last checkpoint and this.
    export(average, identity, model.image_size, recipe.steps, exported)
    return exported


def _load(batches: Batches, steps: range, workers: int, device: str) -> Iterable[Examples]:
    """The examples of these steps, in their order, made a few steps ahead in processes of their own."""
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=min(workers, len(steps)),
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_be_one_core,
    )


def _be_one_core(_: int) -> None:
    cv2.setNumThreads(0)


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["sam-nano", "sam2-mini"])
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="COCO files or their folders that may be learnt from"
    )
    parser.add_argument(
        "--folder", type=Path, help="checkpoints and log; a run there goes on (default runs/MODEL)"
    )
    parser.add_argument("--start", type=Path, help="safetensors of a small model to start from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that paint scenes and draw views")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    for name, value in asdict(Recipe("")).items():
        if name != "model":
            parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder") or Path("runs") / arguments["model"]
    options = {key: arguments.pop(key) for key in ("data", "start", "device", "workers", "save_every")}
    try:
        print(f"wrote {train(Recipe(**arguments), folder=folder, **options)}")
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
