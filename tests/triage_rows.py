"""Scored masks of images that nobody can open, and people's answers about them: what triage decides by."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from store_rows import MODEL, content_id, image_row, mask_rows, tables_of

from engine.masks.rle import encode_masks
from engine.store import Store
from schemas.tables import MASKS

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def box_rle(x0: int, x1: int) -> str:
    """Columns x0..x1 of an image of 48 x 64 pixels."""
    mask = np.zeros((1, 48, 64), bool)
    mask[0, :, x0:x1] = True
    return encode_masks(mask)[0]


def commit_scored(
    store: Store, changes: Sequence[Sequence[dict[str, Any]]], *, model: str = MODEL, drop: Sequence[str] = ()
) -> list[list[dict[str, Any]]]:
    """One image for each list, one mask for each dict in it; returns the rows.

    Args:
        model: whose masks.
        drop: columns that the files do not have, as those of an older version.
    """
    images = [image_row(f"file:///pool/{place}.jpg", n_masks=len(of)) for place, of in enumerate(changes)]
    rows = []
    for image, of in zip(images, changes, strict=True):
        made = mask_rows(image, "predicted_iou")
        for row, change in zip(made, of, strict=True):
            row |= {"predicted_iou": 0.5} | change
        rows.append(made)
    fields = [f for f in MASKS if f.name not in ("model", "attempt", *drop)]
    flat = [{k: v for k, v in row.items() if k not in drop} for of in rows for row in of]
    masks = pa.Table.from_pylist(flat, schema=pa.schema(fields))
    store.commit_shard(model, tables_of(images)[0], {"masks": masks})
    return rows


def label_row(row: dict[str, Any], verdict: str, *, task: str = "", **changes: Any) -> dict[str, Any]:
    """A row of `labels` about a mask; a task of its own unless `task` is given."""
    task = task or row["mask_id"]
    said = {
        "label_id": content_id(row["mask_id"] + task),
        "queue": "q",
        "item_key": content_id(task),
        "task_id": task,
        "annotation_id": "1",
        "image_id": row["image_id"],
        "model": MODEL,
        "mask_id": row["mask_id"],
        "region": row["mask_id"],
        "verdict": verdict,
        "rle": row["rle"] if verdict in ("correct", "fixed") else None,
        "iou": 1.0 if verdict == "correct" else None,
        "height": 48,
        "width": 64,
        "answered_at": NOW,
        "task_changed_at": NOW,
        "pulled_at": NOW,
    }
    return said | changes


def review_row(rows: Sequence[dict[str, Any]], task: str) -> dict[str, Any]:
    """A row of `reviews`: a task that shows these masks."""
    return {
        "queue": "q",
        "item_key": content_id(task),
        "task_id": task,
        "state": "sent",
        "image_id": rows[0]["image_id"],
        "model": MODEL,
        "mask_ids": [row["mask_id"] for row in rows],
        "chosen_by": ["uncertainty"] * len(rows),
        "uncertainty": 0.5,
        "width": 64,
        "height": 48,
        "written_at": NOW,
    }


def decisions_of(store: Store) -> dict[str, str]:
    """The newest decision by mask_id."""
    return {
        row["mask_id"]: row["decision"]
        for row in store.query("SELECT mask_id, decision FROM decisions").to_pylist()
    }
