"""What a push works on: the items that wait, and everything that people are shown of a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.masks.map_crop import MapCrop
from engine.review.items import ReviewItem, shown_mask
from engine.store.image_rows import COPIES

if TYPE_CHECKING:
    from engine.store import Store

_ANSWERED = "SELECT DISTINCT item_key FROM labels WHERE queue = $queue AND verdict <> 'withdrawn'"
_OPEN = f"""
    SELECT * FROM reviews WHERE queue = $queue AND state <> 'closed' AND item_key NOT IN ({_ANSWERED})
    ORDER BY coalesce(priority, uncertainty) DESC, item_key
"""
_MASKS = f"""
    SELECT m.mask_id, m.image_id, m.rle, m.uncertainty, m.model_gap, m.prompt_gap, m.task_gap, m.height, m.width,
           p.x0, p.y0, p.x1, p.y1, p.rows, p.columns, p.values, i.copies
    FROM (SELECT * FROM masks WHERE model = $model AND replaced_by IS NULL AND list_contains($mask_ids, mask_id)) m
    JOIN (SELECT image_id, {COPIES} AS copies FROM images WHERE model = $model GROUP BY image_id) i USING (image_id)
    LEFT JOIN (SELECT * FROM maps WHERE model = $model AND list_contains($mask_ids, mask_id)) p USING (mask_id, image_id)
"""


def open_items(store: Store, queue: str) -> list[dict[str, Any]]:
    """Rows of `reviews` that were planned or sent and that nobody has answered, in the order of their priority."""
    return store.read(lambda snapshot: snapshot.rows(_OPEN, {"queue": queue}))


def answered_keys(store: Store, queue: str) -> frozenset[str]:
    """Keys of the items that people have answered or skipped."""
    rows = store.read(lambda snapshot: snapshot.rows(_ANSWERED, {"queue": queue}))
    return frozenset(row["item_key"] for row in rows)


def load_items(
    store: Store, model: str, groups: Iterable[tuple[str, Sequence[str], float | None]]
) -> list[ReviewItem]:
    """Items with everything that people are shown, in the order given; those whose masks are gone, or were mended since, are left out.

    Args:
        model: that made the masks.
        groups: (item_key, mask_ids, priority) of each; a priority of None is the highest uncertainty.
    """
    wanted = [(key, list(mask_ids), priority) for key, mask_ids, priority in groups]
    every = [mask_id for _, mask_ids, _ in wanted for mask_id in mask_ids]
    if not every:
        return []
    rows = store.read(lambda snapshot: snapshot.rows(_MASKS, {"model": model, "mask_ids": every}))
    by_id = {row["mask_id"]: row for row in rows}
    items = []
    for key, mask_ids, priority in wanted:
        of = sorted(
            (by_id[m] for m in mask_ids if m in by_id), key=lambda row: (-row["uncertainty"], row["mask_id"])
        )
        if not of:
            continue
        first = of[0]
        items.append(
            ReviewItem(
                item_key=key,
                image_id=first["image_id"],
                copies=tuple((uri, fingerprint) for uri, fingerprint in first["copies"]),
                model=model,
                size=(first["height"], first["width"]),
                masks=tuple(shown_mask(row, MapCrop.from_row(row)) for row in of),
                priority=first["uncertainty"] if priority is None else priority,
            )
        )
    return items
