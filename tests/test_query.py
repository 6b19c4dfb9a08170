"""Asking the store in SQL: what works, what is fenced off, how results are written."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any, get_type_hints
from uuid import uuid4

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from store_rows import MODEL, commit, fetch

from engine.store import Snapshot, Store, write_result
from engine.store.connection import LostFileError
from engine.store.query import fence, run_sql
from flows.cli import main
from flows.store_commands import query
from schemas.errors import ConfigError, QueryError
from schemas.tables import TABLES

pytest_plugins = ("store_fixtures",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in it, and a file beside the store that is none of its business."""
    folder = tmp_path_factory.mktemp("query")
    (folder / "secret.csv").write_text("word\nswordfish\n")
    return folder


@pytest.fixture(scope="module")
def filled(folder: Path) -> Store:
    store = Store(str(folder / "store"))
    commit(store, ["a", "b"])
    commit(store, ["b"], "second")
    return store


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT mask_id, uncertainty FROM masks ORDER BY uncertainty DESC LIMIT 2",
        "FROM masks LIMIT 2",
        "WITH m AS (SELECT * FROM masks) SELECT max(uncertainty) FROM m UNION SELECT 1",
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3) SELECT * FROM r",
        "VALUES (1, 2)",
        "DESCRIBE masks",
        "DESCRIBE SELECT uri FROM images",
        "SUMMARIZE SELECT area FROM masks",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM masks",
        "EXPLAIN ANALYZE SELECT count(*) FROM masks;",
        "EXPLAIN (FORMAT json) SELECT 1",
        "explain(analyze, format json)FROM masks",
        "EXPLAIN (SELECT 1) UNION SELECT 2",
        "SELECT i.uri, list(m.area) FROM images i JOIN masks m USING (image_id, model) GROUP BY ALL",
        "SELECT * FROM range(3), unnest([1, 2])",
        "FROM (PIVOT masks ON output_index IN (0, 1) USING count(*))",
        "-- a comment first\nSELECT 1 -- and last",
    ],
)
def test_reading_statements_work(filled: Store, sql: str) -> None:
    assert len(filled.query(sql)) > 0


def test_only_the_tables_are_shown(filled: Store) -> None:
    assert [name for (name,) in fetch(filled, "SHOW TABLES")] == sorted(TABLES)


ESCAPES = [
    "SELECT * FROM '{secret}'",
    "SELECT * FROM 'file://{secret}'",
    "SELECT * FROM '{root}/../secret.csv'",
    "SELECT * FROM '{root}/masks/../../secret.csv'",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM main.READ_CSV('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_parquet('{root}/masks/*/*.parquet')",
    "SELECT * FROM parquet_metadata('{root}/masks/*/*.parquet')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM glob('{parent}/*')",
    "SELECT (SELECT max(word) FROM read_csv('{secret}'))",
    "WITH x AS (SELECT * FROM read_csv('{secret}')) SELECT 1 FROM masks",
    "SELECT * FROM masks WHERE mask_id IN (SELECT word FROM read_csv('{secret}'))",
    "SELECT * FROM masks ORDER BY (SELECT count(*) FROM read_csv('{secret}'))",
    "DESCRIBE SELECT * FROM read_csv('{secret}')",
    "SUMMARIZE SELECT * FROM read_csv('{secret}')",
    "DESCRIBE '{secret}'",
    "EXPLAIN ANALYZE SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM query('SELECT * FROM read_csv(''{secret}'')')",
    "SELECT * FROM query_table('{secret}')",
    "SELECT getenv('HOME')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{parent}/log')",
    "SELECT * FROM enable_profiling(save_location := '{parent}/profile.json')",
    "SELECT * FROM 's3://bucket/key.parquet'",
    "SELECT * FROM 'https://example.org/x.parquet'",
    "SELECT * FROM local_variable",
]
CHANGES = [
    "COPY masks TO '{parent}/out.csv'",
    "COPY (SELECT 1) TO '{file}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "WITH x AS (COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)) SELECT * FROM x",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)) SELECT * FROM x",
    "/* explain ( */ EXPLAIN ANALYZE COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false) -- */ SELECT 1",
    "-- explain (\nEXPLAIN ANALYZE COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false) -- ) SELECT 1",
    "EXPLAIN (ANALYZE /* ) SELECT 1 -- */) COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE -- ) SELECT 1 --\n) COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN (FORMAT ') SELECT 1 --', ANALYZE) COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE /* explain */ COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN /* explain */ ANALYZE COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE) COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false) -- explain SELECT 1",
    "/* explain ( */ EXPLAIN ANALYZE INSERT INTO internal.dead VALUES ('', 1) -- */ SELECT 1",
    "EXPLAIN ANALYZE DELETE FROM internal.dead",
    "EXPLAIN ANALYZE SELECT 1; COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE PREPARE p AS COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)) SELECT * FROM x)",
    "WITH x AS (INSERT INTO internal.dead VALUES ('', 1) RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM internal.dead RETURNING *) SELECT * FROM x",
    "INSERT INTO masks VALUES (1)",
    "DELETE FROM internal.dead",
    "DROP VIEW masks",
    "CREATE TABLE t AS SELECT 1",
    "ATTACH '{parent}/x.duckdb'",
    "INSTALL httpfs",
    "LOAD '{parent}/x'",
    "SET threads = 1",
    "SET enable_external_access = true",
    "RESET memory_limit",
    "PRAGMA enable_profiling",
    "CALL enable_logging()",
    "EXPORT DATABASE '{parent}/out'",
    "IMPORT DATABASE '{parent}/out'",
    "PREPARE p AS SELECT 1",
    "CHECKPOINT",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY masks TO '{parent}/out.csv'",
    "PIVOT masks ON output_index",
    "",
]


@pytest.mark.parametrize("sql", ESCAPES + CHANGES)
def test_what_is_not_reading_the_store_is_refused(filled: Store, folder: Path, sql: str) -> None:
    local_variable = pa.table({"word": ["swordfish"]})
    assert len(local_variable) == 1
    file = sorted((folder / "store" / "masks").rglob("*.parquet"))[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sql = sql.format(secret=folder / "secret.csv", root=folder / "store", parent=folder, file=file)
    with pytest.raises(QueryError) as caught:
        filled.query(sql)
    assert "swordfish" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sql", ["PIVOT masks ON output_index", "EXPLAIN FROM (PIVOT masks ON output_index)"])
def test_a_pivot_without_its_values_is_told_how_to_name_them(filled: Store, sql: str) -> None:
    with pytest.raises(
        QueryError, match=r"^PIVOT has to say which .* IN \('a', 'b'\) .*count\(\*\) FILTER \("
    ):
        filled.query(sql)
    counted = filled.query("PIVOT masks ON output_index IN (0, 1) USING count(*) GROUP BY model")
    apart = filled.query("SELECT model, count(*) FILTER (output_index = 0) AS a FROM masks GROUP BY model")
    assert counted["0"].to_pylist() == apart["a"].to_pylist()


def test_the_engine_itself_holds_the_fence_when_the_parser_is_passed_by(filled: Store, folder: Path) -> None:
    import duckdb

    with filled.open_snapshot() as snapshot:
        fence(snapshot)
        for sql in ESCAPES[:12]:
            if "arrow" in sql or "{root}/masks/*" in sql:
                continue
            with pytest.raises(duckdb.Error), snapshot.con.cursor() as con:
                con.execute(
                    sql.format(secret=folder / "secret.csv", root=folder / "store", parent=folder)
                ).fetchall()
        with pytest.raises(duckdb.Error, match="locked"), snapshot.con.cursor() as con:
            con.execute("SET allowed_paths = ['/']")
        with pytest.raises(duckdb.Error, match="read-only"):
            snapshot.con.execute("INSERT INTO internal.dead VALUES ('', 1)")


def test_a_bucket_is_fenced_too(s3_root: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    import fsspec

    url, options = s3_root
    store = Store(url, options)
    commit(store, ["a"])
    bucket = url.split("/")[2]
    fsspec.filesystem("s3", **options).pipe_file(f"{bucket}/other/x.csv", b"word\nswordfish\n")
    (tmp_path / "x.csv").write_text("word\nswordfish\n")
    for address in (
        f"s3://{bucket}/other/x.csv",
        f"s3a://{bucket}/other/x.csv",
        f"{url}/../../other/x.csv",
        tmp_path / "x.csv",
    ):
        with pytest.raises(QueryError):
            store.query(f"SELECT * FROM '{address}'")
    assert "key-of-the-bucket" not in str(
        fetch(
            store,
            "SELECT name, value FROM (SELECT unnest([current_setting('allowed_paths')]) AS value, 1 AS name)",
        )
    )


def test_a_wrong_table_or_column_names_the_nearest(filled: Store) -> None:
    with pytest.raises(
        QueryError,
        match=r"no table 'mask' in the store\. Did you mean 'masks'\? Known: decisions, embeddings, images, labels, maps, masks, models, promotions, reviews, rounds, tokens",
    ):
        filled.query("SELECT * FROM mask")
    with pytest.raises(
        QueryError, match=r"no column 'uncertanty' in masks\. Did you mean 'uncertainty'\? Known: area, "
    ) as caught:
        filled.query("EXPLAIN SELECT uncertanty FROM masks")
    assert "verdict" not in str(caught.value), "that is of another table"
    with pytest.raises(QueryError, match=r"no column 'verdict' in images, masks\. labels has one\."):
        filled.query("SELECT verdict FROM images JOIN masks USING (image_id)")
    with pytest.raises(QueryError, match="syntax error"):
        filled.query("SELEC 1")
    with pytest.raises(QueryError, match="Could not convert"):
        filled.query("SELECT uri::INT FROM images")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'Timeout'::INT",
        "SELECT 'No such file'::INT",
        "SELECT Credential FROM images",
        "SELECT error('NoSuchKey')",
        "SELECT * FROM FileNotFoundError",
        "SELECT * FROM 'Timeout.csv'",
        "SELECT 1 ORDER BY 'IO Error: No files found'::DATE",
        # Past the first batches, where Arrow hands the error on.
        "SELECT CASE WHEN i < 300000 THEN i ELSE ('Timeout, No such file' || i)::INT END FROM range(300001) t(i)",
    ],
)
def test_words_in_the_sql_do_not_turn_a_mistake_into_a_failure_of_the_store(
    filled: Store, tmp_path: Path, sql: str
) -> None:
    with pytest.raises(QueryError):
        filled.query(sql)
    with pytest.raises(QueryError):
        filled.write_query(sql, "csv", str(tmp_path / "out.csv"))


def test_a_file_lost_while_its_rows_are_fetched_is_told_as_such(s3_root: tuple[str, dict[str, Any]]) -> None:
    store = Store(*s3_root, threads=1)
    for uri in range(8):
        commit(store, [str(uri)])

    def lose_files(snapshot: Snapshot) -> None:
        fence(snapshot)
        with run_sql(store.files, snapshot, "SELECT mask_id, unnest(range(50000)) FROM masks") as rows:
            rows.read_next_batch()
            store.files.remove([f.path for f in store.files.list_table("masks")])
            rows.read_all()

    with store.open_snapshot() as snapshot, pytest.raises(LostFileError, match="went while it was read"):
        lose_files(snapshot)


def test_a_query_within_its_memory_limit_says_so_or_works(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), memory_limit="60MB", threads=1)
    commit(store, ["a"])
    with pytest.raises(QueryError, match="more memory than it may use"):
        store.query("SELECT list(i || 'a long text to fill the memory') FROM range(10000000) t(i)")
    with pytest.raises(ConfigError, match="no memory limit"):
        Store(str(tmp_path / "store"), memory_limit="a lot").query("SELECT 1")


def test_a_long_query_tells_its_progress(filled: Store) -> None:
    seen: list[float] = []
    filled.query("SELECT count(DISTINCT hash(i)) FROM range(15000000) t(i)", progress=seen.append)
    assert seen
    assert all(0 <= share <= 1 for share in seen)
    assert seen == sorted(seen)


def test_python_users_get_a_connection_of_their_own(filled: Store, folder: Path) -> None:
    con = filled.connect()
    assert con.sql(f"SELECT count(*), (SELECT word FROM '{folder}/secret.csv') FROM masks").fetchall() == [
        (6, "swordfish")
    ]
    con.close()


def test_results_as_csv_json_and_table(filled: Store) -> None:
    sql = "SELECT uri, [n_masks] AS n, error FROM images ORDER BY uri"
    out = {}
    for format in ("csv", "json", "table"):
        stream = io.StringIO()
        filled.write_query(sql, format, stream)
        out[format] = stream.getvalue()
    assert out["csv"].splitlines() == ["uri,n,error", "a,[3],", "b,[3],"]
    assert json.loads(out["json"]) == [
        {"uri": "a", "n": [3], "error": None},
        {"uri": "b", "n": [3], "error": None},
    ]
    assert "uri" in out["table"]
    assert out["table"].count("[3]") == 2


@pytest.mark.parametrize("to_file", [False, True])
def test_a_result_with_numbers_that_are_not_finite_is_json_that_any_reader_takes(
    filled: Store, tmp_path: Path, to_file: bool
) -> None:
    sql = """
        SELECT 'nan'::DOUBLE AS "row", '-inf'::FLOAT AS b, [1, 'inf'::DOUBLE] AS c, {'NaN': 'nan'::DOUBLE, 'x': 'a "NaN, \\'} AS d,
               'Infinity' AS "e""f", n_masks FROM images ORDER BY uri
    """
    out, stream = tmp_path / "result.json", io.StringIO()
    filled.write_query(sql, "json", str(out) if to_file else stream)
    text = out.read_text() if to_file else stream.getvalue()
    row = {"row": None, "b": None, "c": [1, None], "d": {"NaN": None, "x": 'a "NaN, \\'}}
    assert json.loads(text, parse_constant=pytest.fail) == [{**row, 'e"f': "Infinity", "n_masks": 3}] * 2
    assert len(text.splitlines()) == 4, "one object a line"
    none = io.StringIO()
    filled.write_query("FROM images WHERE false", "json", none)
    assert json.loads(none.getvalue()) == []


def test_results_as_files(filled: Store, tmp_path: Path, s3_root: tuple[str, dict[str, Any]]) -> None:
    import fsspec

    out = tmp_path / "it's here" / "result.parquet"
    out.parent.mkdir()
    filled.write_query("SELECT * FROM masks", "parquet", str(out))
    assert pq.read_table(out).num_rows == 6
    assert [path.name for path in out.parent.iterdir()] == ["result.parquet"]
    url, options = s3_root
    write_result(filled.query("SELECT DISTINCT model FROM masks"), "csv", f"{url}/result.csv", options)
    assert fsspec.filesystem("s3", **options).cat_file(f"{url}/result.csv").decode() == f"model\n{MODEL}\n"


@pytest.mark.parametrize(
    "name", ["we\\ird.csv", "plain.csv", "a folder/x.csv", "[1] *?.csv", "memory://x.csv"]
)
def test_a_result_goes_exactly_where_it_was_sent(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import fsspec

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    filled.write_query("SELECT 1 AS one", "csv", name)
    fs, path = fsspec.core.url_to_fs(name)
    assert fs.cat_file(path) == b"one\n1\n"
    inside = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert inside == ([] if "://" in name else [name])


@pytest.mark.skipif(not os.access("/", os.W_OK), reason="the root folder cannot be written")
@pytest.mark.parametrize("prefix", ["/", "file:///"])
def test_a_result_can_be_sent_to_the_root_folder(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path(f"/gapmap-test-{uuid4().hex}.csv")
    try:
        filled.write_query("SELECT 1 AS one", "csv", prefix + out.name)
        assert out.read_text() == "one\n1\n"
    finally:
        out.unlink(missing_ok=True)
    assert not list(tmp_path.iterdir())


def test_a_failed_query_leaves_no_file(filled: Store, tmp_path: Path) -> None:
    with pytest.raises(QueryError):
        filled.write_query("SELECT CAST(uri AS INT) FROM images", "csv", str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_a_wrong_format_is_told(filled: Store) -> None:
    with pytest.raises(ConfigError, match=r"No output format 'jsn'\. Did you mean 'json'\?"):
        filled.write_query("SELECT 1", "jsn", io.StringIO())
    with pytest.raises(ConfigError, match="name a file"):
        filled.write_query("SELECT 1", "parquet", io.StringIO())


@pytest.mark.parametrize("name", ["x.csv", "x.JSON", "x.parquet"])
def test_a_file_is_of_the_kind_that_its_name_says_with_every_column(
    filled: Store, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    with pytest.raises(SystemExit) as ended:
        main(["query", "FROM masks", "--store", filled.files.root, "--out", str(out)])
    assert not ended.value.code
    read = {"csv": pacsv.read_csv, "json": _read_json, "parquet": pq.read_table}[out.suffix[1:].lower()]
    found = read(out)
    assert (found.column_names, found.num_rows) == (TABLES["masks"].names, 6)


def _read_json(path: Path) -> pa.Table:
    return pa.Table.from_pylist(json.loads(path.read_text()))


@pytest.mark.parametrize(
    "options", [["--out", "x.txt"], ["--out", "x"], ["--out", "x.csv", "--format", "table"]]
)
def test_a_file_of_another_kind_is_refused_with_those_that_are_possible(
    filled: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main(["query", "FROM masks", "--store", filled.files.root, *options])
    assert re.search(r"csv, \.?json, \.?parquet", capsys.readouterr().err)
    assert not list(tmp_path.glob("x*"))


def test_the_help_names_every_view_that_can_be_asked() -> None:
    argument = get_type_hints(query, include_extras=True)["sql"].__metadata__[0]
    assert not [name for name in TABLES if not re.search(rf"\b{name}\b", argument.help)]
