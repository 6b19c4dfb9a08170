"""The masks of an export: those of a model that hold, and in the place of those that people have answered for, their word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .connection import quote_sql
from .people import JUDGED, group_shapes, is_same_object, read_counting

if TYPE_CHECKING:
    from .snapshot import Snapshot

# What people took away, or what nobody agrees with: of that, what was shown is all there is.
_TAKEN = f"""
    WITH taken AS (SELECT DISTINCT image_id, mask_id FROM labels WHERE verdict IN {JUDGED} AND mask_id IS NOT NULL
                   AND mask_id NOT IN (SELECT unnest($counting::VARCHAR[]))),
    shown AS (SELECT DISTINCT ON (mask_id) mask_id, rle, height, width FROM masks WHERE mask_id IN (SELECT mask_id FROM taken))
    SELECT image_id, mask_id, rle, height, width FROM taken LEFT JOIN shown USING (mask_id)
"""
_HOLD = "FROM masks WHERE model = $model AND replaced_by IS NULL AND image_id IN (SELECT unnest($images::VARCHAR[]))"
_PEOPLE = pa.schema(
    [(name, pa.string()) for name in ("mask_id", "image_id", "rle", "task")]
    + [(name, pa.int32()) for name in ("height", "width", "x0", "y0", "x1", "y1")]
    + [("area", pa.int64())]
)


def join_answers(snapshot: Snapshot, model: str) -> str:
    """SQL of the masks to export: the columns of `masks`, and with them `source` and `task`.

    `source` is `people` for what people left as it was, mended or drew; `task` is what they said that it is. Of a mask that was
    shown, the scores are those of what was shown; of one that they drew there are none. Else `source` is `model`, for masks that hold
    and that people have not answered for: neither for the mask itself nor, shown another one, for its object (IoU above a half). Of
    several answers to an object one counts, as in fine-tuning (`read_counting`); a mask without any that counts is left out.

    Makes two tables in `internal`: call it before the snapshot is fenced, and once.
    """
    people = read_counting(snapshot)
    counting = [row["mask_id"] for row in people if row["mask_id"]]
    words = people + snapshot.rows(_TAKEN, {"counting": counting})
    given_way = {row["mask_id"] for row in words if row["mask_id"]} | _find_same(snapshot, model, words)
    _create(snapshot, "given_way", pa.table({"mask_id": pa.array(sorted(given_way), pa.string())}))
    _create(snapshot, "people", pa.Table.from_pylist([_measure(row) for row in people], _PEOPLE))
    of_model, own = f"masks WHERE model = {quote_sql(model)}", ", ".join(_PEOPLE.names)
    return f"""
        SELECT *, NULL::VARCHAR AS task, 'model' AS source FROM (FROM {of_model} AND replaced_by IS NULL) ANTI JOIN internal.given_way USING (mask_id)
        UNION ALL BY NAME
        SELECT m.* EXCLUDE ({own.replace("task, ", "")}), p.*, 'people' AS source FROM internal.people p
        LEFT JOIN (FROM {of_model} AND mask_id IN (SELECT mask_id FROM internal.people)) m ON m.mask_id = p.mask_id
    """


def _find_same(snapshot: Snapshot, model: str, words: list[dict[str, Any]]) -> set[str]:
    """Masks of objects that people have answered for when they were shown another model's, or drew it themselves."""
    ids = {"model": model, "images": sorted({row["image_id"] for row in words})}
    own = {row["mask_id"] for row in snapshot.rows(f"SELECT mask_id {_HOLD}", ids)}
    others = group_shapes(row for row in words if row["mask_id"] not in own)
    answered = {row["mask_id"] for row in words}
    ids["images"] = sorted({image_id for image_id, _, _ in others})
    same = set()
    for batch in snapshot.con.sql(
        f"SELECT mask_id, image_id, rle, height, width {_HOLD}", params=ids
    ).to_arrow_reader(10_240):
        for row in batch.to_pylist():
            if row["mask_id"] not in answered and is_same_object(row, others):
                same.add(row["mask_id"])
    return same


def _measure(row: dict[str, Any]) -> dict[str, Any]:
    """A row of people's with the box and the area of its mask."""
    from engine.masks.rle import measure_rle  # the base is imported without numpy

    [area], [box] = measure_rle([row["rle"]], row["height"], row["width"])
    return row | {"area": int(area)} | dict(zip(("x0", "y0", "x1", "y1"), box.tolist(), strict=True))


def _create(snapshot: Snapshot, name: str, table: pa.Table) -> None:
    snapshot.con.register("made", table)
    snapshot.con.execute(f"CREATE TABLE internal.{name} AS FROM made")
    snapshot.con.unregister("made")
