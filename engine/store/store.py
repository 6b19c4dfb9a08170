"""One store: the commits that go in, the views that come out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import pyarrow as pa

from schemas.errors import ConfigError, GapmapError
from schemas.tables import TABLES

from .commit import commit_attempt, commit_model, commit_promotion, commit_rows, commit_tables
from .compact import compact_store, sweep_store
from .connection import DamagedStoreError, LostFileError, explained, open_connection, scan_files
from .done import DoneIndex
from .files import StoreFiles
from .layout import PART_SUFFIX, new_attempt, parse_path, table_path
from .query import Progress, fence, run_sql
from .records import list_records
from .results import write_result
from .snapshot import Snapshot, list_parts

if TYPE_CHECKING:
    import duckdb

_TRIES = 4
_LISTED_FOR_S = 600  # a sweep's grace time is far longer
T = TypeVar("T")


class LostMasksError(GapmapError):
    """Rows name masks that are gone, or that masks of other settings took the place of. Label those images anew.

    Attributes:
        image_ids: the contents concerned.
    """

    def __init__(self, image_ids: list[str]) -> None:
        super().__init__(
            f"Rows name an attempt whose masks are no longer there (first image_id {image_ids[0]}): label these images anew."
        )
        self.image_ids = image_ids


class Store:
    """Tables as Parquet under one root: a folder, or any fsspec URL.

    Any number of processes may write, read and compact at once. Nothing is opened or created by making one.

    Args:
        root: folder or fsspec URL.
        storage_options: for the filesystem, as fsspec takes them (`key`, `secret`, `endpoint_url` …).
        memory_limit: how much memory DuckDB may take, such as '2GB'; beyond, it spills to the temporary folder.
        threads: of DuckDB; None = all cores.

    Raises ConfigError for an address that cannot work, TransientError when the filesystem fails in passing.
    """

    def __init__(
        self,
        root: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        memory_limit: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.files = StoreFiles(root, storage_options)
        self._memory_limit = memory_limit
        self._threads = threads
        self._listed_at = -math.inf
        self._replaced: frozenset[tuple[str, str] | None] = frozenset()

    def check_exists(self) -> None:
        """Raise ConfigError when nothing was ever written here: a mistyped address, most likely."""
        if not any(self.files.list_table(table) for table in TABLES):
            raise ConfigError(
                f"There is no store at {self.files.label}: none of the tables {', '.join(TABLES)} has a file there."
                " Check the address, or label a pool into it first."
            )

    def commit_shard(self, model: str, images: pa.Table, tables: Mapping[str, pa.Table]) -> str:
        """Add a shard of images with all that was made of them, whole or not at all; returns its attempt.

        Args:
            model: name@version.
            images: rows of the `images` schema; `model` is set here, and `attempt` and `committed_at` where
                they are NULL or absent. A row may name an older attempt (`DoneIndex.find_content`) instead.
                One made of a row that was read gives that one's time and a little more: whatever was
                committed since then wins.
            tables: rows of the other tables of a shard by name, such as `masks`; `model` and `attempt` are set here.

        Committing the same images again replaces what is seen of them. Raises ValueError for rows that do
        not fit the schemas or each other, LostMasksError for masks of an older attempt that are gone.
        """
        attempt = new_attempt()
        if "attempt" in images.schema.names and images["attempt"].null_count < len(images):
            images = self._follow_moved(model, images)
        commit_attempt(self.files, attempt, model, images, tables)
        return attempt

    def record_model(self, record: Mapping[str, Any]) -> None:
        """Add a row of the `models` schema (without `created_at`); nothing when it is there already."""
        stored = [f for f in list_records(self.files, "models").counting if f.model == record["model"]]
        with explained(self.files), open_connection(self.files) as con:
            scan = scan_files(con, "models", [self.files.url(f.path) for f in stored])
            known = con.sql(f"FROM {scan} ORDER BY created_at DESC LIMIT 1").to_arrow_table()
        commit_model(self.files, known, record)

    def record_promotion(self, record: Mapping[str, Any]) -> None:
        """Add a row of the `promotions` schema (without `decided_at`); from then on it counts."""
        commit_promotion(self.files, record)

    def append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a table that belongs to no shard (`reviews`, `labels`, `decisions`, `rounds`), in their order; from then on they count."""
        commit_rows(self.files, table, rows)

    def append_tables(self, table: str, model: str, some: Iterable[pa.Table]) -> None:
        """The same for many rows of one model, which count when the last of them has come; `model` is set here."""
        commit_tables(self.files, table, model, some)

    def find_done(self, model: str, settings: str, *, retry_errors: bool = False) -> DoneIndex:
        """What is committed already of a model and canonical settings. With `retry_errors`, images that
        failed count as not done."""
        return self.read(lambda snapshot: DoneIndex(snapshot, model, settings, retry_errors=retry_errors))

    def open_snapshot(self) -> Snapshot:
        """The store at this moment; close it when done."""
        for _ in range(_TRIES - 1):
            try:
                return Snapshot(self.files, memory_limit=self._memory_limit, threads=self._threads)
            except (LostFileError, DamagedStoreError):  # a sweep ran between two listings
                continue
        return Snapshot(self.files, memory_limit=self._memory_limit, threads=self._threads)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection of one's own with a view for each table, as the store is now. It is not
        fenced: other files and Python's tables can be joined."""
        return self.open_snapshot().con

    def query(self, sql: str, progress: Progress | None = None) -> pa.Table:
        """Result of one SELECT-like statement, read only and fenced off from other files.

        Args:
            progress: called with the share done, 0..1, a few times a second while it works.

        Raises QueryError for what is wrong with the statement.
        """

        def run(snapshot: Snapshot) -> pa.Table:
            fence(snapshot)
            with run_sql(self.files, snapshot, sql, progress) as reader:
                return reader.read_all()

        return self.read(run)

    def write_query(self, sql: str, format: str, out: TextIO | str, progress: Progress | None = None) -> None:
        """Like `query`, but the result goes in batches to a file or stream; see `write_result`."""

        def run(snapshot: Snapshot) -> None:
            fence(snapshot)
            with run_sql(self.files, snapshot, sql, progress) as reader:
                write_result(reader, format, out)

        self.read(run)

    def compact(
        self,
        model: str | None = None,
        *,
        target_bytes: int = 256 * 2**20,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Merge small files into large ones; see `compact_store`."""
        limit = self._memory_limit or "2GB"
        return compact_store(
            self.files, model=model, target_bytes=target_bytes, memory_limit=limit, progress=progress
        )

    def sweep(self, *, grace: timedelta = timedelta(hours=24)) -> int:
        """Delete files that nobody can need any more; see `sweep_store`."""
        return sweep_store(self.files, grace=grace)

    def read(self, use: Callable[[Snapshot], T]) -> T:
        """What `use` makes of a fresh snapshot; done again when a sweep took a file from under it."""
        for attempt in range(_TRIES):
            with self.open_snapshot() as snapshot:
                try:
                    with explained(self.files, snapshot.paths):
                        return use(snapshot)
                except LostFileError:
                    if attempt == _TRIES - 1:
                        raise
        raise AssertionError("unreachable")

    def _follow_moved(self, model: str, images: pa.Table) -> pa.Table:
        """Let rows that name an older attempt name the one that holds its masks now.

        A compaction may have moved them since; the masks of other settings may have been seen in their
        stead by then. While an attempt's own part is in effect, and ten minutes after, its masks cannot be swept
        before the grace time has passed, so the commit that follows is safe.
        """
        rows = images.select(["image_id", "attempt", "n_masks", "settings"]).to_pylist()
        there = {name: self._is_in_effect(model, name) for name in {row["attempt"] for row in rows} - {None}}
        moved = [row for row in rows if not there.get(row["attempt"], True)]
        if not moved:
            return images
        wanted = sorted({row["image_id"] for row in moved})
        found = self.read(
            lambda snapshot: snapshot.con.execute(
                """SELECT image_id, coalesce(w.attempt, i.attempt), coalesce(w.n_masks, i.n_masks), settings FROM images i
                LEFT JOIN internal.winners w ON w.image_key = md5_number(i.model || chr(0) || image_id)
                WHERE i.model = ? AND list_contains(?, image_id)
                QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY i.committed_at DESC, i.attempt DESC) = 1""",
                [model, wanted],
            ).fetchall()
        )
        now = {(image_id, *made): attempt for image_id, attempt, *made in found}
        for row in moved:
            row["attempt"] = now.get((row["image_id"], row["n_masks"], row["settings"]))
        lost = sorted({row["image_id"] for row in moved if row["attempt"] is None})
        if lost:
            raise LostMasksError(lost)
        index = images.schema.get_field_index("attempt")
        named = pa.array([row["attempt"] for row in rows], pa.string())
        return images.set_column(index, "attempt", named)

    def _is_in_effect(self, model: str, attempt: str) -> bool:
        """Whether the images part of an attempt is there and, as of the last ten minutes, nothing took its place."""
        if time.monotonic() - self._listed_at > _LISTED_FOR_S:
            # To list the folder takes time that grows with the store: not for every shard with a copy in it.
            self._listed_at = time.monotonic()
            self._replaced = frozenset(parse_path(path) for path in list_parts(self.files)[1])
        part = attempt + PART_SUFFIX
        with self.files.translated():
            there = self.files.fs.exists(table_path(self.files.root, "images", model, part))
        return there and (model, part) not in self._replaced
