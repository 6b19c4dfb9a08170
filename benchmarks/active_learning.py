"""Does asking the right masks teach a model sooner than asking any? Simulated, from pool to curves.

    python benchmarks/active_learning.py --strategies random random+looks uncertainty+looks
    python benchmarks/active_learning.py --half tuning --seeds 100 101 102 --folder runs/active-learning-tuning

The pool is 341 micrographs of nuclei. The shipped `sam-nano` has seen such fluorescence, but never stained tissue or
bright field, which are 9 % of the pool's images. In every step a strategy chooses masks of the whole pool, a simulated person
answers (`simulated_people.py`; nobody else sees the oracle), and all of the model learns from all answers so far, each time
from its shipped weights (`answer_learning.py`). Then it is scored with one click a nucleus on kept-out groups, by IoU with what
was meant of the output that the model itself picks: fluorescence and unknown kinds apart, the mean of the two is the headline.

Strategies are those of `engine.triage`. With `+looks` the pool's images are grouped by their mean features into eight
looks (k-means), and none may have more than an eighth of a step: looks are the strata.

Groups that are evaluated on are halved once, by a hash of their name. Settings are tuned and the strategy is chosen on the
one half with other seeds (--half tuning); the other half is reported. Goes on where it was; a step takes two minutes on
one core. Several processes may share a folder, each with seeds of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from active_learning_report import report
from answer_learning import collect_lessons, learn_answers, score_model
from generate import ROOT
from masked_pool import EmbeddingCache, PoolMasks, mask_pool
from simulated_people import Answer, Costs, answer

from engine.evaluate.interactive import choose_images
from engine.learn.data import LabelledImage, read_coco
from engine.learn.splits import split_groups, split_unknown
from engine.models.allocator import keep_freed_memory
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.triage.acquisition import select_masks
from engine.triage.candidates import Candidates
from engine.uncertainty.head_files import find_heads
from schemas.settings import AcquisitionSettings, FinetuneSettings, GenerateSettings

DATA = ROOT.parent / "shared/data/nuclei"
STRATEGIES = ("random", "uncertainty", "entropy", "coreset", "badge")
STRATEGIES += tuple(f"{name}+looks" for name in STRATEGIES)
HALVES = ("tuning", "reporting")
_LOOKS = 8


@dataclass(frozen=True)
class World:
    """What all series share.

    Attributes:
        shipped: the model that everything begins with.
        pool: its images with what is truly there; what a strategy sees is `masks`.
        masks: the pool's masks.
        answers: what is said of each mask when it is asked about.
        unknown_I: which images of the pool are of a kind that the model was never taught; for the report alone.
        look_I: the group of alike images that each image of the pool is in.
        sets: by kind, what the model is scored on.
        start: how the shipped model does.
    """

    shipped: Segmenter
    pool: list[LabelledImage]
    masks: PoolMasks
    answers: list[Answer]
    unknown_I: np.ndarray
    look_I: np.ndarray
    sets: dict[str, list[LabelledImage]]
    start: dict[str, float]


def build_world(arguments: argparse.Namespace) -> World:
    """Read everything, mask the pool, score the shipped model; masks that were made before are taken from the folder."""
    if not (arguments.data / "pool" / "oracle.json").exists():
        raise SystemExit(f"There is no pool/oracle.json below {arguments.data}. Name the folder with --data.")
    shipped = load_segmenter("sam-nano", device="cpu")
    heads = find_heads(shipped)
    if heads is None:
        raise SystemExit("sam-nano has no heads. Fit some: gapmap fit-heads --help")
    pool = [image.preload() for image in read_coco(arguments.data / "pool" / "oracle.json")]
    pool = pool[:: max(1, len(pool) // arguments.pool_images)] if arguments.pool_images else pool
    arguments.cache.mkdir(parents=True, exist_ok=True)
    cache = EmbeddingCache(shipped, arguments.cache / "embeddings.safetensors")
    segmenter = cache.attach(shipped)

    made = f"{segmenter.version}-{len(pool)}-{arguments.points_per_side}"
    settings = GenerateSettings(points_per_side=arguments.points_per_side)
    masks = _keep(
        arguments.cache / f"masks-{made}.pickle",
        lambda: mask_pool(
            segmenter, heads, pool, settings, lambda n: _tell("masking the pool", n, len(pool))
        ),
    )
    costs = Costs(noise=arguments.noise)
    answers = [
        answer(pool[masks.image_N[n]], masks.counts[n], costs, np.random.default_rng([n, 1]))
        for n in range(len(masks))
    ]
    labelled = read_coco(arguments.data / "labelled")
    sets = split_evaluation(labelled, arguments.half, arguments.images, arguments.masks)
    unknown = {i.name for name, of in split_unknown("x", pool).items() if name != "x" for i in of}
    world = World(
        shipped=shipped,
        pool=pool,
        masks=masks,
        answers=answers,
        unknown_I=np.array([image.name in unknown for image in pool]),
        look_I=group_looks(segmenter, pool),
        sets=sets,
        start=score_model(shipped, sets),
    )
    cache.save()
    return world


def split_evaluation(
    labelled: list[LabelledImage], half: str, images: int, masks: int
) -> dict[str, list[LabelledImage]]:
    """Images of one half that no model learnt from: of fluorescence the kept-out groups, of unknown kinds all.

    The halves are told apart by a hash of the group.
    """
    kinds = {
        "fluorescence": split_unknown("x", split_groups(labelled)[1])["x"],
        "unknown": split_unknown("x", labelled)["x, unknown modalities"],
    }
    sets: dict[str, list[LabelledImage]] = {}
    for kind, of in kinds.items():
        tiles: dict[str, list[LabelledImage]] = {}
        for image in of:
            if int(hashlib.sha256(image.group.encode()).hexdigest(), 16) % 2 == HALVES.index(half):
                tiles.setdefault(image.group, []).append(image)
        sets[kind] = [image for group in tiles.values() for image in group[:images]]
    return choose_images(sets, None, masks)


def group_looks(segmenter: Segmenter, images: Sequence[LabelledImage]) -> np.ndarray:
    """Which of eight groups of alike images each is in: k-means on the mean of its features."""
    means = []
    for image in images:
        embedding = segmenter.embed([image.load()])
        share = np.array(segmenter.mask_extent(embedding.image_sizes[0])) / segmenter.grid_size
        rows, columns = np.ceil(share * embedding.features_BCHW.shape[-1]).astype(int)
        means.append(embedding.features_BCHW[0, :, :rows, :columns].mean((1, 2)).numpy())
    cv2.setRNGSeed(0)
    until = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-4)
    looks = min(_LOOKS, len(means))
    _, look_I1, _ = cv2.kmeans(np.stack(means), looks, None, until, 5, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    return look_I1[:, 0]


def choose(
    world: World,
    strategy: str,
    at_sight_N: np.ndarray,
    asked: Sequence[int],
    count: int,
    arguments: argparse.Namespace,
    seed: int,
) -> list[int]:
    """Masks at sight that a strategy asks about; where looks are full, the plain strategy fills the step."""
    masks = world.masks
    index_N = np.setdiff1d(at_sight_N, asked)
    name, _, looks = strategy.partition("+")
    candidates = Candidates(
        mask_ids=[f"mask-{n}" for n in index_N.tolist()],
        image_ids=[world.pool[i].name for i in masks.image_N[index_N]],
        strata=[f"look-{world.look_I[i]}" if looks else "pool" for i in masks.image_N[index_N]],
        uncertainty_N=(1 - masks.predicted_iou_N[index_N]).clip(0, 1).astype(np.float32),
        entropy_N=masks.entropy_N[index_N].astype(np.float32),
        map_N=np.full(len(index_N), np.nan, np.float32),
        people_N=np.ones(len(index_N), bool),
        accepted_N=np.ones(len(index_N), bool),
        embed=lambda place_K: masks.embedding_NC[index_N[place_K]],
    )
    settings = AcquisitionSettings(
        strategy=name,  # type: ignore[arg-type]
        random_share=0.0,
        per_image=arguments.per_image,
        per_stratum=1 / _LOOKS if looks else 1.0,
        seed=seed,
    )
    before_MC = masks.embedding_NC[sorted(asked)] if asked else None
    chosen = [int(index_N[place]) for place, _ in select_masks(candidates, count, settings, before_MC)]
    if looks and len(chosen) < count:
        more = count - len(chosen)
        chosen += choose(world, name, at_sight_N, [*asked, *chosen], more, arguments, seed)
    return chosen


def run_series(world: World, strategy: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One strategy under one seed: its curve, and what it asked about in order."""
    masks, costs = world.masks, Costs(noise=arguments.noise)
    asked: list[int] = []
    curve: list[dict[str, float]] = [{"labels": 0, "seconds": 0.0} | world.start]
    for step in range(arguments.steps):
        # Most strategies draw nothing: what is at sight is what a seed changes for them.
        at_sight_N = np.flatnonzero(np.random.default_rng([seed, step]).random(len(masks)) < arguments.view)
        chosen = choose(world, strategy, at_sight_N, asked, arguments.labels, arguments, 1000 * seed + step)
        seconds = sum(world.answers[n].seconds for n in chosen)
        seconds += costs.open * len({int(masks.image_N[n]) for n in chosen})
        asked += chosen
        lessons = collect_lessons(world.pool, masks.image_N, world.answers, asked)
        settings = FinetuneSettings(
            train="all",
            steps=arguments.updates,
            rounds=arguments.rounds,
            rate=arguments.rate,
            task_prompt="none",
            seed=1000 * seed + step,
        )
        point = {"labels": len(asked), "seconds": curve[-1]["seconds"] + seconds}
        curve.append(point | score_model(learn_answers(world.shipped, lessons, settings), world.sets))
        print(f"{strategy:18} seed {seed}: {len(asked)} labels, mIoU {curve[-1]['miou']:.3f}", flush=True)
    return {
        "curve": curve,
        "asked": [
            {
                "mask": n,
                "image": int(masks.image_N[n]),
                "unknown": bool(world.unknown_I[masks.image_N[n]]),
                "verdict": world.answers[n].verdict,
            }
            for n in asked
        ],
    }


def protocol(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that decides the curves of a series."""
    names = (
        "pool_images",
        "points_per_side",
        "labels",
        "steps",
        "view",
        "per_image",
        "half",
        "images",
        "masks",
    )
    about = {name: getattr(arguments, name) for name in (*names, "updates", "rounds", "rate")}
    return about | {"costs": asdict(Costs(noise=arguments.noise))}


def run(world: World, arguments: argparse.Namespace) -> None:
    """All series that are not in the folder yet."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    about = protocol(arguments)
    for seed in arguments.seeds:
        for strategy in arguments.strategies:
            path = arguments.folder / f"{strategy}-{seed}.json"
            if path.exists():
                if json.loads(path.read_text())["protocol"] != about:
                    raise SystemExit(
                        f"{path} was made with other settings. Take another --folder, or delete it."
                    )
                continue
            done = run_series(world, strategy, seed, arguments)
            path.write_text(json.dumps({"protocol": about} | done))
            unknown = np.mean([of["unknown"] for of in done["asked"]])
            miou = " ".join(f"{point['miou']:.3f}" for point in done["curve"])
            print(f"{strategy:18} seed {seed}: {100 * unknown:3.0f} % unknown, mIoU {miou}", flush=True)


def _keep(path: Path, make: Any) -> Any:
    """What is in the file; else it is made and written."""
    if path.exists():
        return pickle.loads(path.read_bytes())
    made = make()
    path.with_suffix(".new").write_bytes(pickle.dumps(made))
    path.with_suffix(".new").replace(path)
    return made


def _tell(what: str, done: int, total: int) -> None:
    if done % 20 == 0 or done == total:
        print(f"{what}: {done}/{total} images", flush=True)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with labelled/ and pool/")
    runs = ROOT / "runs" / "active-learning"
    parser.add_argument("--folder", type=Path, default=runs, help="where series are kept")
    parser.add_argument("--cache", type=Path, default=runs / "cache", help="where masks and tokens are kept")
    parser.add_argument("--half", choices=HALVES, default="reporting", help="groups to evaluate on")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2, help="rounds of asking and learning")
    parser.add_argument("--labels", type=int, default=100, help="masks asked about in a step")
    parser.add_argument(
        "--view", type=float, default=0.5, help="share of the pool at sight in a step, drawn anew"
    )
    parser.add_argument("--per-image", type=int, default=4, help="masks of an image in a step, at most")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="share of masks to be mended that people leave as they are"
    )
    parser.add_argument("--updates", type=int, default=300, help="updates of the model in a step")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of prompts in an update")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--points-per-side", type=int, default=6, help="grid that the pool is masked with")
    parser.add_argument(
        "--pool-images", type=int, default=0, help="thin the pool to about so many; 0 for all"
    )
    parser.add_argument("--images", type=int, default=4, help="images of a group to evaluate on")
    parser.add_argument("--masks", type=int, default=12, help="masks of an image to evaluate on")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    load_before = os.getloadavg()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    run(build_world(arguments), arguments)
    report(arguments.folder, load_before, write=arguments.half == "reporting")


if __name__ == "__main__":
    main()
