"""Rows of the `images` table as they are handed to a commit."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.records import PoolItem
from schemas.tables import IMAGES

IMAGE_ROWS = pa.schema([field for field in IMAGES if field.name not in ("model", "committed_at")])
"""The columns of a row that a commit does not set itself."""
COPIES = "list([uri, fingerprint] ORDER BY committed_at DESC, uri)"
"""SQL, over the rows of `images` of one model and content: its files (uri, fingerprint), those that were labelled last first. Rows of
files that were moved or deleted stay, so only who opens them knows which are there."""


def image_row(item: PoolItem, settings: str, **known: Any) -> dict[str, Any]:
    """A row for a file of the pool: what is not known is NULL, and it has no masks unless `n_masks` says so.

    Args:
        item: the file.
        settings: canonical JSON of what decides its result.
        known: other columns by name.
    """
    row = dict.fromkeys(IMAGE_ROWS.names)
    row |= {"uri": item.uri, "fingerprint": item.fingerprint, "file_bytes": item.file_bytes}
    return row | {"n_masks": 0, "settings": settings} | known
