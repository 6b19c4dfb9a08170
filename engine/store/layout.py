"""Names in a store: where each table's files lie, and the attempt ids they are named by.

ROOT/images/model=NAME@VERSION/ATTEMPT.parquet     the commits: written last
ROOT/masks/model=NAME@VERSION/ATTEMPT.parquet      and every other table with an `attempt` column
ROOT/models/model=NAME@VERSION/ATTEMPT.parquet     records that belong to no shard
ROOT/images/model=NAME@VERSION/ATTEMPT.replaces    JSON: the parts a compaction took the place of; beside records, too
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from schemas.errors import ConfigError
from schemas.tables import TABLES

PART_SUFFIX = ".parquet"
REPLACES_SUFFIX = ".replaces"
_ATTEMPT = re.compile(r"(\d{8}T\d{12}-[0-9a-f]{16})\.")
_TIME_FORMAT = "%Y%m%dT%H%M%S%f"

# Tables whose files belong to a shard: named by the attempt and seen only through an images row.
SHARD_TABLES = tuple(
    name for name, schema in TABLES.items() if name != "images" and "attempt" in schema.names
)


def new_attempt(after: str | None = None) -> str:
    """A fresh attempt id: UTC time to the microsecond, then 16 random hex digits.

    Ids sort by time. `after` is an id that the new one must sort behind even if that one was made on a
    machine whose clock runs ahead.
    """
    now = datetime.now(UTC)
    if after is not None:
        now = max(now, attempt_time(after) + timedelta(microseconds=1))
    return f"{now.strftime(_TIME_FORMAT)}-{uuid.uuid4().hex[:16]}"


def attempt_time(attempt: str) -> datetime:
    """When an attempt began, UTC."""
    return datetime.strptime(attempt.partition("-")[0], _TIME_FORMAT).replace(tzinfo=UTC)


def table_path(root: str, table: str, model: str, name: str) -> str:
    """Path of one file of a table; `name` carries its suffix."""
    if not model or model in {".", ".."}:
        raise ConfigError(f"A model needs a name like sam-nano@0123456789ab, got {model!r}.")
    return f"{root}/{table}/model={quote(model, safe='@+ ')}/{name}"


def parse_path(path: str) -> tuple[str, str] | None:
    """(model, file name) of a path below a table's folder; None for what no store wrote."""
    folder, _, name = path.rpartition("/")
    partition = folder.rpartition("/")[2]
    if not partition.startswith("model="):
        return None
    return unquote(partition.removeprefix("model=")), name


def attempt_of(name: str) -> str | None:
    """The attempt a file is named by, or None for a stranger's file."""
    found = _ATTEMPT.match(name)
    return found[1] if found else None
