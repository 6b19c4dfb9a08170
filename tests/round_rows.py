"""A round in a store that has masks: decisions, repairs, answers, a new version, the gate's verdict, the steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from engine.masks.rle import decode_rle, encode_masks
from engine.store import Store
from schemas.tables import IMAGES, MAPS, MASKS, MODELS

QUEUE = "folder:review"


def read_masks(store: Store, model: str) -> list[dict[str, Any]]:
    """Masks that hold, the most uncertain first."""
    sql = f"FROM masks WHERE model = '{model}' AND replaced_by IS NULL ORDER BY uncertainty DESC, mask_id"
    return store.query(sql).to_pylist()


def decide(store: Store, model: str, *, asked: int, triage: str = "t1") -> None:
    """The most uncertain ones for people, three for machines, the rest accepted."""
    rows = []
    for place, mask in enumerate(read_masks(store, model)):
        decision = "people" if place < asked else ("larger model" if place < asked + 3 else "accept")
        good = 1 - mask["uncertainty"]
        rows.append(
            {"triage_id": triage, "mask_id": mask["mask_id"], "image_id": mask["image_id"], "model": model}
            | {"decision": decision, "p_good": good, "cost": 10.0 if decision == "people" else 5 * (1 - good)}
            | {"gain": 2.5 if decision == "larger model" else 0.0, "decided_at": datetime.now(UTC)}
        )
    store.append("decisions", rows)


def answer(
    store: Store, model: str, *, count: int, annotator: str = "ann", chosen_by: str = "uncertain"
) -> None:
    """The most uncertain masks sent, and each answered as a task of its own: left, grown, or taken away."""
    sent, labels = [], []
    for place, mask in enumerate(read_masks(store, model)[:count]):
        now, key = datetime.now(UTC), f"{place:032x}"
        about = {"queue": QUEUE, "item_key": key, "task_id": str(place), "model": model}
        about |= {"image_id": mask["image_id"], "width": mask["width"], "height": mask["height"]}
        sent.append(
            about
            | {"state": "sent", "mask_ids": [mask["mask_id"]], "chosen_by": [chosen_by]}
            | {"uncertainty": mask["uncertainty"], "written_at": now}
        )
        verdict = ("fixed", "correct", "fixed", "no object")[place % 4]
        shown = decode_rle([mask["rle"]], mask["height"], mask["width"])[0]
        drawn = shown
        if verdict == "fixed":
            grown = cv2.dilate(shown.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=1 + place % 5)
            drawn = grown.astype(bool)
        there = verdict != "no object"
        labels.append(
            about
            | {"label_id": f"{place + 1:032x}", "annotation_id": str(place), "annotator": annotator}
            | {"mask_id": mask["mask_id"], "region": mask["mask_id"], "verdict": verdict, "said": verdict}
            | {"rle": encode_masks(drawn[None])[0] if there else None}
            | {"area": int(drawn.sum()) if there else None, "seconds": 6.0 + place}
            | {"iou": float((shown & drawn).sum() / (shown | drawn).sum()) if there else None}
            | {"answered_at": now, "task_changed_at": now, "pulled_at": now}
        )
    store.append("reviews", sent)
    store.append("labels", labels)


def mend(store: Store, model: str) -> None:
    """Commit the newest images again with three masks mended: two hold, one does not."""
    _recommit(store, model, model, mended=3)


def label_again(store: Store, model: str, new: str) -> None:
    """The same masks by a new version, which is less sure of itself."""
    _recommit(store, model, new, mended=0)


def teach(store: Store, model: str, new: str, *, passed: bool = True) -> None:
    """A row of the new version and one of the gate's verdict."""
    name, _, version = new.partition("@")
    row: dict[str, Any] = {field.name: "" for field in MODELS if not field.nullable}
    history = [
        {"step": 0, "loss": 0.0, "iou": 0.71},
        {"step": 40, "loss": 0.5, "iou": 0.78},
        {"step": 80, "loss": 0.4, "iou": 0.76},
    ]
    row |= {"model": new, "name": name, "version": version, "parameters": 1, "image_size": 256}
    row |= {"parent": model, "metrics": json.dumps({"step": 80, "history": history})}
    row.pop("created_at")
    store.record_model(row)
    differences = [
        {"task": task, "points": points, "metric": metric, "mean": mean, "low": mean - 0.02}
        | {"high": mean + 0.02, "n": 40}
        for task, mean in (("salient", 0.031), ("entity", 0.012), ("part", -0.004), ("all", 0.016))
        for points in (1, 3, 5)
        for metric in ("miou", "mbiou")
    ]
    store.record_promotion(
        {"model": new, "name": name, "action": "promoted" if passed else "refused", "source": "models/new"}
        | {"previous": model, "previous_source": name}
        | {"reason": "no task loses more than 0.5 points, and the mean gains 1.6"}
        | {"numbers": json.dumps({"images": {"answers": 12}, "differences": differences})}
    )


def step(
    name: str, model: str, numbers: dict[str, Any], began: datetime, *, seconds: float = 30.0, **changes: Any
) -> dict[str, Any]:
    """A row of `rounds`."""
    row = {"round_id": "r1", "step": name, "model": model, "outcome": "done", "numbers": json.dumps(numbers)}
    return row | {"began_at": began, "ended_at": began + timedelta(seconds=seconds)} | changes


def whole_round(store: Store, model: str, new: str, *, asked: int, answered: int) -> None:
    """Everything that a round leaves, in its order."""
    began = datetime.now(UTC) - timedelta(minutes=20)
    mend(store, model)
    decide(store, model, asked=asked)
    answer(store, model, count=answered)
    teach(store, model, new)
    label_again(store, model, new)
    steps: Sequence[tuple[str, str, dict[str, Any]]] = (
        ("pseudolabel", model, {"images": 3, "masks": 9, "errors": {"truncated": 1}, "seconds": 12.5}),
        ("triage", model, {"accept": 4, "people": asked}),
        ("push", model, {"masks": asked, "items": asked}),
        ("pull", model, {"answers": answered}),
        ("finetune", new, {"step": 80}),
        ("promote", new, {"verdict": "promoted"}),
        ("rescore", new, {"images": 3}),
    )
    rows = [
        step(name, of, numbers, began + timedelta(minutes=2 * place), seconds=30 + place)
        for place, (name, of, numbers) in enumerate(steps)
    ]
    rows[1]["ended_at"] = datetime.now(UTC)  # triage ended after its decisions
    store.append("rounds", rows)


def _recommit(store: Store, model: str, new: str, *, mended: int) -> None:
    images = store.query(f"FROM images WHERE model = '{model}'").to_pylist()
    masks = read_masks(store, model)
    for mask in masks:
        mask.pop("attempt")
        if new != model and mask["predicted_iou"] is not None:
            mask["predicted_iou"] = 0.9 * mask["predicted_iou"]
            mask["uncertainty"] = 1 - mask["predicted_iou"]
    for place, mask in enumerate(masks[:mended]):
        child = mask | {"mask_id": f"{place + 1:032x}", "parent_mask_id": mask["mask_id"]}
        better = min((mask["predicted_iou"] or 0) + 0.2, 1)
        child |= {"repair": "better prompt", "predicted_iou": better, "uncertainty": 1 - better}
        (mask if place < 2 else child)["replaced_by"] = child["mask_id"] if place < 2 else mask["mask_id"]
        masks.append(child)
    counts: dict[str, int] = {}
    for mask in masks:
        mask.pop("model")
        counts[mask["image_id"]] = counts.get(mask["image_id"], 0) + 1
    for image in images:
        image["n_masks"] = counts.get(image["image_id"], 0)
        image.pop("model")
        image.pop("committed_at")
        image["attempt"] = None
    maps = store.query(f"SELECT * EXCLUDE (model, attempt) FROM maps WHERE model = '{model}'").to_pylist()
    known = {of["mask_id"]: of for of in maps}
    for mask in masks:  # what mended a mask lies where that lies
        if mask["parent_mask_id"] in known:
            maps.append(known[mask["parent_mask_id"]] | {"mask_id": mask["mask_id"]})
    schemas = [
        pa.schema([f.with_nullable(True) for f in of if f.name not in dropped])
        for of, dropped in (
            (IMAGES, {"model", "committed_at"}),
            (MASKS, {"model", "attempt"}),
            (MAPS, {"model", "attempt"}),
        )
    ]
    tables = [
        pa.Table.from_pylist(of, schema=schema)
        for of, schema in zip((images, masks, maps), schemas, strict=True)
    ]
    store.commit_shard(new, tables[0], {"masks": tables[1], "maps": tables[2]})
