"""Rows for store tests: images and masks as a labelling run hands them in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from engine.store import Store
from schemas.tables import IMAGES, MASKS

MODEL = "nano@0123456789ab"
SETTINGS = '{"points_per_side": 32}'


def content_id(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def image_row(uri: str, *, content: str | None = None, n_masks: int = 3, **changes: Any) -> dict[str, Any]:
    """A row of `images` as a labelling run hands it in."""
    row = {
        "image_id": content_id(content or uri),
        "uri": uri,
        "fingerprint": f"f-{content or uri}",
        "file_bytes": 1000,
        "width": 64,
        "height": 48,
        "mode": "RGB",
        "n_masks": n_masks,
        "error_kind": None,
        "error": None,
        "settings": SETTINGS,
        "attempt": None,
    }
    return row | changes


def mask_rows(image: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    """The masks of one image: small boxes; `tag` stands in uncertainty_source, to tell runs apart."""
    rows = []
    for index in range(image["n_masks"]):
        key = content_id(f"{image['image_id']}/{index}/{tag}")
        number = int(key[:6], 16) / 0xFFFFFF
        row: dict[str, Any] = {
            f.name: None if f.nullable else 0 for f in MASKS if f.name not in {"model", "attempt"}
        }
        row |= {"mask_id": key, "image_id": image["image_id"], "uncertainty": number, "sam_score": 1 - number}
        row |= {"x0": 2, "y0": 3, "x1": 12, "y1": 8, "area": 50, "height": 48, "width": 64, "rle": BOX_RLE}
        rows.append(row | {"uncertainty_source": tag})
    return rows


def _box_rle() -> str:
    import numpy as np
    from pycocotools import mask

    box = np.zeros((48, 64), np.uint8, order="F")
    box[3:8, 2:12] = 1
    return mask.encode(box)["counts"].decode()


BOX_RLE = _box_rle()


def tables_of(images: Sequence[dict[str, Any]], tag: str = "first") -> tuple[pa.Table, dict[str, pa.Table]]:
    """The two arguments of `commit_shard`. Rows that name an older attempt bring no masks."""
    schema = pa.schema([f.with_nullable(True) for f in IMAGES if f.name not in {"model", "committed_at"}])
    own = {row["image_id"]: row for row in images if row["attempt"] is None and row["n_masks"]}
    rows = [mask for row in own.values() for mask in mask_rows(row, tag)]
    masks = pa.schema([f for f in MASKS if f.name not in {"model", "attempt"}])
    return pa.Table.from_pylist(list(images), schema=schema), {
        "masks": pa.Table.from_pylist(rows, schema=masks)
    }


def commit(store: Store, uris: Sequence[str], tag: str = "first", model: str = MODEL, **changes: Any) -> str:
    """Commit images of these uris, three masks each."""
    images, tables = tables_of([image_row(uri, **changes) for uri in uris], tag)
    return store.commit_shard(model, images, tables)


def fetch(store: Store, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a query's result."""
    return [tuple(row.values()) for row in store.query(sql).to_pylist()]
