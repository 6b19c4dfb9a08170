"""What people are asked: items of one image each, with up to thirty of its masks, and why the model is unsure of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.masks.map_crop import MapCrop
from engine.triage.acquisition import FROM_ACCEPTED

MOST_REGIONS = 30
"""Masks of one item at most: the brush editor freezes at a hundred, and thirty are comfortable."""
_WORTH_SAYING = 0.03  # IoU that a remedy has to promise


@dataclass(frozen=True)
class ShownMask:
    """A mask as people see it.

    Attributes:
        mask_id: its name in the store, and its region's name in the queue.
        rle: COCO compressed counts, for the item's height x width.
        uncertainty: 0..1.
        model_gap, prompt_gap, task_gap: IoU that each remedy promises, -1..1; None without heads.
        uncertainty_map: None where there is none.
    """

    mask_id: str
    rle: str
    uncertainty: float
    model_gap: float | None = None
    prompt_gap: float | None = None
    task_gap: float | None = None
    uncertainty_map: MapCrop | None = None

    @property
    def reason(self) -> str:
        """Why people are asked, in a sentence."""
        remedies = (
            (self.model_gap, "a larger model to do better by {:.2f}"),
            (self.prompt_gap, "more points to do better by {:.2f}"),
            (self.task_gap, "another of its three readings of the point to fit better by {:.2f}"),
        )
        said = [
            text.format(gap)
            for gap, text in sorted(remedies, key=lambda of: -(of[0] or 0.0))
            if gap is not None and gap >= _WORTH_SAYING
        ]
        expects = (
            f"the model expects {' and '.join(said)}"
            if said
            else "no remedy that a machine has is expected to help"
        )
        return f"uncertainty {self.uncertainty:.2f}: {expects}"


@dataclass(frozen=True)
class ReviewItem:
    """One task for people.

    Attributes:
        item_key: what it is known by on both sides, 32 hex digits.
        image_id: of the image, as in the table `images`.
        copies: (uri, fingerprint) of each of its files, those that were labelled last first.
        model: that made the masks, name@version.
        size: (height, width) of the image, pixels, after EXIF orientation.
        masks: the most uncertain first.
        priority: 0..1; items are answered in its descending order.
    """

    item_key: str
    image_id: str
    copies: tuple[tuple[str, str], ...]
    model: str
    size: tuple[int, int]
    masks: tuple[ShownMask, ...]
    priority: float

    @property
    def uncertainty(self) -> float:
        """Of the most uncertain mask."""
        return max(mask.uncertainty for mask in self.masks)


def make_key(image_id: str, mask_ids: Iterable[str]) -> str:
    """Name of the item that asks about these masks."""
    return hashlib.sha256("\0".join([image_id, *sorted(mask_ids)]).encode()).hexdigest()[:32]


def group_masks(
    rows: Sequence[Mapping[str, Any]], most: int = MOST_REGIONS
) -> list[tuple[list[Mapping[str, Any]], float]]:
    """Masks as they go into items of one image each, and each item's priority.

    An item's priority is its highest uncertainty. Each mask that was drawn from the accepted ones is an item of its own; these come between
    the others evenly and in the order of the draw: whatever share of a queue is answered, its drawn masks are a random sample. Two in one item would
    not be: masks of crowded images would be answered before their turn.

    Args:
        rows: with `image_id`, `uncertainty` and `chosen_by`, in the order in which they were chosen.
        most: masks of an item.
    """
    drawn = [[row] for row in rows if row["chosen_by"] == FROM_ACCEPTED]
    unsure = [row for row in rows if row["chosen_by"] != FROM_ACCEPTED]
    others = _by_image(sorted(unsure, key=lambda row: (-row["uncertainty"], row["mask_id"])), most)
    priority_O = sorted((of[0]["uncertainty"] for of in others), reverse=True) or [1.0, 0.0]
    place_D = (np.arange(len(drawn)) + 0.5) / max(1, len(drawn)) * (len(priority_O) - 1)
    between_D = np.interp(place_D, np.arange(len(priority_O)), priority_O).tolist()
    items = [(of, of[0]["uncertainty"]) for of in others] + list(zip(drawn, between_D, strict=True))
    return sorted(items, key=lambda item: -item[1])


def _by_image(rows: Sequence[Mapping[str, Any]], most: int) -> list[list[Mapping[str, Any]]]:
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    return [of[start : start + most] for of in by_image.values() for start in range(0, len(of), most)]


def shown_mask(row: Mapping[str, Any], uncertainty_map: MapCrop | None) -> ShownMask:
    """A row of `masks` as people see it."""
    gaps = {name: row[name] for name in ("model_gap", "prompt_gap", "task_gap")}
    return ShownMask(row["mask_id"], row["rle"], row["uncertainty"], **gaps, uncertainty_map=uncertainty_map)
