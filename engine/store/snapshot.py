"""What is visible in a store at one moment, as a DuckDB connection with one view per table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from schemas.tables import TABLES

from .connection import DamagedStoreError, explained, open_connection, quote_sql, scan_files
from .files import StoredFile, StoreFiles
from .layout import PART_SUFFIX, REPLACES_SUFFIX, SHARD_TABLES
from .live import find_live, name_images
from .records import RECORD_TABLES, list_records

T = TypeVar("T")


def list_parts(files: StoreFiles) -> tuple[list[StoredFile], dict[str, str], list[StoredFile]]:
    """The images folder: (parts in effect, path of each replaced part -> attempt that took its place first,
    `.replaces` notes).

    A part counts as replaced only when the part that replaces it is in the same listing, so a listing
    that ran beside a compaction is right with or without it, and one that was killed never counts.
    """
    listed = files.list_table("images")
    parts = {f.path: f for f in listed if f.name == f.attempt + PART_SUFFIX}
    notes = sorted((f for f in listed if f.name == f.attempt + REPLACES_SUFFIX), key=lambda f: f.attempt)
    replaced: dict[str, str] = {}
    for note in notes:
        folder = note.path.rpartition("/")[0]
        if f"{folder}/{note.attempt}{PART_SUFFIX}" in parts:
            text = files.read_bytes(note.path)
            if text is None:  # swept since it was listed, and the parts it names before it
                return list_parts(files)
            for old in json.loads(text):
                if (path := f"{folder}/{old}{PART_SUFFIX}") in parts:
                    replaced.setdefault(path, note.attempt)
    return [f for path, f in sorted(parts.items()) if path not in replaced], replaced, notes


class Snapshot:
    """One moment of a store: only files that its images rows name are read, whatever is written meanwhile.

    Attributes:
        con: the connection, with the views; not for several threads at once (take `con.cursor()` each).
        paths: address of every file the views read.
        parts: the images parts the snapshot was made from.
        tables: files of every other table by (model, attempt), named by a row or not.
    """

    def __init__(
        self, files: StoreFiles, *, memory_limit: str | None = None, threads: int | None = None
    ) -> None:
        self._files = files
        self.parts, _, _ = list_parts(files)
        self.tables = {name: _by_attempt(files.list_table(name)) for name in SHARD_TABLES}
        self.tables |= {name: _by_attempt(list_records(files, name).counting) for name in RECORD_TABLES}
        self.paths: list[str] = []
        self.con = open_connection(files, memory_limit=memory_limit, threads=threads)
        try:
            with explained(files, self.paths):
                self._find_live()
                self._create_views()
        except BaseException:
            self.con.close()
            raise

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.con.close()

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Result of a query of our own, which names its parameters $so, as dicts."""
        return self.con.sql(sql, params=dict(parameters) or None).to_arrow_table().to_pylist()

    def renew(self, *tables: str) -> bool:
        """See what was added since to tables that belong to no shard, as people answer meanwhile; whether anything was."""
        newest = {name: _by_attempt(list_records(self._files, name).counting) for name in tables}
        if all(self.tables[name].keys() == files.keys() for name, files in newest.items()):
            return False
        self.tables |= newest
        with explained(self._files, self.paths):
            for name in tables:
                self._view_records(name)
        self.paths[:] = dict.fromkeys(self.paths)
        return True

    def scan_attempts(self, table: str, model: str, attempts: Iterable[str]) -> str:
        """SQL that reads all rows of some attempts of a model, seen or not, and opens no other's files, however many there are."""
        stored = [self.tables[table].get((model, attempt)) for attempt in attempts]
        return self.scan(table, [self._files.url(file.path) for file in stored if file is not None])

    def scan(self, table: str, urls: Sequence[str]) -> str:
        """SQL that reads files of a table with the columns of its schema; NULL where a file has none."""
        return scan_files(self.con, table, urls)

    def scan_parts(self, urls: Sequence[str]) -> str:
        """SQL that reads images parts with `url` and `row` (the place in the file) beside the columns."""
        if not urls:
            return f"(SELECT *, NULL::VARCHAR AS url, NULL::BIGINT AS row FROM {self.scan('images', urls)})"
        source = scan_files(self.con, "images", urls, ", filename = 'url', file_row_number = true")
        return f"(SELECT * RENAME (file_row_number AS row) FROM {source})"

    def _find_live(self) -> None:
        urls = [self._files.url(f.path) for f in self.parts]
        find_live(self.con, self.parts, urls, self.scan_parts(urls))
        for table in ("hidden", "stray"):
            rows = self.con.execute(
                f"SELECT DISTINCT url FROM internal.{table}_rows JOIN internal.files USING (part)"
            ).fetchall()
            name_images(self.con, table, self.scan_parts([url for (url,) in rows]))

    def _create_views(self) -> None:
        dead = {url for (url,) in self.con.execute("SELECT DISTINCT url FROM internal.dead").fetchall()}
        branches = []
        for model, parts in _by_model((f.model, f) for f in self.parts):
            urls = [self._files.url(f.path) for f in parts]
            branches.append(self._branch("images", model, [url for url in urls if url not in dead]))
            branches.append(
                self._branch(
                    "images",
                    model,
                    [url for url in urls if url in dead],
                    "ANTI JOIN internal.dead USING (url, row)",
                )
            )
        self._create_view("images", branches)
        attempts = self.con.execute(
            "SELECT model, attempt, n_masks, seen FROM internal.attempts ORDER BY ALL"
        ).fetchall()
        lost = [row for row in attempts if row[2] > 0 and row[:2] not in self.tables["masks"]]
        if lost:
            raise DamagedStoreError(
                f"The store {self._files.label} lacks {len(lost)} masks files that its images rows name (first: model {lost[0][0]},"
                f" attempt {lost[0][1]}). Something other than gapmap deleted them: restore them, or delete the images files"
                " of the same names and label those images again."
            )
        for table in SHARD_TABLES:
            there = self.tables[table]
            branches = []
            for model, rows in _by_model((row[0], row) for row in attempts if row[:2] in there):
                for seen, join in _JOINS.items():
                    urls = [self._files.url(there[row[:2]].path) for row in rows if row[3] == seen]
                    branches.append(self._branch(table, model, urls, join))
            self._create_view(table, branches)
        for table in RECORD_TABLES:
            self._view_records(table)

    def _view_records(self, table: str) -> None:
        stored = _by_model((f.model, self._files.url(f.path)) for f in self.tables[table].values())
        newest = f" QUALIFY {_NEWEST[table]} = 1" if table in _NEWEST else ""
        self._create_view(table, [self._branch(table, model, urls) for model, urls in stored], newest)

    def _branch(self, table: str, model: str, urls: list[str], join: str = "") -> str:
        """SELECT over files of one model. A constant model lets DuckDB skip the files of other models."""
        if not urls:
            return ""
        self.paths += urls
        source = self.scan_parts(urls) if "row" in join else self.scan(table, urls)
        columns = ", ".join(
            f"{quote_sql(model)} AS model" if name == "model" else f'"{name}"' for name in TABLES[table].names
        )
        return f"SELECT {columns} FROM {source} {join.format(model=quote_sql(model))}"

    def _create_view(self, table: str, branches: list[str], suffix: str = "") -> None:
        query = " UNION ALL ".join(branch for branch in branches if branch) or f"FROM {self.scan(table, [])}"
        self.con.execute(f'CREATE OR REPLACE VIEW "{table}" AS SELECT * FROM ({query}){suffix}')


# Of rows that say the same thing anew, those that are seen.
_NEWEST = {
    "models": "row_number() OVER (PARTITION BY model ORDER BY created_at DESC)",
    "reviews": "row_number() OVER (PARTITION BY queue, item_key ORDER BY written_at DESC)",
    "labels": "rank() OVER (PARTITION BY queue, task_id, annotation_id ORDER BY pulled_at DESC)",
    "decisions": "rank() OVER (PARTITION BY model, image_id ORDER BY triage_id DESC)",
}
_JOINS = {
    "whole": "",
    "partly": "ANTI JOIN (SELECT attempt, image_id FROM internal.hidden WHERE model = {model}) h USING (attempt, image_id)",
    "stray": "SEMI JOIN (SELECT attempt, image_id FROM internal.stray WHERE model = {model}) s USING (attempt, image_id)",
}


def _by_attempt(stored: Iterable[StoredFile]) -> dict[tuple[str, str], StoredFile]:
    return {(f.model, f.attempt): f for f in stored if f.name == f.attempt + PART_SUFFIX}


def _by_model(pairs: Iterable[tuple[str, T]]) -> list[tuple[str, list[T]]]:
    grouped: dict[str, list[T]] = {}
    for model, value in pairs:
        grouped.setdefault(model, []).append(value)
    return sorted(grouped.items())
