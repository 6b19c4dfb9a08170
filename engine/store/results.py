"""Results of queries as people take them away: files of several formats, and tables drawn for a screen."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from schemas.errors import ConfigError, nearest_name

from .whole_file import locate_file

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "parquet")
_OF_FILES = FORMATS[1:]  # a table is drawn for a screen, and cut to its width
# As DuckDB writes them, wherever in a value; a text is matched whole, for it may speak of them.
_NOT_FINITE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?(?:NaN|Infinity)')


def write_result(
    result: pa.Table | pa.RecordBatchReader,
    format: str,
    out: TextIO | str,
    storage_options: dict[str, Any] | None = None,
) -> None:
    """Write a query's result as `table`, `csv`, `json` (an array, one object a line; null for NaN and infinity) or `parquet`.

    Args:
        out: an open text stream, or the path or fsspec URL of a file, which appears only when complete; its folder has to be there.

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
        elif format == "json":
            with path.open("w", encoding="utf-8") as file:
                file.writelines(_json_lines(con, result.schema.names))
        else:
            options = {
                "csv": "FORMAT csv, HEADER",
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


def _json_lines(con: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Iterator[str]:
    """The result as an array; what JSON has no number for is null."""
    row = f"row {max(columns, key=len)}".replace('"', '""')  # longer than any: no column is called so
    start = "[\n\t"
    for batch in con.sql(f'SELECT to_json("{row}") FROM result AS "{row}"').to_arrow_reader(2048):
        for line in batch.column(0).to_pylist():
            if "NaN" in line or "Infinity" in line:
                line = _NOT_FINITE.sub(lambda found: found[0] if found[0][0] == '"' else "null", line)
            yield start + line
            start = ",\n\t"
    yield "[\n]\n" if start[0] == "[" else "\n]\n"


def _drawn(con: duckdb.DuckDBPyConnection) -> str:
    """The result as a box of text; long texts and long results are cut, and say so."""
    import io
    from contextlib import redirect_stdout

    drawn = io.StringIO()
    with redirect_stdout(drawn):
        con.sql("SELECT * FROM result").show(max_width=200, max_rows=200, max_col_width=48)
    return drawn.getvalue()
