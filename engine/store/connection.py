"""DuckDB over a store's files: connections, scans in SQL, and what its errors mean."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from schemas.errors import ConfigError, GapmapError, TransientError
from schemas.tables import TABLES

from .files import StoreFiles

if TYPE_CHECKING:
    import duckdb

# How the text of an error begins that is about files. Any other may quote the user's SQL. Errors of a Python
# filesystem are tracebacks; those of batches that are fetched later are wrapped by Arrow, and again where
# another connection writes them.
_OF_FILES = re.compile(
    r"(?:Invalid Input Error: [^\n]{0,100}?: IOError: )?(?:(?:IO|HTTP) Error: |(?:Invalid Error: )?Traceback )"
)
_DAMAGED = re.compile(
    r"Invalid Input Error: (?:No magic bytes found|File '[^\n]*' too small to be a Parquet)"
)
_LOST = ("No files found", "FileNotFoundError", "No such file", "NoSuchKey", "does not exist in")
_PASSING = (
    "ConnectionError",
    "ConnectError",
    "Timeout",
    "ConnectionReset",
    "ConnectionRefused",
    "SlowDown",
    "ServiceUnavailable",
)
_REFUSED = ("PermissionError", "Permission denied", "Credential")


class DamagedStoreError(GapmapError):
    """Files and images rows do not agree, or a file is no Parquet: nothing that gapmap does can bring it about."""


class LostFileError(TransientError):
    """A file went while it was read: a sweep came between. A fresh snapshot does without it."""


def open_connection(
    files: StoreFiles, *, memory_limit: str | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection that can read the store's filesystem, and spills to the temporary folder."""
    import duckdb

    con = duckdb.connect()
    con.execute("SET temp_directory = ?", [f"{tempfile.gettempdir()}/gapmap-duckdb-{uuid4().hex}"])
    con.execute("SET TimeZone = 'UTC'")
    if memory_limit is not None:
        try:
            con.execute("SET memory_limit = ?", [memory_limit])
        except duckdb.Error as error:
            raise ConfigError(
                f"{memory_limit!r} is no memory limit; write for instance '2GB'. {error}"
            ) from None
    if threads is not None:
        con.execute("SET threads = ?", [threads])
    if not files.is_local:
        con.register_filesystem(files.fs)
    return con


def scan_files(con: duckdb.DuckDBPyConnection, table: str, urls: Sequence[str], extra: str = "") -> str:
    """SQL that reads Parquet files with the columns of a table's schema; NULL where a file has none."""
    kinds = [str(kind) for kind in con.from_arrow(TABLES[table].empty_table()).types]
    columns = list(zip(TABLES[table].names, kinds, strict=True))
    if not urls:
        return "(SELECT " + ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns) + " WHERE false)"
    listed = ", ".join(quote_sql(url) for url in urls)
    mapped = ", ".join(
        f"{quote_sql(name)}: {{name: {quote_sql(name)}, type: {quote_sql(kind)}, default_value: NULL}}"
        for name, kind in columns
    )
    return f"read_parquet([{listed}], schema = MAP {{{mapped}}}{extra})"


def quote_sql(value: str) -> str:
    """A SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


@contextmanager
def explained(files: StoreFiles, paths: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors of DuckDB about the store's files into gapmap's; `paths` are those that may be read."""
    import duckdb

    try:
        yield
    except (duckdb.Error, OSError) as error:
        raise explain_duckdb(files, error, paths) or error from None


def explain_duckdb(files: StoreFiles, error: Exception, paths: Sequence[str]) -> GapmapError | None:
    """The error that says what a failed read through DuckDB means; None when it is about something else."""
    text = files.redact(str(error))
    of_files = _OF_FILES.match(text) is not None
    # A file that is gone on a registered filesystem makes DuckDB try a folder of that name, which a fence forbids.
    if (of_files and any(sign in text for sign in _LOST)) or any(f'"{path}/' in text for path in paths):
        return LostFileError(f"A file of the store {files.label} went while it was read; try again. {text}")
    if of_files and any(sign in text for sign in _PASSING):
        return TransientError(f"The store {files.label} did not answer as it should; try again. {text}")
    if of_files and any(sign in text for sign in _REFUSED):
        return ConfigError(
            f"The store {files.label} refused access. Check the credentials and its permissions. {text}"
        )
    if _DAMAGED.match(text):
        return DamagedStoreError(
            f"The store {files.label} holds a file that is damaged: restore it, or delete it and label its images again. {text}"
        )
    return None
