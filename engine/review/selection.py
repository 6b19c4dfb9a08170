"""Which masks people are asked about: the most uncertain ones that nobody was asked about, or answered for, before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.masks.map_crop import MapCrop
from engine.review.items import ReviewItem, shown_mask
from schemas.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_SAME_OBJECT = 0.5  # IoU above which a mask is of an object that people have answered for
_PAGE = 2000

_MODELS = "SELECT model FROM images WHERE n_masks > 0 GROUP BY model ORDER BY max(committed_at) DESC"
_FREE_MASKS = """
    SELECT mask_id, image_id, rle, height, width, uncertainty FROM masks
    WHERE model = $model AND replaced_by IS NULL AND mask_id NOT IN (SELECT unnest(mask_ids) FROM reviews WHERE queue = $queue)
      AND mask_id NOT IN (SELECT mask_id FROM labels WHERE mask_id IS NOT NULL AND verdict NOT IN ('withdrawn', 'skipped'))
      AND ($every OR list_contains($images::VARCHAR[], image_id))
    ORDER BY uncertainty DESC, mask_id LIMIT $page OFFSET $start
"""
# A mask that people took away holds no run lengths of its own: the one that was shown stands for it.
_ANSWERED = """
    SELECT l.image_id, coalesce(l.rle, m.rle) AS rle, l.height, l.width FROM labels l
    LEFT JOIN (SELECT DISTINCT ON (mask_id) mask_id, rle FROM masks WHERE mask_id IN (SELECT mask_id FROM labels)) m USING (mask_id)
    WHERE l.verdict NOT IN ('withdrawn', 'skipped') AND coalesce(l.rle, m.rle) IS NOT NULL
"""
_OPEN = """
    SELECT * FROM reviews WHERE queue = $queue AND item_key NOT IN
        (SELECT item_key FROM labels WHERE queue = $queue AND verdict <> 'withdrawn')
    ORDER BY uncertainty DESC, item_key
"""
_MASKS = """
    SELECT m.mask_id, m.image_id, m.rle, m.uncertainty, m.model_gap, m.prompt_gap, m.task_gap, m.height, m.width,
           p.x0, p.y0, p.x1, p.y1, p.rows, p.columns, p.values, i.uri, i.fingerprint
    FROM (SELECT * FROM masks WHERE model = $model AND list_contains($mask_ids, mask_id)) m
    JOIN (SELECT image_id, min(uri) AS uri, arg_min(fingerprint, uri) AS fingerprint FROM images WHERE model = $model
          GROUP BY image_id) i USING (image_id)
    LEFT JOIN (SELECT * FROM maps WHERE model = $model AND list_contains($mask_ids, mask_id)) p USING (mask_id, image_id)
"""


def newest_model(store: Store, asked: str | None = None) -> str:
    """The model that labelled last, name@version.

    Args:
        asked: name@version of one that labelled, or its name alone.

    Raises:
        ConfigError: the store has no masks, or none of the model that was asked for.
    """
    models = [str(row["model"]) for row in store.query(_MODELS).to_pylist()]
    if not models:
        raise ConfigError(
            f"The store {store.files.label} holds no masks. Make some: gapmap label POOL --store …"
        )
    for model in models:
        if asked in (None, model, model.partition("@")[0]):
            return model
    raise ConfigError(f"No masks of {asked!r} are in {store.files.label}. {nearest_name(str(asked), models)}")


def open_items(store: Store, queue: str) -> list[dict[str, Any]]:
    """Rows of `reviews` that were planned or sent and that nobody has answered, the most uncertain first."""
    return store.read(lambda snapshot: snapshot.rows(_OPEN, {"queue": queue}))


def free_masks(
    store: Store, queue: str, model: str, count: int | None = None, images: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Masks that people may be asked about, the most uncertain first: rows with mask_id, image_id, uncertainty, size.

    Free is what is in no item of this queue, was not answered in any, and is not of an object that people have
    answered for (IoU above a half, whichever model's mask they were shown).

    Args:
        queue: its name.
        model: that made them, name@version.
        count: at most so many; None for all.
        images: only of these image_ids; None for all.
    """

    def read(snapshot: Snapshot) -> list[dict[str, Any]]:
        answered: dict[str, list[dict[str, Any]]] = {}
        for row in snapshot.rows(_ANSWERED, {}):
            answered.setdefault(row["image_id"], []).append(row)
        free: list[dict[str, Any]] = []
        start = 0
        while count is None or len(free) < count:
            asked = {"model": model, "queue": queue, "page": _PAGE, "start": start}
            asked |= {"every": images is None, "images": list(images or [])}
            page = snapshot.rows(_FREE_MASKS, asked)
            free += (row for row in page if not _is_answered(row, answered.get(row["image_id"], ())))
            start += _PAGE
            if len(page) < _PAGE:
                break
        return free[:count]

    return store.read(read)


def load_items(store: Store, model: str, groups: Iterable[tuple[str, Sequence[str]]]) -> list[ReviewItem]:
    """Items with everything that people are shown, in the order given; those whose masks are gone are left out.

    Args:
        model: that made the masks.
        groups: (item_key, mask_ids) of each.
    """
    wanted = [(key, list(mask_ids)) for key, mask_ids in groups]
    every = [mask_id for _, mask_ids in wanted for mask_id in mask_ids]
    if not every:
        return []
    rows = store.read(lambda snapshot: snapshot.rows(_MASKS, {"model": model, "mask_ids": every}))
    by_id = {row["mask_id"]: row for row in rows}
    items = []
    for key, mask_ids in wanted:
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
                uri=first["uri"],
                fingerprint=first["fingerprint"],
                model=model,
                size=(first["height"], first["width"]),
                masks=tuple(shown_mask(row, MapCrop.from_row(row)) for row in of),
            )
        )
    return items


def _is_answered(row: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> bool:
    from pycocotools import mask as coco

    size = [row["height"], row["width"]]
    others = [{"size": size, "counts": of["rle"]} for of in answers if [of["height"], of["width"]] == size]
    if not others:
        return False
    iou = coco.iou([{"size": size, "counts": row["rle"]}], others, [0] * len(others))
    return bool(np.max(iou) > _SAME_OBJECT)
