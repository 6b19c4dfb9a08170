"""What the heads cost, and the runtime table of UncertainSAM.

    python benchmarks/usam_overhead.py --model sam-nano sam2-mini --data ../shared/data/nuclei/pool ../shared/data/everyday

Two things, both in one process:
- Paired runs of labelling (read, mask, map, score, commit) with and without heads, turn by turn, who goes first
  alternating; the overhead is the median over turns, in processor time and by the clock. The masks of both are
  compared: they must be the same. Twice: with uncertainty maps, as `gapmap label` does by default, and with --maps none.
- Seconds an image of masks alone, + entropy, + 5 image augmentations (the image masked again five times), + 8 prompts
  (each mask kept asked for again with 8 points), + heads.
Writes a dated JSON file to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generate import ROOT, read_images, write_report

from engine.evaluate.monte_carlo import augment
from engine.generate import drawing, filters
from engine.generate.generator import generate_masks
from engine.generate.records import ImageMasks
from engine.mask_maker import MaskMaker
from engine.masks.rle import decode_rle
from engine.models.allocator import keep_freed_memory
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.store import Store
from engine.uncertainty.head_files import find_heads
from engine.uncertainty.heads import HeadSet
from engine.uncertainty.maps import Refiner
from engine.uncertainty.refiner_files import find_refiner
from schemas.records import PoolItem, Prompts
from schemas.settings import GenerateSettings, PoolSettings

DATA = [ROOT.parent / "shared/data/nuclei/pool", ROOT.parent / "shared/data/everyday"]
_PROMPTS_AT_ONCE = 32


def label_once(
    segmenter: Segmenter,
    heads: HeadSet | None,
    refiner: Refiner | None,
    items: list[PoolItem],
    settings: GenerateSettings,
) -> tuple[dict[str, float], list[tuple[Any, ...]]]:
    """Seconds of labelling a shard into a new store, and its masks."""
    with tempfile.TemporaryDirectory() as folder:
        labeller = Pseudolabeller(
            MaskMaker(segmenter, settings, heads, refiner), Store(folder), PoolSettings()
        )
        wall, cpu = time.perf_counter(), time.process_time()
        labeller.label(items)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        rows = (
            Store(folder).query("SELECT mask_id, rle, predicted_iou FROM masks ORDER BY mask_id").to_pylist()
        )
    return seconds, [tuple(row.values()) for row in rows]


def pair(
    segmenter: Segmenter,
    heads: HeadSet,
    refiner: Refiner | None,
    items: list[PoolItem],
    settings: GenerateSettings,
    group: int,
) -> dict[str, Any]:
    """Overhead of the heads: labelling with and without, group after group."""
    label_once(segmenter, heads, refiner, items[:1], settings)  # warm up
    turns, masks = [], 0
    for number, start in enumerate(range(0, len(items), group)):
        part = items[start : start + group]
        results = {}
        for name in ("with", "without") if number % 2 else ("without", "with"):
            chosen = heads if name == "with" else None
            results[name] = label_once(segmenter, chosen, refiner, part, settings)
        scored, plain = results["with"][1], results["without"][1]
        if [row[:2] for row in scored] != [row[:2] for row in plain]:
            raise SystemExit("The heads changed the masks.")
        masks += len(scored)
        turns.append(
            {kind: results["with"][0][kind] / results["without"][0][kind] - 1 for kind in ("wall", "cpu")}
        )
        print(f"  {start + len(part)}/{len(items)} images, cpu {100 * turns[-1]['cpu']:+.2f} %", flush=True)
    overhead = {kind: [turn[kind] for turn in turns] for kind in ("cpu", "wall")}
    return {
        "images": len(items),
        "turns": len(turns),
        "masks_per_image": round(masks / len(items), 1),
        "masks_equal": True,
        **{f"overhead_{kind}": round(statistics.median(values), 5) for kind, values in overhead.items()},
        **{
            f"overhead_{kind}_quartiles": [round(float(q), 5) for q in np.quantile(values, [0.25, 0.75])]
            for kind, values in overhead.items()
        },
    }


@contextmanager
def timing(module: Any, name: str) -> Iterator[list[float]]:
    """Processor seconds spent in a function of a module while in this context."""
    function, spent = getattr(module, name), [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[0] += time.process_time() - began

    setattr(module, name, timed)
    try:
        yield spent
    finally:
        setattr(module, name, function)


def tabulate(
    segmenter: Segmenter, heads: HeadSet, images: list[np.ndarray], settings: GenerateSettings
) -> dict[str, float]:
    """Processor seconds an image of each way to know how unsure masks are, on top of the masks alone."""
    rows: dict[str, list[float]] = {}
    for image in images:
        with timing(drawing, "mean_entropy") as entropy:
            plain, [masks] = _clock(lambda image=image: generate_masks(segmenter, [image], settings))
        with timing(heads_of(heads), "score_masks") as scoring, timing(filters, "_find_siblings") as looking:
            _clock(lambda image=image: generate_masks(segmenter, [image], settings, scorer=SCORER))
        more, _ = _clock(
            lambda image=image: [
                generate_masks(segmenter, [a.pixels_HW3], settings) for a in augment(image, 0)
            ]
        )
        prompts, _ = _clock(lambda image=image, masks=masks: ask_again(segmenter, image, masks))
        alone = plain - entropy[0]
        for name, seconds in (
            ("masks", alone),
            ("masks + entropy", plain),
            ("masks + 5 image augmentations", alone + more),
            ("masks + 8 prompts", alone + prompts),
            ("masks + heads", alone + scoring[0] + looking[0]),
        ):
            rows.setdefault(name, []).append(seconds)
    return {name: round(statistics.mean(seconds), 4) for name, seconds in rows.items()}


class _Scorer:
    """A head set whose methods can be timed."""

    heads: HeadSet
    version = "timed"

    def score_masks(self, evidence: Any) -> dict[str, torch.Tensor]:
        return self.heads.score_masks(evidence)


SCORER = _Scorer()


def heads_of(heads: HeadSet) -> _Scorer:
    SCORER.heads = heads
    return SCORER


def ask_again(segmenter: Segmenter, image: np.ndarray, masks: ImageMasks) -> None:
    """Each mask again, with 8 points inside it."""
    rng = np.random.default_rng(0)
    embedding = segmenter.embed([image])
    for start in range(0, len(masks), _PROMPTS_AT_ONCE):
        points = []
        for mask in decode_rle(masks.rles[start : start + _PROMPTS_AT_ONCE], masks.height, masks.width):
            rows, columns = np.nonzero(mask)
            chosen = rng.integers(len(rows), size=8)
            points.append(np.stack([columns[chosen], rows[chosen]], 1))
        points_NP2 = torch.from_numpy(np.stack(points).astype(np.float32))
        n = len(points_NP2)
        labels = torch.ones(n, 8, dtype=torch.int64)
        segmenter.decode(embedding, Prompts(torch.zeros(n, dtype=torch.int64), points_NP2, labels))


def _clock(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["sam-nano", "sam2-mini"], help="names with heads")
    parser.add_argument("--data", nargs="+", type=Path, default=DATA, help="folders with images")
    parser.add_argument("--images", type=int, default=24, help="images of each folder that are labelled")
    parser.add_argument("--table-images", type=int, default=6, help="images of each folder for the table")
    parser.add_argument("--group", type=int, default=2, help="images a turn")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    settings = GenerateSettings(points_per_side=arguments.points_per_side)
    load_before, results = os.getloadavg(), []
    for model in arguments.model:
        segmenter = load_segmenter(model, device=arguments.device)
        heads = find_heads(segmenter)
        if heads is None:
            raise SystemExit(f"{model} has no heads. Fit some: gapmap fit-heads --help")
        for data in arguments.data:
            print(f"{segmenter.model_id} on {data.name}", flush=True)
            pool = sorted(list_pool(str(data), PoolSettings()), key=lambda item: item.uri)
            chosen = np.unique(np.linspace(0, len(pool) - 1, min(arguments.images, len(pool))).astype(int))
            result: dict[str, Any] = {"model": segmenter.model_id, "data": "/".join(data.parts[-2:])}
            items = [pool[i] for i in chosen]
            for name, refiner in (("label", find_refiner(segmenter)), ("label_without_maps", None)):
                result[name] = pair(segmenter, heads, refiner, items, settings, arguments.group)
            result["cpu_seconds_an_image"] = tabulate(
                segmenter, heads, read_images(data, arguments.table_images), settings
            )
            print(json.dumps(result, indent=2), flush=True)
            results.append(result)
    write_report("usam-overhead", results, load_before, threads=arguments.threads)


if __name__ == "__main__":
    main()
