"""Which masks are people's: those that they have answered for, and those that wait for their answer. A machine leaves both alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .snapshot import Snapshot

JUDGED = "('correct', 'fixed', 'new', 'no object', 'deleted')"
"""Verdicts by which people say something of a mask, as SQL."""
SAID = "verdict NOT IN ('withdrawn', 'skipped')"
"""SQL of the rows of `labels` that count as an answer."""
ANSWERED = f"SELECT mask_id FROM labels WHERE mask_id IS NOT NULL AND {SAID}"
"""SQL of the masks that have an answer, `mask_id`."""
WAITING = """
    SELECT unnest(mask_ids) AS mask_id FROM reviews WHERE (queue, item_key) NOT IN
        (SELECT (queue, item_key) FROM labels WHERE verdict <> 'withdrawn')
"""
"""SQL of the masks that are in a task which nobody has answered, `mask_id`: to mend one would let people answer for a mask that
no longer holds."""
SAME_OBJECT = 0.5
"""IoU above which two masks are of one object: that of an answer and a model's, or those that two people drew."""
# What people made of a mask, and what they were shown: to draw that again, after they took it away or mended it, is to ask again.
_SHAPES = f"""
    SELECT image_id, rle, height, width FROM labels WHERE {SAID} AND rle IS NOT NULL
    UNION SELECT image_id, rle, height, width FROM masks WHERE mask_id IN ({ANSWERED})
"""
_BESIDE = f"""
    SELECT mask_id, image_id, rle, height, width FROM masks
    WHERE model = $model AND replaced_by IS NULL AND image_id IN (SELECT image_id FROM labels WHERE {SAID})
"""
_AT_ONCE = 10_240
# The best agreed first: of several answers to a mask that was shown only that one is seen.
_COUNTING = """
    SELECT label_id, queue, task_id, annotation_id, image_id, mask_id, rle, height, width, area, task
    FROM labels WHERE verdict IN ('correct', 'fixed', 'new') AND area > 0 AND coalesce(agreement, 1) > 0
    QUALIFY row_number() OVER (PARTITION BY image_id, coalesce(mask_id, label_id)
                               ORDER BY agreement DESC NULLS LAST, answered_at DESC) = 1
    ORDER BY agreement DESC NULLS LAST, answered_at DESC, label_id
"""
# Of several answers to a mask the same one counts, and none that nobody agrees with.
_REJECTED = f"""
    SELECT DISTINCT l.image_id, m.rle, m.height, m.width
    FROM (FROM labels WHERE mask_id IS NOT NULL AND verdict IN {JUDGED} AND coalesce(agreement, 1) > 0
          QUALIFY row_number() OVER (PARTITION BY mask_id ORDER BY agreement DESC NULLS LAST, answered_at DESC) = 1) l
    JOIN masks m ON m.mask_id = l.mask_id AND m.model = l.model AND m.image_id = l.image_id
    WHERE l.verdict IN ('no object', 'deleted') ORDER BY l.image_id, m.rle
"""


def read_counting(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The masks of people that count, as rows of `labels` in the order of their images.

    Of several answers to one object it is the one that agrees most with the others, of equal ones the latest: to a mask that was
    shown, or of an object that several people drew because no mask showed it (IoU above `SAME_OBJECT`, and not said to be of different
    tasks). One that nobody agrees with, as when the others took the mask away, does not count.
    """
    rows = snapshot.rows(_COUNTING, {})
    drawn: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["mask_id"] is None:
            drawn.setdefault(_frame(row), []).append(row)
    again = {label_id for of in drawn.values() if len(of) > 1 for label_id in _find_drawn_again(of)}
    counting = [row for row in rows if row["label_id"] not in again]
    return sorted(counting, key=lambda row: (row["image_id"], row["label_id"]))


def find_answered(snapshot: Snapshot, model: str) -> set[str]:
    """Masks of a model that hold and show an object that people have answered for, whichever model's mask they were shown: the IoU with
    that, or with what they made of it, is above `SAME_OBJECT`. Skipped and withdrawn answers are none.

    Args:
        model: name@version.
    """
    shapes = group_shapes(snapshot.rows(_SHAPES, {}))
    if not shapes:
        return set()
    beside = snapshot.con.sql(_BESIDE, params={"model": model}).to_arrow_reader(_AT_ONCE)
    return {row["mask_id"] for batch in beside for row in batch.to_pylist() if is_same_object(row, shapes)}


def read_rejected(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The masks that people took away or called no object: image_id, rle, height and width, in the order of their images."""
    return snapshot.rows(_REJECTED, {})


def group_shapes(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int, int], list[str]]:
    """Run lengths of masks by image_id, height and width; what has none is left out."""
    shapes: dict[tuple[str, int, int], list[str]] = {}
    for row in rows:
        if row["rle"]:
            shapes.setdefault(_frame(row), []).append(row["rle"])
    return shapes


def is_same_object(mask: Mapping[str, Any], shapes: Mapping[tuple[str, int, int], list[str]]) -> bool:
    """Whether a mask is of the object of one of those, from `group_shapes`: IoU above `SAME_OBJECT`."""
    from engine.masks.rle import mask_iou  # the base is imported without numpy

    others = shapes.get(_frame(mask), [])
    return bool(others) and bool(
        mask_iou([mask["rle"]], others, mask["height"], mask["width"]).max() > SAME_OBJECT
    )


def _frame(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["image_id"], row["height"], row["width"]


def _find_drawn_again(rows: list[dict[str, Any]]) -> set[str]:
    """Of new masks of one image, the best first, those of objects that another answer has drawn better.

    Each mask stands for one of each other answer, the most alike: what one person drew twice, as an object and a large part of it, is two.
    """
    from engine.masks.rle import mask_iou

    rles = [row["rle"] for row in rows]
    iou_DD = mask_iou(rles, rles, rows[0]["height"], rows[0]["width"])
    again: set[int] = set()
    for mine, row in enumerate(rows):
        if mine in again:
            continue
        alike: dict[tuple[str, str, str], int] = {_answer(row): mine}
        worse = [place for place in range(mine + 1, len(rows)) if place not in again]
        for other in sorted(worse, key=lambda place: -iou_DD[mine, place]):
            tasks = {row["task"], rows[other]["task"]} - {None}
            if iou_DD[mine, other] > SAME_OBJECT and len(tasks) < 2:
                alike.setdefault(_answer(rows[other]), other)
        again |= set(alike.values()) - {mine}
    return {rows[place]["label_id"] for place in again}


def _answer(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["queue"], row["task_id"], row["annotation_id"]
