"""SQL of a user over a snapshot: read only, and fenced off from every file but the snapshot's own."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from schemas.errors import ConfigError, GapmapError, QueryError, nearest_name
from schemas.tables import TABLES

from .connection import explain_duckdb
from .files import StoreFiles, locate_file
from .snapshot import Snapshot

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Progress = Callable[[float], None]
FORMATS = ("table", "csv", "json", "parquet")
_OF_FILES = FORMATS[1:]  # a table is drawn for a screen, and cut to its width

_ALLOWED = "Allowed is one SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN of such."
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
    files: StoreFiles, snapshot: Snapshot, sql: str, progress: Progress | None = None
) -> Iterator[pa.RecordBatchReader]:
    """Result of a query over a fenced snapshot, in batches. Raises QueryError for what the user can mend."""
    import duckdb
    import pyarrow as pa

    checked = check_sql(snapshot.con, sql)
    try:
        with _watched(snapshot.con, progress):
            yield snapshot.con.sql(checked).to_arrow_reader(10_240)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # Batches that fail on the way come as Arrow's errors.
        raise _explain(files, snapshot, error) from None


def write_result(
    result: pa.Table | pa.RecordBatchReader,
    format: str,
    out: TextIO | str,
    storage_options: dict[str, Any] | None = None,
) -> None:
    """Write a query's result as `table`, `csv`, `json` (an array, one object a line) or `parquet`.

    Args:
        out: an open text stream, or the path or fsspec URL of a file, which appears only when complete.

    Raises ConfigError for an unknown format, for Parquet into a text stream, or for a table, which is cut to a screen, into a file.
    """
    import duckdb

    if format not in FORMATS:
        raise ConfigError(f"No output format {format!r}. {nearest_name(format, FORMATS)}")
    if format == "parquet" and not isinstance(out, str):
        raise ConfigError("Parquet is binary: name a file with --out.")
    if format == "table" and isinstance(out, str):
        raise ConfigError(f"A table is drawn for a screen; a file can be {', '.join(_OF_FILES)}.")
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.register("result", result)

    def write(path: Path) -> None:
        if format == "table":
            path.write_text(_drawn(con), encoding="utf-8")
        else:
            options = {
                "csv": "FORMAT csv, HEADER",
                "json": "FORMAT json, ARRAY true",
                "parquet": "FORMAT parquet, COMPRESSION zstd",
            }
            con.execute(
                f"COPY (FROM result) TO '{str(path).replace(chr(39), chr(39) * 2)}' ({options[format]})"
            )

    if isinstance(out, str):
        folder, path = locate_file(out, storage_options)
        folder.publish(path, write)
        return
    with tempfile.TemporaryDirectory(prefix="gapmap-") as temporary:
        write(Path(temporary) / "result")
        with (Path(temporary) / "result").open(encoding="utf-8") as text:
            shutil.copyfileobj(text, out)


def format_of(out: str) -> str:
    """The format that the ending of a file's name says.

    Raises ConfigError for any other ending.
    """
    ending = out.rpartition("/")[2].rpartition(".")[2].lower()
    if ending not in _OF_FILES:
        raise ConfigError(
            f"{out} does not end in .{', .'.join(_OF_FILES)}: end it so, or say --format as well."
        )
    return ending


def _drawn(con: duckdb.DuckDBPyConnection) -> str:
    """The result as a box of text; long texts and long results are cut, and say so."""
    import io
    from contextlib import redirect_stdout

    drawn = io.StringIO()
    with redirect_stdout(drawn):
        con.sql("SELECT * FROM result").show(max_width=200, max_rows=200, max_col_width=48)
    return drawn.getvalue()


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _explain(files: StoreFiles, snapshot: Snapshot, error: Exception) -> GapmapError:
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
        known = {name for schema in TABLES.values() for name in schema.names}
        return QueryError(f"There is no column {column[1]!r}. {nearest_name(column[1], known)}\n{text}")
    return QueryError(text)


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
