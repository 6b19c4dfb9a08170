"""Rows of `reviews`: what is to be sent, what of it can still be shown, and what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.review.items import ReviewItem, make_key


def plan_item(queue: str, model: str, masks: Sequence[Mapping[str, Any]], priority: float) -> dict[str, Any]:
    """The row that says that an item is to be sent.

    Args:
        queue: its name.
        model: that made the masks, name@version.
        masks: of one image, with `mask_id`, `image_id`, `width`, `height`, `uncertainty` and `chosen_by`.
        priority: 0..1.
    """
    first = masks[0]
    mask_ids = [mask["mask_id"] for mask in masks]
    return {
        "queue": queue,
        "item_key": make_key(first["image_id"], mask_ids),
        "task_id": None,
        "state": "planned",
        "image_id": first["image_id"],
        "model": model,
        "mask_ids": mask_ids,
        "chosen_by": [mask["chosen_by"] for mask in masks],
        "uncertainty": max(mask["uncertainty"] for mask in masks),
        "priority": priority,
        "width": first["width"],
        "height": first["height"],
        "written_at": datetime.now(UTC),
    }


def shrink_plan(row: Mapping[str, Any], item: ReviewItem | None) -> dict[str, Any]:
    """The row of an item some of whose masks are gone, or were mended since: nobody can answer for a mask that is not shown.

    Args:
        item: with those that are left; None closes it.
    """
    mask_ids = [mask.mask_id for mask in item.masks] if item else []
    chosen_by = dict(zip(row["mask_ids"], row["chosen_by"] or (), strict=False))
    return {
        **row,
        "state": "planned" if item else "closed",
        "task_id": None,
        "mask_ids": mask_ids,
        "chosen_by": [chosen_by[mask_id] for mask_id in mask_ids] if chosen_by else None,
        "uncertainty": item.uncertainty if item else row["uncertainty"],
        "written_at": datetime.now(UTC),
    }


def mark_sent(row: Mapping[str, Any], task_id: str) -> dict[str, Any]:
    """The row of an item that is in the queue now."""
    return {**row, "state": "sent", "task_id": task_id, "written_at": datetime.now(UTC)}
