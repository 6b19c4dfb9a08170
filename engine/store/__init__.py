"""Tables as Parquet on any filesystem: atomic commits, DuckDB views, compaction, export."""

from .connection import DamagedStoreError
from .done import DoneIndex
from .export import export_coco
from .results import FORMATS, format_of, write_result
from .snapshot import Snapshot
from .store import LostMasksError, Store

__all__ = [
    "FORMATS",
    "DamagedStoreError",
    "DoneIndex",
    "LostMasksError",
    "Snapshot",
    "Store",
    "export_coco",
    "format_of",
    "write_result",
]
