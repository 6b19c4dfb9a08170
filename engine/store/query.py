"""SQL of a user over a snapshot: read only, and fenced off from every file but the snapshot's own."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from schemas.errors import GapmapError, QueryError, nearest_name
from schemas.tables import TABLES

from .connection import explain_duckdb
from .files import StoreFiles
from .snapshot import Snapshot

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Progress = Callable[[float], None]

_ALLOWED = "Allowed is one SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN of such."
# DuckDB looks the values up for such a one in a table that it makes first.
_WHY_NO_PIVOT = (
    "PIVOT has to say which values become columns: PIVOT … ON column IN ('a', 'b') …. "
    "Or count them apart: count(*) FILTER (column = 'a')."
)
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_FUNCTIONS = {
    "unnest",
    "range",
    "generate_series",
    "json_each",
    "json_tree",
    "duckdb_columns",
    "duckdb_views",
    "duckdb_functions",
}
# Words only, so that no comment or quote can end anywhere but where DuckDB says it does.
_OPTION = r"(?:analyze|format\s+\w+)"
_EXPLAIN = re.compile(rf"\s*explain\b\s*(analyze\b|\(\s*{_OPTION}(?:\s*,\s*{_OPTION})*\s*\))?", re.IGNORECASE)


def check_sql(con: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The statement to run: `sql`, or EXPLAIN and the query after it, which was checked by itself.

    DuckDB's own parser is asked, because a SELECT can hide a COPY or an INSERT in its WITH clause.

    Raises QueryError unless it is one statement that only reads, with no table function that reads files.
    """
    import duckdb

    try:
        statements = con.extract_statements(sql)
        if len(statements) != 1:
            raise QueryError(f"Expected one SQL statement, got {len(statements)}. {_ALLOWED}")
        kind = statements[0].type.name
        if kind == "MULTI":
            raise QueryError(_WHY_NO_PIVOT)
        inner, explain = sql, ""
        if kind == "EXPLAIN":
            found = _EXPLAIN.match(sql)
            inner = sql[found.end() :] if found else ""
            if not found or [s.type.name for s in con.extract_statements(inner)] != ["SELECT"]:
                raise QueryError(
                    "EXPLAIN, EXPLAIN ANALYZE or EXPLAIN (FORMAT json) must be the first words, without a"
                    f" comment, and a query must follow. {_ALLOWED}"
                )
            explain = f"EXPLAIN {found[1] or ''} "
        elif kind != "SELECT":
            raise QueryError(f"{kind} statements are not allowed: the store is only read here. {_ALLOWED}")
        tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [inner]).fetchall()[0][0])
    except duckdb.Error as error:
        raise QueryError(str(error)) from None
    if tree.get("error"):
        raise QueryError(f"{tree.get('error_message')} {_ALLOWED}")
    for node in _nodes(tree):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _READING_NODES:
            raise QueryError(
                f"{kind.partition('_')[0]} is not allowed: the store is only read here. {_ALLOWED}"
            )
        if (
            kind == "TABLE_FUNCTION"
            and node["function"].get("function_name", "").lower() not in _TABLE_FUNCTIONS
        ):
            raise QueryError(
                f"The table function {node['function'].get('function_name')!r} is not allowed here. Ask the tables"
                f" {', '.join(TABLES)}; to read other files as well, use Store.connect() from Python."
            )
    return explain + inner


def fence(snapshot: Snapshot) -> None:
    """Lock the snapshot's connection, for good: no file but its own, no extension, no setting, no change to a table.

    DuckDB cannot be kept from a COPY to a file that it may read: `check_sql` does that.
    """
    con = snapshot.con
    con.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
    con.execute("SET python_enable_replacements = false")
    con.execute("SET allowed_paths = ?", [snapshot.paths])
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    con.execute("BEGIN TRANSACTION READ ONLY")


@contextmanager
def run_sql(
    files: StoreFiles,
    snapshot: Snapshot,
    sql: str,
    progress: Progress | None = None,
    made: Sequence[str] = (),
) -> Iterator[pa.RecordBatchReader]:
    """Result of a query over a fenced snapshot, in batches. Raises QueryError for what the user can mend.

    Args:
        made: columns that the statement has beside those of its tables, for who is told of a wrong one.
    """
    import duckdb
    import pyarrow as pa

    checked = check_sql(snapshot.con, sql)
    try:
        with _watched(snapshot.con, progress):
            yield snapshot.con.sql(checked).to_arrow_reader(10_240)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # Batches that fail on the way come as Arrow's errors.
        raise _explain(files, snapshot, error, checked, made) from None


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _explain(
    files: StoreFiles, snapshot: Snapshot, error: Exception, sql: str, made: Sequence[str]
) -> GapmapError:
    """What to tell for an error of DuckDB: of the store's files, or a QueryError that names what there is."""
    import duckdb

    of_files = explain_duckdb(files, error, snapshot.paths)
    if of_files is not None:
        return of_files
    text = files.redact(str(error))
    if isinstance(error, duckdb.PermissionException):
        return QueryError(f"The query reaches for something outside the store {files.label}: {text}")
    if isinstance(error, duckdb.OutOfMemoryException):
        return QueryError(
            f"The query needs more memory than it may use; raise the memory limit or ask for less. {text}"
        )
    table = re.search(r"Table with name (\S+) does not exist", text)
    if table:
        return QueryError(f"There is no table {table[1]!r} in the store. {nearest_name(table[1], TABLES)}")
    column = re.search(r'Referenced column "([^"]+)" (?:not found|was not found)', text)
    if column:
        return QueryError(f"{_explain_column(column[1], sql, made)}\n{text}")
    return QueryError(text)


def _explain_column(column: str, sql: str, made: Sequence[str]) -> str:
    """What there is instead of a column: in the tables of the statement, and the same name in others."""
    import duckdb

    explain = _EXPLAIN.match(sql)
    [(tree,)] = (
        duckdb.connect()
        .execute("SELECT json_serialize_sql(?)", [sql[explain.end() :] if explain else sql])
        .fetchall()
    )
    asked = {str(node.get("table_name", "")).lower() for node in _nodes(json.loads(tree))}
    tables = [name for name in TABLES if name in asked]
    known = {*made, *(name for table in tables for name in TABLES[table].names)}
    words = f"There is no column {column!r}{' in ' + ', '.join(tables) if tables else ''}."
    if column in known:
        return f"There is a column {column!r}, but not where it is asked for."
    if elsewhere := [table for table, schema in TABLES.items() if column in schema.names]:
        return f"{words} {', '.join(elsewhere)} {'have' if len(elsewhere) > 1 else 'has'} one."
    return f"{words} {nearest_name(column, known)}" if known else words


@contextmanager
def _watched(con: duckdb.DuckDBPyConnection, progress: Progress | None) -> Iterator[None]:
    """Call `progress` with the share done, 0..1, while the connection works."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(0.2):
            percent = con.query_progress()
            if percent >= 0:
                progress(percent / 100)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
