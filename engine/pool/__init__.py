"""The pool: list, open and decode images from any fsspec URL.

A file that cannot be used is an `ImageError` with a reason, never the end of a run.
"""

from __future__ import annotations

from engine.pool.address import check_addresses
from engine.pool.decoding import decode_image
from engine.pool.jpeg import strip_jpeg
from engine.pool.listing import list_pool
from engine.pool.readahead import Outcome, prefetch
from engine.pool.reading import fetch_bytes, hash_image, read_image, reread_bytes, reread_copy
from engine.pool.tiles import tile_boxes

__all__ = [
    "Outcome",
    "check_addresses",
    "decode_image",
    "fetch_bytes",
    "hash_image",
    "list_pool",
    "prefetch",
    "read_image",
    "reread_bytes",
    "reread_copy",
    "strip_jpeg",
    "tile_boxes",
]
