"""What could any choice of labels bring? Fine-tuning on objects drawn from the oracle, many of them unknown or few.

    python benchmarks/decoder_ceiling.py --updates 120

Beside `active_learning.py`, which chooses masks: here objects of the pool are drawn at random, a given share of them of
the kinds that `sam-nano` was never taught, as if a strategy had found them for free and the model had missed none. Then
the decoder is fine-tuned on them with the lessons of `engine.learn` (one round of prompts), and scored with one click a
nucleus on the half of the kept-out groups that settings are tuned on: IoU of the best of the three outputs, and of the
one that the model picks. If this brings nothing, no strategy can.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from active_learning import DATA, split_evaluation
from generate import write_report
from masked_pool import EmbeddingCache

from engine.evaluate.points import evaluate_points
from engine.learn.data import LabelledImage, read_coco, split_unknown
from engine.learn.learnable import make_learner, parameter_groups, whole_weights
from engine.learn.lessons import Lessons
from engine.learn.training_images import TrainingImage, TrainingMask
from engine.models.allocator import keep_freed_memory
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.settings import FinetuneSettings

_WARM_UP = 10
_FROM_ONE_IMAGE = {True: 8, False: 1}  # objects, of an unknown kind or not: few images are


def draw_lessons(pool: list[LabelledImage], labels: int, share: float, seed: int) -> list[TrainingImage]:
    """Objects of the pool, each a lesson of its own, so that all weigh the same."""
    unknown = {i.name for name, of in split_unknown("x", pool).items() if name != "x" for i in of}
    rng = np.random.default_rng(seed)
    lessons: dict[bool, list[TrainingImage]] = {True: [], False: []}
    for image in pool:
        kind = image.name in unknown
        size = tuple(image.masks[0].plain_rle["size"])  # type: ignore[arg-type, var-annotated]
        for j in rng.permutation(len(image.masks))[: _FROM_ONE_IMAGE[kind]].tolist():
            mask = TrainingMask(str(image.masks[j].plain_rle["counts"]), size, 0)
            lessons[kind].append(TrainingImage(f"{image.name}-{j}", image.group, True, (mask,), image.load))
    counts = {True: round(labels * share), False: labels - round(labels * share)}
    return [of[i] for kind, of in lessons.items() for i in rng.permutation(len(of))[: counts[kind]]]


def learn(segmenter: Segmenter, lessons: list[TrainingImage], settings: FinetuneSettings) -> Any:
    """The learner after a fixed number of updates; the rate falls to zero."""
    model = make_learner(segmenter, settings)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings), lr=settings.rate, weight_decay=settings.decay
    )
    teacher = Lessons(segmenter, model, settings)
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        for group in optimizer.param_groups:
            group["lr"] = (
                settings.rate * group["share"] * min(1, (step + 1) / _WARM_UP) * (1 - step / settings.steps)
            )
        optimizer.zero_grad(set_to_none=True)
        for i in rng.choice(len(lessons), settings.images, replace=False):
            teacher.teach(lessons[i], rng, 1 / settings.images)
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
    return model


def score(segmenter: Segmenter, sets: dict[str, list[LabelledImage]]) -> dict[str, dict[str, float]]:
    """Mean IoU by kind: of the best output, and of the one picked."""
    found = {}
    for kind, of in sets.items():
        results = evaluate_points(segmenter, of)
        found[kind] = {
            "best": round(float(np.mean([result.best_iou for result in results])), 4),
            "picked": round(float(np.mean([result.picked_iou for result in results])), 4),
            "n": len(results),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with labelled/ and pool/")
    parser.add_argument("--labels", type=int, default=300, help="objects to learn from")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.05, 0.5], help="of them of unknown kinds"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4], help="learning rates")
    parser.add_argument("--updates", type=int, default=120, help="updates of eight objects")
    parser.add_argument("--images", type=int, default=2, help="images of a group to evaluate on")
    parser.add_argument("--masks", type=int, default=12, help="masks of an image to evaluate on")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    load_before = os.getloadavg()
    shipped = load_segmenter("sam-nano", device="cpu")
    segmenter = EmbeddingCache(shipped).attach(shipped)
    pool = read_coco(arguments.data / "pool" / "oracle.json")
    labelled = read_coco(arguments.data / "labelled")
    sets = split_evaluation(labelled, "tuning", arguments.images, arguments.masks)
    unknown = sets.pop("unknown")
    for kind, start in (("stained tissue", "purple"), ("bright field", "bright")):
        sets[kind] = [image for image in unknown if image.modality.startswith(start)]
    results: list[dict[str, Any]] = [{"model": "shipped"} | score(segmenter, sets)]
    print(results[0], flush=True)
    parts = tuple(f"{name}." for name in segmenter.decoder_modules)
    for share in arguments.shares:
        lessons = draw_lessons(pool, arguments.labels, share, 1)
        for rate in arguments.rates:
            began = time.process_time()
            settings = FinetuneSettings(
                steps=arguments.updates, images=8, masks=1, rounds=1, rate=rate, task_prompt="none"
            )
            weights = whole_weights(learn(segmenter, lessons, settings))
            tuned = segmenter.with_decoder({k: v for k, v in weights.items() if k.startswith(parts)})
            about = {"unknown_share": share, "rate": rate, "cpu_seconds": round(time.process_time() - began)}
            results.append(about | score(tuned, sets))
            print(results[-1], flush=True)
    protocol = {name: value for name, value in vars(arguments).items() if name != "data"}
    write_report("decoder-ceiling", results, load_before, protocol=protocol)


if __name__ == "__main__":
    main()
