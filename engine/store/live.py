"""Which images rows are live, and which masks of which attempt they show: one pass over the images parts.

Of two images rows of one (model, uri) the one committed later is live. Of the live rows of one
(model, image_id) the latest names the attempt whose masks are seen. Ties, of
which compactions make most, go to the later attempt.

What comes out, as tables in schema `internal` of a DuckDB connection:
    parts(part, url, model, attempt, n_rows, n_wasted)   n_wasted: rows that a rewrite would mend
    dead(url, row)                           images rows that newer ones took the place of
    winners(image_key, attempt, n_masks, committed_at)  for images with several live rows: what the latest says
    attempts(model, attempt, n_masks, seen)  whose files are read, and how (see `hidden` and `stray`)
    hidden(model, attempt, image_id)         masks in files of 'partly' seen attempts that are not seen
    stray(model, attempt, image_id)          all that is seen in files whose own images part is gone
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .files import StoredFile

if TYPE_CHECKING:
    import duckdb

# 128 bits of MD5 stand for the texts: 10^7 rows then take 0.7 GB, which DuckDB may spill.
IMAGE_KEY = "md5_number(model || chr(0) || image_id)"
_LATEST = "ORDER BY committed_at DESC, attempt DESC, part DESC"


def find_live(
    con: duckdb.DuckDBPyConnection, parts: Sequence[StoredFile], urls: Sequence[str], source: str
) -> None:
    """Fill schema `internal`. `source` is SQL that scans the parts with `url` and `row` beside the schema's columns."""
    con.execute(
        "CREATE SCHEMA internal; CREATE TABLE internal.files (part INTEGER, url VARCHAR, model VARCHAR, attempt VARCHAR)"
    )
    if parts:
        columns = [list(range(len(parts))), list(urls), [f.model for f in parts], [f.attempt for f in parts]]
        con.execute("INSERT INTO internal.files SELECT unnest(?), unnest(?), unnest(?), unnest(?)", columns)
    for statement in _STATEMENTS:
        con.execute(
            statement.format(source=source, image_key=IMAGE_KEY.replace("model", "f.model"), latest=_LATEST)
        )


_STATEMENTS = (
    # alias is NULL where a row names its own part's attempt, as nearly all do.
    """CREATE TABLE internal.rows AS
    SELECT f.part, r.row::INTEGER AS row, md5_number(f.model || chr(0) || r.uri) AS uri_key, {image_key} AS image_key,
        nullif(r.attempt, f.attempt) AS alias, r.n_masks, r.committed_at
    FROM {source} r JOIN internal.files f USING (url)""",
    """CREATE VIEW internal.named AS
    SELECT r.*, f.model, coalesce(alias, f.attempt) AS attempt FROM internal.rows r JOIN internal.files f USING (part)""",
    """CREATE TABLE internal.dead_rows AS
    WITH twice AS (SELECT uri_key FROM internal.rows GROUP BY uri_key HAVING count(*) > 1)
    SELECT part, row FROM internal.named SEMI JOIN twice USING (uri_key)
    QUALIFY row_number() OVER (PARTITION BY uri_key {latest}) > 1""",
    "CREATE VIEW internal.live AS SELECT * FROM internal.named ANTI JOIN internal.dead_rows USING (part, row) WHERE image_key IS NOT NULL",
    """CREATE TABLE internal.winners AS
    WITH twice AS (SELECT image_key FROM internal.live GROUP BY image_key HAVING count(*) > 1)
    SELECT part, row, model, image_key, attempt, n_masks, committed_at FROM internal.live SEMI JOIN twice USING (image_key)
    QUALIFY row_number() OVER (PARTITION BY image_key {latest}) = 1""",
    # One row an image whose masks are seen.
    """CREATE VIEW internal.seen AS
    SELECT part, row, model, image_key, attempt, n_masks FROM internal.live ANTI JOIN internal.winners USING (image_key)
    UNION ALL SELECT * EXCLUDE (committed_at) FROM internal.winners""",
    """CREATE TABLE internal.stray_rows AS
    SELECT part, row, model, attempt FROM internal.seen ANTI JOIN internal.files USING (model, attempt)""",
    # Own images of an attempt of which no live row says any more that they are seen there.
    """CREATE TABLE internal.hidden_rows AS
    WITH lost AS (
        SELECT part, row, model, attempt, image_key FROM internal.named SEMI JOIN internal.dead_rows USING (part, row)
        WHERE alias IS NULL AND image_key IS NOT NULL
        UNION ALL
        SELECT l.part, l.row, l.model, l.attempt, l.image_key FROM internal.live l JOIN internal.winners w USING (image_key)
        WHERE l.alias IS NULL AND l.attempt <> w.attempt)
    SELECT part, row, model, attempt FROM lost
    ANTI JOIN (SELECT * FROM internal.seen SEMI JOIN lost USING (image_key)) USING (image_key, attempt)""",
    """CREATE TABLE internal.attempts AS
    SELECT model, attempt, sum(n_masks) AS n_masks, CASE
        WHEN attempt IN (SELECT attempt FROM internal.stray_rows) THEN 'stray'
        WHEN attempt IN (SELECT attempt FROM internal.hidden_rows) THEN 'partly' ELSE 'whole' END AS seen
    FROM internal.seen GROUP BY model, attempt""",
    """CREATE TABLE internal.parts AS
    WITH wasted AS (FROM internal.dead_rows UNION SELECT part, row FROM internal.hidden_rows)
    SELECT f.*, n_rows, coalesce(n_wasted, 0) AS n_wasted, part IN (SELECT part FROM internal.stray_rows) AS names_stray FROM internal.files f
    LEFT JOIN (SELECT part, count(*) AS n_rows FROM internal.rows GROUP BY part) USING (part)
    LEFT JOIN (SELECT part, count(*) AS n_wasted FROM wasted GROUP BY part) USING (part)""",
    "CREATE TABLE internal.dead AS SELECT url, row FROM internal.dead_rows JOIN internal.files USING (part)",
    "DROP VIEW internal.seen; DROP VIEW internal.live; DROP VIEW internal.named; DROP TABLE internal.rows",
)


def name_images(con: duckdb.DuckDBPyConnection, table: str, scan_parts: str) -> None:
    """Make `hidden` or `stray` of its `_rows` table: the same with image ids, read from the few parts concerned."""
    con.execute(f"""CREATE TABLE internal.{table} AS
        SELECT DISTINCT t.model, t.attempt, r.image_id FROM internal.{table}_rows t
        JOIN internal.files USING (part) JOIN {scan_parts} r USING (url, row)""")
