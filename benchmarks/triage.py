"""What mending by machine does for accepted pseudo-labels, at equal human time.

    python benchmarks/triage.py --data ../shared/data/nuclei/pool/oracle.json --images 40

A model labels images that it has not learnt from, once. Without mending, people answer the most uncertain masks first until the
given share is answered, and the rest is accepted. With mending, triage first lets the larger model and better prompts at the masks
that it expects to gain from it; then people answer the most uncertain ones for the same number of seconds. People's seconds are
those of the simulated annotator: a look at each mask, and drawing what is wrong. Accepted masks are compared with the object that
each matches best (none: 0). Images are drawn evenly over modalities; intervals are a bootstrap over groups of images.
Beside it: how the share of wrong masks among the accepted ones, estimated from a random tenth, compares with the truth.
Writes a dated JSON file to benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from generate import ROOT, write_report

from engine.generate.generator import GenerateSettings
from engine.learn.data import LabelledImage, read_coco
from engine.mask_maker import MaskMaker
from engine.masks.rle import mask_iou
from engine.models.loading import load_segmenter
from engine.pool import list_pool
from engine.promotion import load_labeller
from engine.pseudolabel import Pseudolabeller
from engine.store import Store
from engine.triage.accept_error import bound_share
from engine.triage.costs import learn_costs
from engine.triage.evidence import read_evidence
from engine.triage.menders import find_menders
from engine.triage.mending import RepairReport, find_pending, mend_images
from engine.triage.shard_reader import ShardReader
from engine.triage.triage import triage_masks
from engine.uncertainty.head_files import find_heads
from engine.uncertainty.refiner_files import find_refiner
from schemas.settings import PoolSettings, TriageSettings

_LOOK_S, _FIX_S, _RIGHT = 2.5, 12.0, 0.9  # of engine.review.simulated_people
_SHARES = (0.1, 0.2, 0.3, 0.5)


def choose(images: list[LabelledImage], count: int) -> list[LabelledImage]:
    """So many images, evenly over modalities, no two of a group while there are others."""
    by_look: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in sorted(images, key=lambda of: of.name):
        by_look[image.modality].append(image)
    for of in by_look.values():
        seen: dict[str, int] = defaultdict(int)
        order = {}
        for image in of:
            order[image.name] = seen[image.group]
            seen[image.group] += 1
        of.sort(key=lambda image: (order[image.name], image.name))
    chosen: list[LabelledImage] = []
    while len(chosen) < count and any(by_look.values()):
        for of in by_look.values():
            if of and len(chosen) < count:
                chosen.append(of.pop(0))
    return chosen


def read_masks(store: Store, truth: dict[str, LabelledImage], *, mended: bool) -> list[dict[str, Any]]:
    """Masks that hold (or held before any was mended), with their true IoU."""
    where = "replaced_by IS NULL" if mended else "parent_mask_id IS NULL"
    sql = f"SELECT m.*, i.uri FROM (FROM masks WHERE {where}) m JOIN images i USING (image_id, model) ORDER BY mask_id"
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in store.query(sql).to_pylist():
        by_image[row["uri"].rpartition("/")[2]].append(row)
    rows = []
    for name, of in by_image.items():
        image = truth[name]
        objects = [str(mask.plain_rle["counts"]) for mask in image.masks]
        iou = mask_iou([row["rle"] for row in of], objects, of[0]["height"], of[0]["width"])
        for row, values in zip(of, iou, strict=True):
            best = int(values.argmax()) if len(values) else -1
            truly = float(values.max(initial=0))
            rows.append(
                {"iou": truly, "object": (name, best), "q": row["predicted_iou"], "group": image.group}
            )
    return rows


def seconds(row: dict[str, Any]) -> float:
    """What the simulated annotator needs for a mask."""
    return _LOOK_S if row["iou"] >= _RIGHT or row["iou"] < 0.25 else 2 * _LOOK_S + _FIX_S * (1 - row["iou"])


def accept(rows: list[dict[str, Any]], budget_s: float) -> list[dict[str, Any]]:
    """What is left when people have answered the most uncertain ones for so long."""
    ordered, spent = sorted(rows, key=lambda row: row["q"]), 0.0
    for place, row in enumerate(ordered):
        spent += seconds(row)
        if spent > budget_s:
            return ordered[place:]
    return []


def describe(rows: list[dict[str, Any]], accepted: list[dict[str, Any]]) -> dict[str, float | None]:
    """Accepted masks and their mean IoU; and what the pool has in the end, as fewer masks may be better and yet show less.

    `objects`: how many have a mask of at least a half, accepted or answered. `sum_of_best_iou`: over all objects, their best
    mask's, where what was answered has 1.
    """
    best: dict[tuple[str, int], float] = defaultdict(float)
    kept = {id(row) for row in accepted}
    for row in rows:
        if row["iou"] >= 0.25:  # else the annotator says that there is no object
            best[row["object"]] = max(best[row["object"]], row["iou"] if id(row) in kept else 1.0)
    return {
        "masks": len(accepted),
        "miou": round(float(np.mean([row["iou"] for row in accepted])), 4) if accepted else None,
        "objects": sum(iou >= 0.5 for iou in best.values()),
        "sum_of_best_iou": round(sum(best.values()), 1),
    }


def gain_interval(plain: list[dict[str, Any]], mended: list[dict[str, Any]]) -> list[float]:
    """95 % interval of the difference of the mIoUs, drawing groups."""
    groups = sorted({row["group"] for row in (*plain, *mended)})
    sums = np.zeros((2, len(groups), 2))
    for side, rows in enumerate((plain, mended)):
        for row in rows:
            sums[side, groups.index(row["group"])] += (row["iou"], 1)
    drawn = np.random.default_rng(0).integers(len(groups), size=(2000, len(groups)))
    total = sums[:, drawn].sum(2)
    miou = total[..., 0] / np.maximum(total[..., 1], 1)
    return [round(float(of), 4) for of in np.quantile(miou[1] - miou[0], [0.025, 0.975])]


def check_accept_error(rows: list[dict[str, Any]], threshold: float, good_iou: float) -> dict[str, Any]:
    """A random tenth of the accepted masks, answered, against all of them; a thousand draws say how often it covers."""
    accepted = np.array([row["iou"] < good_iou for row in rows if row["q"] >= threshold])
    if not len(accepted):
        return {"accepted": 0}
    rng, count = np.random.default_rng(0), max(1, round(0.1 * len(accepted)))
    truth, covered = float(accepted.mean()), 0
    first: dict[str, Any] = {}
    for turn in range(1000):
        wrong = int(rng.permutation(accepted)[:count].sum())
        low, high = bound_share(wrong, count)
        covered += low <= truth <= high
        if not turn:
            first = {"drawn": count, "rate": wrong / count, "low": low, "high": high}
    return {"accepted": len(accepted), "truth": truth, "one_draw": first, "covers": covered / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/nuclei/pool/oracle.json")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--model", default="sam-nano")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--store", help="folder that keeps the masks, so that a run that was stopped goes on")
    asked = parser.parse_args()
    load = os.getloadavg()
    images = choose(read_coco(asked.data), asked.images)
    truth = {Path(image.name).name: image for image in images}
    folder = asked.data.parent
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(asked.store or temporary)
        segmenter = load_segmenter(asked.model)
        settings = GenerateSettings(points_per_side=asked.points_per_side)
        maker = MaskMaker(segmenter, settings, find_heads(segmenter), find_refiner(segmenter))
        labeller = Pseudolabeller(maker, store, PoolSettings())
        labeller.record_model()
        items = [
            item for item in list_pool(str(folder), PoolSettings()) if item.uri.rpartition("/")[2] in truth
        ]
        items = labeller.find_done().pending(items)
        for start in range(0, len(items), 4):
            labeller.label(items[start : start + 4])
            print(f"labelled {start + 4} of {len(items)}", flush=True)
        costs = learn_costs(read_evidence(store), TriageSettings())
        menders = find_menders(load_labeller(store, segmenter.model_id), None)
        report = RepairReport()
        for _ in menders:
            triage_masks(store, segmenter.model_id, costs, tuple(menders))
            pending = find_pending(store, segmenter.model_id, list(menders))
            with ShardReader(store, segmenter.model_id, pending, tuple(menders)) as reader:
                for start in range(0, len(pending), 4):
                    report.add(mend_images(reader, pending[start : start + 4], menders))
                    print(f"mended {start + 4} of {len(pending)}", flush=True)
        plain, mended = read_masks(store, truth, mended=False), read_masks(store, truth, mended=True)
    shares = []
    for share in _SHARES:
        answered = sorted(plain, key=lambda row: row["q"])[: round(share * len(plain))]
        budget_s = sum(seconds(row) for row in answered)
        without, with_ = accept(plain, budget_s), accept(mended, budget_s)
        sides = describe(plain, without), describe(mended, with_)
        miou = [side["miou"] for side in sides]
        both = None not in miou
        shares.append(
            {
                "answered_share": share,
                "human_s": round(budget_s),
                "without": sides[0],
                "with": sides[1],
                "gain": round(miou[1] - miou[0], 4) if both else None,
                "interval": gain_interval(without, with_) if both else None,
            }
        )
        print(shares[-1], flush=True)
    result = {
        "model": segmenter.model_id,
        "larger": menders["larger model"].segmenter.model_id if "larger model" in menders else None,
        "data": f"{asked.data.parent.parent.name}/{asked.data.parent.name}",
        "images": len(images),
        "groups": len({image.group for image in images}),
        "repairs": {
            remedy: {"tried": report.tried[remedy], "held": report.held[remedy], "seconds": round(of, 1)}
            for remedy, of in report.seconds.items()
        },
        "equal_human_time": shares,
        "accept_error": check_accept_error(mended, costs.threshold, TriageSettings().good_iou),
    }
    write_report("triage", [result], load)


if __name__ == "__main__":
    main()
