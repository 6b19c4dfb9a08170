"""Write a shard so that it appears whole or not at all: its tables first, its images rows last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.errors import TransientError
from schemas.tables import TABLES

from .files import StoreFiles
from .layout import PART_SUFFIX, REPLACES_SUFFIX, SHARD_TABLES, attempt_time, new_attempt, table_path

ROW_GROUP_ROWS = 10_240
_STALE_AFTER = timedelta(hours=1)
# Long texts and blobs that differ in every row: a dictionary or min/max of them only costs space.
_PLAIN = {"rle"}


def commit_attempt(
    files: StoreFiles, attempt: str, model: str, images: pa.Table, tables: Mapping[str, pa.Table]
) -> None:
    """Publish the tables of an attempt, then the images part that makes them visible.

    `images` follows the schema but for `model`, which is set here; a NULL `attempt` stands for this one, an older
    attempt for masks that lie there already, and a NULL `committed_at` for now. The tables follow their
    schemas but for `model` and `attempt`. Killed before its last step, it has done nothing.

    Raises ValueError for rows that contradict each other, TransientError when the files took so long
    that a sweep may have taken them for a killed writer's.
    """
    if "attempt" not in images.schema.names:
        images = images.append_column("attempt", pa.nulls(len(images), pa.string()))
    images = _with_column(images, "attempt", images["attempt"].fill_null(attempt))
    images = _with_column(images, "model", _repeated(model, len(images)))
    now = pa.scalar(datetime.now(UTC), TABLES["images"].field("committed_at").type)
    if "committed_at" not in images.schema.names:
        images = images.append_column("committed_at", pa.nulls(len(images), now.type))
    images = conform("images", _with_column(images, "committed_at", images["committed_at"].fill_null(now)))
    ready = {}
    for name in tables:
        if name not in SHARD_TABLES:
            raise ValueError(f"{name!r} is no table of a shard; those are {', '.join(SHARD_TABLES)}")
        table = _with_column(tables[name], "model", _repeated(model, len(tables[name])))
        ready[name] = conform(name, _with_column(table, "attempt", _repeated(attempt, len(table))))
    check_shard(attempt, images, ready.get("masks"))
    for name, table in ready.items():
        write_part(files, name, model, attempt, sort_rows(table).to_batches(max_chunksize=ROW_GROUP_ROWS))
    publish_images(files, model, attempt, images)


def publish_images(files: StoreFiles, model: str, attempt: str, images: pa.Table) -> None:
    """The commit itself: the images part of an attempt whose other files are in place."""
    check_age(attempt, "this shard")
    write_part(files, "images", model, attempt, images.to_batches(max_chunksize=ROW_GROUP_ROWS))


def check_age(attempt: str, what: str) -> None:
    """Raise TransientError when an attempt took so long that a sweep may have taken its files for a killed writer's."""
    age = datetime.now(UTC) - attempt_time(attempt)
    if age > _STALE_AFTER:
        raise TransientError(
            f"Writing {what} took {age}; its files may have been swept meanwhile. Write it again."
        )


def publish_note(files: StoreFiles, table: str, model: str, attempt: str, replaced: Sequence[str]) -> None:
    """Say which attempts' parts the part of this attempt takes the place of, once that is there."""
    note = json.dumps(list(replaced)).encode()
    files.publish(
        table_path(files.root, table, model, attempt + REPLACES_SUFFIX), lambda path: _write_bytes(path, note)
    )


def commit_model(files: StoreFiles, known: pa.Table, record: Mapping[str, Any]) -> None:
    """Add a row to `models` unless its newest row (`known`, if there is one) says all of it already.

    What a record does not say, such as a parent, is not gainsaid.
    """
    row = {"created_at": datetime.now(UTC), **record}
    table = conform("models", pa.Table.from_pylist([row]))
    model = table["model"][0].as_py()
    same = [name for name, value in record.items() if value is not None]
    if known.num_rows and known.select(same).to_pylist() == table.select(same).to_pylist():
        return
    write_part(files, "models", model, new_attempt(), table.to_batches())


def commit_promotion(files: StoreFiles, record: Mapping[str, Any]) -> None:
    """Add a decision to `promotions`: one row in one file, so that it is seen whole or not at all."""
    table = conform("promotions", pa.Table.from_pylist([{"decided_at": datetime.now(UTC), **record}]))
    write_part(files, "promotions", record["model"], new_attempt(), table.to_batches())


def commit_rows(files: StoreFiles, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a table that belongs to no shard: one file for each run of rows of one model, in their order.

    Killed in between, it has added those before; so rows whose order says how far a reader got are safe.
    """
    for model, of in groupby(rows, key=lambda row: row["model"]):
        commit_tables(files, table, model, [pa.Table.from_pylist(list(of))])


def commit_tables(files: StoreFiles, table: str, model: str, some: Iterable[pa.Table]) -> None:
    """The same for rows of one model, as they come: tables but for `model`. One file, that is there when the last has come."""

    def ready() -> Iterator[pa.RecordBatch]:
        for rows in some:
            whole = conform(table, _with_column(rows, "model", _repeated(model, len(rows))))
            yield from whole.to_batches(max_chunksize=ROW_GROUP_ROWS)

    write_part(files, table, model, new_attempt(), ready())


def write_part(
    files: StoreFiles, table: str, model: str, attempt: str, batches: Iterable[pa.RecordBatch]
) -> int:
    """Publish one Parquet file of a table, one row group a batch; returns the number of rows."""
    import pyarrow.parquet as pq

    schema = TABLES[table]
    rows = 0

    def write(path: Path) -> None:
        nonlocal rows
        options: dict[str, Any] = {
            "compression": "zstd",
            "use_dictionary": [
                f.name
                for f in schema
                if pa.types.is_string(f.type) and f.name not in _PLAIN and not _unique(f.name)
            ],
            "write_statistics": [
                f.name for f in schema if f.name not in _PLAIN and not pa.types.is_binary(f.type)
            ],
        }
        with pq.ParquetWriter(path, schema, **options) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema), row_group_size=ROW_GROUP_ROWS)
                rows += len(batch)

    files.publish(table_path(files.root, table, model, attempt + PART_SUFFIX), write)
    return rows


def conform(table_name: str, table: pa.Table) -> pa.Table:
    """Columns in the schema's order and types; a missing nullable one becomes NULL."""
    schema = TABLES[table_name]
    strangers = set(table.schema.names) - set(schema.names)
    missing = {f.name for f in schema if not f.nullable} - set(table.schema.names)
    if strangers or missing:
        raise ValueError(
            f"rows for {table_name}: unknown columns {sorted(strangers)}, missing columns {sorted(missing)}"
        )
    columns = [
        table[f.name] if f.name in table.schema.names else pa.nulls(len(table), f.type) for f in schema
    ]
    result = pa.table([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    empty = [f.name for f in schema if not f.nullable and result[f.name].null_count]
    if empty:
        raise ValueError(f"rows for {table_name}: NULL in {', '.join(empty)}")
    return result


def sort_rows(table: pa.Table) -> pa.Table:
    """Most uncertain first where a table has an uncertainty: a top-k then reads few row groups."""
    return table.sort_by([("uncertainty", "descending")]) if "uncertainty" in table.schema.names else table


def check_shard(attempt: str, images: pa.Table, masks: pa.Table | None) -> None:
    """Raise ValueError unless the masks are exactly those that this attempt's images rows count.

    Readers rely on it: which files are wholly visible follows from the images rows alone.
    """
    import pyarrow.compute as pc

    if pc.count_distinct(images["uri"]).as_py() != len(images):
        raise ValueError("one shard names the same uri twice")
    own = images.filter(pc.equal(images["attempt"], attempt))
    said = {
        row["image_id"]: row["n_masks"]
        for row in own.select(["image_id", "n_masks"]).to_pylist()
        if row["n_masks"]
    }
    if masks is None:
        counted = {}
    else:
        if pc.count_distinct(masks["mask_id"]).as_py() != len(masks):
            raise ValueError("one shard holds the same mask_id twice")
        counts = masks.group_by("image_id").aggregate([("mask_id", "count")])
        counted = dict(zip(counts["image_id"].to_pylist(), counts["mask_id_count"].to_pylist(), strict=True))
    if said != counted:
        wrong = sorted({str(k) for k, _ in said.items() ^ counted.items()})[:5]
        raise ValueError(
            f"n_masks of the images rows and the masks differ, first for image_id {', '.join(wrong)}"
        )


def _unique(name: str) -> bool:
    return name in {"mask_id", "uri", "fingerprint"}


def _repeated(value: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), count)


def _with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    if name in table.schema.names:
        return table.set_column(table.schema.get_field_index(name), name, values)
    return table.append_column(name, values)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
