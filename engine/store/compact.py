"""Keep the number of files small: merge small shards into large ones, and sweep what nobody names.

A compaction is one more commit. It copies what is seen of some parts into a new attempt; its images rows
keep their `committed_at`, so a row that somebody commits meanwhile still wins. A `.replaces` file, written
first, lets readers skip the old parts from the moment the new part is there. Nothing is deleted: that is
the sweep's work, after a time in which every open reader and writer has come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from schemas.tables import TABLES

from .commit import ROW_GROUP_ROWS, publish_images, publish_note, write_part
from .connection import DamagedStoreError, explained, open_connection, quote_sql, scan_files
from .files import StoreFiles
from .layout import PART_SUFFIX, SHARD_TABLES, attempt_time, new_attempt
from .live import IMAGE_KEY
from .records import RECORD_TABLES, merge_records, pack, sweep_records
from .snapshot import Snapshot, list_parts

_WASTED_SHARE = 0.3


@dataclass(frozen=True)
class _Part:
    attempt: str
    url: str
    size: int
    must_go: bool


def compact_store(
    files: StoreFiles,
    *,
    model: str | None = None,
    target_bytes: int = 256 * 2**20,
    memory_limit: str = "2GB",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Merge the small and wasteful shards and the small files of records, of one model or of all; returns how many.

    Args:
        target_bytes: size of the largest table file of a merged shard, about.
        memory_limit: DuckDB's, for sorting; it spills to the temporary folder beyond.
        progress: called with (groups done, groups in all).

    It can be killed at any moment, and run beside writers, readers and other compactions.
    """
    with Snapshot(files, memory_limit=memory_limit) as snapshot:
        models = sorted({part.model for part in snapshot.parts if model in (None, part.model)})
        groups = [(name, group) for name in models for group in _plan(snapshot, name, target_bytes)]
        for done, (name, group) in enumerate(groups):
            if progress is not None:
                progress(done, len(groups))
            with explained(files, snapshot.paths):
                _merge(files, snapshot, name, group)
        if progress is not None:
            progress(len(groups), len(groups))
    return sum(len(group) for _, group in groups) + merge_records(files, model, target_bytes, memory_limit)


def sweep_store(files: StoreFiles, *, grace: timedelta = timedelta(hours=24)) -> int:
    """Delete what no reader can need: replaced parts, files no images row names, temporary files; returns how many.

    Only what is older than `grace` goes. Readers, writers and compactions that run longer than that may
    lose files; zero is for a store that nobody uses meanwhile.
    """
    limit = datetime.now(UTC) - grace
    # Tables are listed before the images: what is committed in between is then named.
    tables = {table: files.list_table(table) for table in SHARD_TABLES}
    _, replaced, notes = list_parts(files)
    gone = [path for path, later in replaced.items() if attempt_time(later) < limit]
    files.remove(gone)
    stale_notes = [note.path for note in notes if attempt_time(note.attempt) < limit]
    files.remove(stale_notes)
    temporary = [
        f for table in ("images", *RECORD_TABLES) for f in files.list_table(table) if f.name.endswith(".tmp")
    ]
    named = _named_attempts(files)
    stale = [
        f.path
        for f in (*(f for listed in tables.values() for f in listed), *temporary)
        if f.name != f.attempt + PART_SUFFIX or f.attempt not in named
        if max(attempt_time(f.attempt), f.changed or limit) < limit
    ]
    files.remove(stale)
    return len(gone) + len(stale_notes) + len(stale) + sweep_records(files, limit)


def _plan(snapshot: Snapshot, model: str, target_bytes: int) -> list[list[_Part]]:
    """Groups of parts to merge, oldest first; what is large and of use is left as it is."""
    rows = snapshot.con.sql(
        "SELECT attempt, url, coalesce(n_wasted > ? * n_rows, false) OR names_stray FROM internal.parts WHERE model = ? ORDER BY attempt",
        params=[_WASTED_SHARE, model],
    ).fetchall()
    small = []
    for attempt, url, must_go in rows:
        stored = [snapshot.tables[table].get((model, attempt)) for table in SHARD_TABLES]
        part = _Part(attempt, url, max((f.size for f in stored if f is not None), default=0), must_go)
        if part.size < target_bytes / 2 or must_go:
            small.append(part)
    groups = pack(small, target_bytes)
    return [group for group in groups if len(group) > 1 or any(part.must_go for part in group)]


def _merge(files: StoreFiles, snapshot: Snapshot, model: str, group: Sequence[_Part]) -> None:
    con = snapshot.con
    old = [part.attempt for part in group]
    attempt = new_attempt(after=max(old))
    # Masks move when their attempt is merged here, or lies in a file whose own images part is gone;
    # else the row goes on naming the attempt that holds them.
    con.execute(
        f"""CREATE OR REPLACE TABLE internal.merged AS
        SELECT r.* EXCLUDE (url, row) REPLACE (coalesce(w.attempt, r.attempt) AS attempt, coalesce(w.n_masks, r.n_masks) AS n_masks),
            image_id IS NOT NULL AND (list_contains(?, coalesce(w.attempt, r.attempt))
                OR coalesce(w.attempt, r.attempt) NOT IN (SELECT attempt FROM internal.files)) AS moves
        FROM (SELECT * FROM {snapshot.scan_parts([part.url for part in group])} ANTI JOIN internal.dead USING (url, row)) r
        LEFT JOIN internal.winners w ON w.image_key = {IMAGE_KEY.replace("model", "r.model")}""",
        [old],
    )
    publish_note(files, "images", model, attempt, old)
    sources = con.execute("SELECT DISTINCT attempt FROM internal.merged WHERE moves").fetchall()
    for table in SHARD_TABLES:
        stored = [
            snapshot.tables[table][model, source]
            for (source,) in sources
            if (model, source) in snapshot.tables[table]
        ]
        if not stored:
            continue
        scan = snapshot.scan(table, [files.url(f.path) for f in stored])
        query = (
            f"SELECT * REPLACE ({quote_sql(attempt)} AS attempt) FROM {scan}"
            " SEMI JOIN (SELECT attempt, image_id FROM internal.merged WHERE moves) USING (attempt, image_id)"
        )
        if "uncertainty" in TABLES[table].names:
            query += " ORDER BY uncertainty DESC"
        rows = write_part(files, table, model, attempt, _rows(files, snapshot, query))
        expected = "SELECT coalesce(sum(n_masks), 0) FROM (SELECT DISTINCT image_id, n_masks FROM internal.merged WHERE moves)"
        if table == "masks" and rows != (count := con.execute(expected).fetchall()[0][0]):
            raise DamagedStoreError(
                f"Merging {len(old)} shards of {model} found {rows} masks where their images rows count {count}. They are left as they"
                " are; a masks file was changed by something other than gapmap. Restore it, or label those images again."
            )
    images = con.sql(
        f"SELECT * EXCLUDE (moves) REPLACE (CASE WHEN moves OR image_id IS NULL THEN {quote_sql(attempt)} ELSE attempt END AS attempt)"
        " FROM internal.merged ORDER BY uri"
    )
    publish_images(files, model, attempt, images.to_arrow_table())


def _rows(files: StoreFiles, snapshot: Snapshot, query: str) -> Iterator[pa.RecordBatch]:
    """A row group at a time. Explained here: where they are written, an OSError would be the file's."""
    with explained(files, snapshot.paths):
        yield from snapshot.con.sql(query).to_arrow_reader(ROW_GROUP_ROWS)


def _named_attempts(files: StoreFiles) -> set[str]:
    """Attempts that any images part names, replaced parts included."""
    effective, replaced, _ = list_parts(files)
    with explained(files), open_connection(files) as con:
        scan = scan_files(
            con, "images", [files.url(path) for path in (*(f.path for f in effective), *replaced)]
        )
        return {attempt for (attempt,) in con.execute(f"SELECT DISTINCT attempt FROM {scan}").fetchall()}
