"""Tables that belong to no shard (`labels`, `reviews`, `decisions` …): which of their files count, and many small ones made one.

Every answer that is pulled and every push is a file of its own, and no row is ever rewritten. A merged file takes the place of those that
its `.replaces` note names, from the moment that it is there. Of two merges that began at once and share a file the
earlier one counts, so that no row is seen twice; what the other one alone had merged is seen in the old files still.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

import pyarrow as pa

from schemas.tables import TABLES

from .commit import ROW_GROUP_ROWS, check_age, publish_note, write_part
from .connection import explained, open_connection, scan_files
from .files import StoredFile, StoreFiles
from .layout import PART_SUFFIX, REPLACES_SUFFIX, SHARD_TABLES, attempt_time, new_attempt

RECORD_TABLES = tuple(name for name in TABLES if name != "images" and name not in SHARD_TABLES)
_MOST_FILES = 10_000
# A triage decides on everything anew: rows that a newer one took the place of are left out of merged files. What people said
# and were asked is kept for ever: it is little, and it was dear.
_NEWEST = {"decisions": "SELECT image_id, max(triage_id) AS triage_id FROM {scan} GROUP BY image_id"}
_WASTED_SHARE = 0.3
_Key = tuple[str, str]


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=_Sized)


@dataclass(frozen=True)
class Records:
    """The files of such a table.

    Attributes:
        counting: those whose rows are seen.
        replaced: those that a merged one took the place of, and its attempt.
        vain: merged ones that do not count.
        notes: which say what took the place of what.
    """

    counting: list[StoredFile]
    replaced: list[tuple[StoredFile, str]]
    vain: list[StoredFile]
    notes: list[StoredFile]


def list_records(files: StoreFiles, table: str) -> Records:
    """What lies in a table's folder, and what of it counts."""
    listed = sorted(files.list_table(table), key=lambda f: (f.attempt, f.model))
    parts = {(f.model, f.attempt): f for f in listed if f.name == f.attempt + PART_SUFFIX}
    notes = [f for f in listed if f.name == f.attempt + REPLACES_SUFFIX]
    vain: set[_Key] = set()
    replaced: dict[_Key, str] = {}
    for note in notes:
        if (note.model, note.attempt) not in parts:
            continue  # killed before its file was there
        text = files.read_bytes(note.path)
        if text is None:  # swept since it was listed, and the files it names before it
            return list_records(files, table)
        old = [(note.model, attempt) for attempt in json.loads(text)]
        if any(key in replaced or key in vain for key in old):
            vain.add((note.model, note.attempt))
        else:
            replaced |= dict.fromkeys(old, note.attempt)
    return Records(
        [file for key, file in parts.items() if key not in replaced and key not in vain],
        [(file, replaced[key]) for key, file in parts.items() if key in replaced],
        [file for key, file in parts.items() if key in vain],
        notes,
    )


def merge_records(files: StoreFiles, model: str | None, target_bytes: int, memory_limit: str) -> int:
    """Merge the small files of every such table, of one model or of all; returns how many were merged."""
    merged = 0
    for table in RECORD_TABLES:
        counting = list_records(files, table).counting
        for name in sorted({f.model for f in counting if model in (None, f.model)}):
            of = [f for f in counting if f.model == name]
            wasteful = _find_wasteful(files, table, of, memory_limit)
            some = [f for f in of if f.size < target_bytes / 2 or f.path in wasteful]
            for group in pack(some, target_bytes):
                if len(group) > 1 or any(f.path in wasteful for f in group):
                    _merge(files, table, name, group, of, memory_limit)
                    merged += len(group)
    return merged


def sweep_records(files: StoreFiles, limit: datetime) -> int:
    """Delete what was replaced, or merged in vain, by merges that began before `limit`; returns how many files.

    Merges in vain go first and the notes last: whatever is killed in between, what counts stays what it was.
    """
    gone = 0
    for table in RECORD_TABLES:
        found = list_records(files, table)
        replaced = [file for file, merged in found.replaced if attempt_time(merged) < limit]
        for step in (_older(found.vain, limit), replaced, _older(found.notes, limit)):
            files.remove([file.path for file in step])
            gone += len(step)
    return gone


def _older(some: list[StoredFile], limit: datetime) -> list[StoredFile]:
    return [file for file in some if attempt_time(file.attempt) < limit]


def pack(small: Iterable[T], target_bytes: int) -> list[list[T]]:
    """Files or parts, in their order, in groups that are merged into one of about the target's size."""
    groups: list[list[T]] = [[]]
    size = 0
    for item in small:
        if size + item.size > target_bytes or len(groups[-1]) >= _MOST_FILES:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.size
    return groups


def _find_wasteful(files: StoreFiles, table: str, of: list[StoredFile], memory_limit: str) -> set[str]:
    """Paths of a model's files of which much is no longer seen, because others say it anew."""
    if table not in _NEWEST or len(of) < 2:
        return set()
    by_url = {files.url(file.path): file.path for file in of}
    with explained(files, list(by_url)), open_connection(files, memory_limit=memory_limit) as con:
        newest = _NEWEST[table].format(scan=scan_files(con, table, list(by_url)))
        found = con.sql(
            f"""SELECT url FROM {scan_files(con, table, list(by_url), ", filename = 'url'")} s JOIN ({newest}) n USING (image_id)
            GROUP BY url HAVING avg((s.triage_id < n.triage_id)::INTEGER) > {_WASTED_SHARE}"""
        ).fetchall()
    return {by_url[url] for (url,) in found}


def _merge(
    files: StoreFiles,
    table: str,
    model: str,
    group: list[StoredFile],
    of: list[StoredFile],
    memory_limit: str,
) -> None:
    """Make one file of a group; `of` are all that count of the table and model.

    The newest row of each image is left out of no merge, and so lies in a file that counts, whichever merges count.
    """
    old = [file.attempt for file in group]
    attempt = new_attempt(after=max(old))
    publish_note(files, table, model, attempt, old)
    urls = [files.url(file.path) for file in of]
    with open_connection(files, memory_limit=memory_limit) as con:
        query = f"FROM {scan_files(con, table, [files.url(file.path) for file in group])}"
        if table in _NEWEST:
            newest = _NEWEST[table].format(scan=scan_files(con, table, urls))
            query += f" SEMI JOIN ({newest}) USING (image_id, triage_id)"

        def rows() -> Iterator[pa.RecordBatch]:
            with explained(files, urls):
                yield from con.sql(query).to_arrow_reader(ROW_GROUP_ROWS)
            # Here, while the file is not in sight yet: a sweep may have taken the note for a killed merge's.
            check_age(attempt, f"a merge of {len(old)} files of {table}")

        write_part(files, table, model, attempt, rows())
