"""Masks as a COCO file that pycocotools loads and that `read_coco` reads back, written row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .connection import quote_sql
from .export_masks import join_answers
from .model_choice import newest_model
from .query import check_sql, fence, run_sql
from .whole_file import locate_file

if TYPE_CHECKING:
    from .snapshot import Snapshot
    from .store import Store

_CATEGORY = {"id": 1, "name": "object", "supercategory": ""}


def export_coco(
    store: Store,
    out: str,
    *,
    where: str | None = None,
    model: str | None = None,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Write a COCO instances file; returns (number of images, number of annotations).

    One entry in `images` for each content, whether it has masks or not, with the newest of its uris as `uri` (of local files the newest
    that is still there); images that failed are left out. `file_name` is the path of a local file, relative to the folder of `out` if it lies in there, else absolute; of any other
    it is the uri. Annotations carry the compressed RLE, `bbox` as x, y, width, height in image pixels, `area` in pixels, `score`
    (sam_score), `uncertainty`, `mask_id` and `source`: `model`, or `people` for masks that people left as they were, mended or drew; `task`
    is what they said that it is, where they did. Masks that they took away are left out (see `join_answers`). The only category is "object".

    Args:
        out: path or fsspec URL; the file appears when it is complete; its folder has to be there.
        where: SQL condition on the columns of `masks` and `source`, such as "source = 'people' OR uncertainty < 0.3".
        model: whose masks, by name or name@version; None for the model that labelled last.
        progress: called with (annotations written, annotations in all).

    Raises ConfigError when `out` cannot be written, or the store has no masks (of the model), QueryError for a wrong condition.
    """
    folder, target = locate_file(out, storage_options)
    chosen = newest_model(store, model)

    def run(snapshot: Snapshot) -> tuple[int, int]:
        near = Path(folder.root) if folder.is_local else None
        export = _Export(store, snapshot, chosen, where, near)
        folder.publish(target, lambda path: export.write(path, progress))
        return export.n_images, export.n_annotations

    return store.read(run)


class _Export:
    """One export from one snapshot: prepares the image numbers, then streams."""

    def __init__(
        self, store: Store, snapshot: Snapshot, model: str, where: str | None, near: Path | None
    ) -> None:
        self._files, self._snapshot, self._near = store.files, snapshot, near
        masks = join_answers(snapshot, model)
        self._masks = f"SELECT * FROM ({masks})" + (f" WHERE ({where}\n)" if where else "")
        check_sql(snapshot.con, self._masks)
        snapshot.con.execute(
            f"""CREATE TABLE internal.numbered AS
            SELECT row_number() OVER (ORDER BY uris[1]) AS id, * FROM (
                SELECT image_id, list(uri ORDER BY committed_at DESC, uri) AS uris, any_value(width) AS width, any_value(height) AS height FROM images
                WHERE model = {quote_sql(model)} AND error_kind IS NULL AND image_id IS NOT NULL GROUP BY image_id)"""
        )
        fence(snapshot)
        self.n_images = self.n_annotations = 0

    def write(self, path: Path, progress: Callable[[int, int], None] | None) -> None:
        total = next(self._rows(f"SELECT count(*) AS n FROM ({self._masks})"))["n"]
        with path.open("w", encoding="utf-8") as file:
            file.write(
                '{"info": {"description": "masks by gapmap"}, "licenses": [], "categories": ['
                + json.dumps(_CATEGORY)
                + '],\n"images": ['
            )
            for row in self._rows(
                "SELECT id, image_id, uris, width, height FROM internal.numbered ORDER BY id"
            ):
                row["uri"] = _choose_copy(row.pop("uris"))
                row["file_name"] = _name_file(row["uri"], self._near)
                file.write((",\n" if self.n_images else "\n") + json.dumps(row))
                self.n_images += 1
            file.write('],\n"annotations": [')
            for row in self._rows(
                f"""SELECT n.id AS number, m.mask_id, m.x0, m.y0, m.x1, m.y1, m.area, m.height, m.width, m.rle, m.sam_score, m.uncertainty, m.source, m.task
                FROM ({self._masks}) m JOIN internal.numbered n USING (image_id)"""
            ):
                self.n_annotations += 1
                file.write(
                    (",\n" if self.n_annotations > 1 else "\n")
                    + json.dumps(_annotation(self.n_annotations, row))
                )
                if progress is not None and self.n_annotations % 10_000 == 0:
                    progress(self.n_annotations, total)
            file.write("]}\n")
        if progress is not None:
            progress(self.n_annotations, total)

    def _rows(self, sql: str) -> Iterator[dict[str, Any]]:
        with run_sql(self._files, self._snapshot, sql, made=("source", "task")) as reader:
            for batch in reader:
                yield from batch.to_pylist()


def _choose_copy(uris: list[str]) -> str:
    """Of a content's files the one to name: the first that is there, as far as a look at this machine's disk tells."""
    there = (
        uri for uri in uris if not uri.startswith("file://") or Path(uri.removeprefix("file://")).exists()
    )
    return next(there, uris[0])


def _name_file(uri: str, near: Path | None) -> str:
    if not uri.startswith("file://"):
        return uri
    path = Path(uri.removeprefix("file://"))
    return str(path.relative_to(near) if near and path.is_relative_to(near) else path)


def _annotation(number: int, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": row["number"],
        "category_id": _CATEGORY["id"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": row["rle"]},
        "bbox": [row["x0"], row["y0"], row["x1"] - row["x0"], row["y1"] - row["y0"]],
        "area": row["area"],
        "iscrowd": 0,
        "score": row["sam_score"],
        "uncertainty": row["uncertainty"],
        "mask_id": row["mask_id"],
        "source": row["source"],
    } | ({"task": row["task"]} if row["task"] else {})
