"""Committing shards, and seeing exactly what was committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_rows import MODEL, SETTINGS, commit, content_id, fetch, image_row, tables_of

from engine.store import DamagedStoreError, Store
from engine.store.layout import new_attempt
from schemas.errors import ConfigError, GapmapError, TransientError
from schemas.records import PoolItem
from schemas.tables import TABLES

pytest_plugins = ("store_fixtures",)
SECRET = "another-secret-of-a-bucket"


def test_an_empty_store_has_every_table_with_its_columns(store: Store) -> None:
    for name, schema in TABLES.items():
        result = store.query(f"SELECT * FROM {name}")
        assert result.schema.names == schema.names
        assert len(result) == 0


def test_a_shard_is_seen_after_its_commit(store: Store) -> None:
    before = datetime.now(UTC)
    attempt = commit(store, ["a", "b"])
    assert fetch(store, "SELECT uri, model, n_masks, attempt FROM images ORDER BY uri") == [
        ("a", MODEL, 3, attempt),
        ("b", MODEL, 3, attempt),
    ]
    assert fetch(store, "SELECT count(*), count(DISTINCT mask_id), min(attempt), min(model) FROM masks") == [
        (6, 6, attempt, MODEL)
    ]
    (when,) = fetch(store, "SELECT committed_at FROM images LIMIT 1")[0]
    assert before <= when <= datetime.now(UTC)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is written through is not told")
def test_what_is_committed_is_there_after_a_power_cut_that_keeps_only_what_was_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names too: on some filesystems a rename may reach the disk after a later one of another folder, or not at all."""
    root, kept, sync = tmp_path / "new" / "store", set[Path](), os.fsync

    def is_kept(path: Path) -> bool:
        return path == tmp_path or (path in kept and is_kept(path.parent))

    def write_through(handle: int) -> None:
        sync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_dir():
            kept.update(path.iterdir())
        assert all(is_kept(of) for of in root.glob("masks/*/*.parquet")) or not any(
            is_kept(of) for of in root.glob("images/*/*.parquet")
        ), "what names masks does not outlive them"

    monkeypatch.setattr(os, "fsync", write_through)
    for content in "ab":
        commit(Store(str(root)), [content])
        written = list(root.glob("*/*/*.parquet"))
        assert written
        assert all(map(is_kept, written))


def test_the_same_images_again_are_seen_once_and_the_newer_masks_win(store: Store) -> None:
    commit(store, ["a", "b", "c"])
    commit(store, ["b", "c"], "second")
    assert fetch(store, "SELECT count(*) FROM images") == [(3,)]
    assert fetch(store, "SELECT uncertainty_source, count(*) FROM masks GROUP BY ALL ORDER BY ALL") == [
        ("first", 3),
        ("second", 6),
    ]


def test_a_newer_result_without_masks_hides_the_older_masks(local_store: Store) -> None:
    commit(local_store, ["a", "b"])
    commit(local_store, ["a"], n_masks=0)
    assert fetch(local_store, "SELECT DISTINCT i.uri FROM masks m JOIN images i USING (image_id)") == [("b",)]


def test_a_changed_file_shows_its_new_content_only(local_store: Store) -> None:
    commit(local_store, ["a", "b"])
    commit(local_store, ["a"], content="a changed")
    assert fetch(local_store, "SELECT count(DISTINCT image_id), count(*) FROM masks") == [(2, 6)]
    assert fetch(local_store, f"SELECT count(*) FROM masks WHERE image_id = '{content_id('a')}'") == [(0,)]


def test_two_models_are_seen_side_by_side(store: Store) -> None:
    commit(store, ["a"])
    commit(store, ["a"], "second", model="mini@ba9876543210")
    assert fetch(store, "SELECT model, count(*) FROM masks GROUP BY ALL ORDER BY ALL") == [
        ("mini@ba9876543210", 3),
        (MODEL, 3),
    ]


def test_copies_of_an_image_share_one_set_of_masks(store: Store) -> None:
    attempt = commit(store, ["a", "b"])
    known = store.find_done(MODEL, SETTINGS).find_content([content_id("a"), content_id("nowhere")])
    assert known == {
        content_id("a"): {"width": 64, "height": 48, "mode": "RGB", "n_masks": 3, "attempt": attempt}
    }
    images, tables = tables_of([image_row("copy of a", content="a", attempt=attempt), image_row("c")])
    store.commit_shard(MODEL, images, tables)
    assert fetch(store, "SELECT count(*) FROM images") == [(4,)]
    assert fetch(store, "SELECT count(*), count(DISTINCT mask_id) FROM masks") == [(9, 9)]


def test_copies_inside_one_shard_share_masks(local_store: Store) -> None:
    images, tables = tables_of([image_row("a"), image_row("copy of a", content="a")])
    local_store.commit_shard(MODEL, images, tables)
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(3,)]


def test_a_copy_outlives_the_original(local_store: Store) -> None:
    attempt = commit(local_store, ["a", "b"])
    images, tables = tables_of([image_row("copy of a", content="a", attempt=attempt)])
    local_store.commit_shard(MODEL, images, tables)
    commit(local_store, ["a"], content="a changed")
    assert fetch(local_store, f"SELECT count(*) FROM masks WHERE image_id = '{content_id('a')}'") == [(3,)]
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(9,)]


def test_a_resumed_run_skips_what_is_committed(store: Store) -> None:
    commit(store, ["a", "b"])
    failed = image_row("broken", n_masks=0, image_id=None, error_kind="truncated", error="ends early")
    store.commit_shard(MODEL, *tables_of([failed]))
    pool = [PoolItem(uri, f"f-{uri}") for uri in ("a", "b", "c")] + [
        PoolItem("a2", "f-a"),
        PoolItem("broken", "f-broken"),
    ]
    pool.append(PoolItem("b", "f-b after a change"))
    done = store.find_done(MODEL, SETTINGS)
    assert len(done) == 3
    assert [item.uri for item in done.pending(pool)] == ["c", "a2", "b"]
    assert done.pending([]) == []
    assert [item.uri for item in store.find_done(MODEL, SETTINGS, retry_errors=True).pending(pool)] == [
        "c",
        "a2",
        "broken",
        "b",
    ]
    assert len(store.find_done(MODEL, "{}").pending(pool)) == 6
    assert len(store.find_done("mini@ba9876543210", SETTINGS).pending(pool)) == 6


def test_masks_of_other_settings_are_not_offered_for_copies(local_store: Store) -> None:
    commit(local_store, ["a"])
    local_store.commit_shard(MODEL, *tables_of([image_row("b", content="a", settings="{}")], "second"))
    assert local_store.find_done(MODEL, SETTINGS).find_content([content_id("a")]) == {}
    assert local_store.find_done(MODEL, "{}").find_content([content_id("a")])[content_id("a")]["n_masks"] == 3


def test_a_killed_writers_masks_are_invisible(local_store: Store, tmp_path: Path) -> None:
    commit(local_store, ["a"])
    attempt = commit(local_store, ["b"])
    for part in (tmp_path / "store" / "images").rglob(f"{attempt}.parquet"):
        part.unlink()
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(3,)]
    assert [
        i.uri
        for i in local_store.find_done(MODEL, SETTINGS).pending([PoolItem("a", "f-a"), PoolItem("b", "f-b")])
    ] == ["b"]


def test_half_written_files_are_invisible(local_store: Store, tmp_path: Path) -> None:
    attempt = commit(local_store, ["a"])
    for table in ("images", "masks"):
        folder = tmp_path / "store" / table / f"model={MODEL}"
        (folder / f"{attempt}.parquet.0a1b2c3d.tmp").write_bytes(b"PAR1 and no more")
        (folder / "notes.txt").write_text("a stranger's file")
        assert not list(folder.glob("*.parquet.0a1b2c3d"))
    assert fetch(local_store, "SELECT count(*) FROM masks") == [(3,)]


def test_masks_deleted_by_hand_are_told(local_store: Store, tmp_path: Path) -> None:
    attempt = commit(local_store, ["a"])
    next((tmp_path / "store" / "masks").rglob(f"{attempt}.parquet")).unlink()
    with pytest.raises(DamagedStoreError, match=rf"lacks 1 masks files.*{attempt}"):
        local_store.query("SELECT 1")


@pytest.mark.parametrize(
    ("table", "use"),
    [
        ("models", lambda store: store.record_model(MODEL_ROW)),
        ("images", lambda store: store.find_done(MODEL, SETTINGS)),
        ("images", lambda store: store.sweep()),
        ("images", lambda store: commit_copy(store)),
        ("images", lambda store: store.compact()),
        ("masks", lambda store: store.query("SELECT sum(area) FROM masks")),
    ],
)
@pytest.mark.parametrize("content", [b"PAR1", b"not Parquet, and longer than a footer"])
def test_a_damaged_file_is_told(
    local_store: Store, table: str, use: Callable[[Store], object], content: bytes
) -> None:
    commit(local_store, ["a"])
    local_store.record_model(MODEL_ROW)
    Path(local_store.files.list_table(table)[0].path).write_bytes(content)
    with pytest.raises(DamagedStoreError, match="holds a file that is damaged"):
        use(local_store)


def commit_copy(store: Store) -> None:
    """Commit a row whose attempt has to be looked up."""
    store.commit_shard(MODEL, *tables_of([image_row("b", content="a", attempt=new_attempt())]))


MODEL_ROW = {
    "model": MODEL,
    "name": "nano",
    "version": "0123456789ab",
    "package": "segment-anything",
    "source": "here",
    "sha256": "0" * 64,
    "parameters": 1,
    "image_size": 256,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_masks": 2}, "n_masks of the images rows and the masks differ"),
        ({"uri": None}, "NULL in uri"),
        ({"fingerprint": None}, "NULL in fingerprint"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(
    local_store: Store, change: dict[str, Any], message: str
) -> None:
    images, tables = tables_of([image_row("a")])
    images = pa.Table.from_pylist([images.to_pylist()[0] | change], schema=images.schema)
    with pytest.raises(ValueError, match=message):
        local_store.commit_shard(MODEL, images, tables)
    assert fetch(local_store, "SELECT count(*) FROM images") == [(0,)]


def test_a_shard_cannot_name_a_uri_twice_or_bring_an_unknown_table(local_store: Store) -> None:
    with pytest.raises(ValueError, match="same uri twice"):
        local_store.commit_shard(MODEL, *tables_of([image_row("a"), image_row("a")]))
    images, _ = tables_of([image_row("a", n_masks=0)])
    with pytest.raises(ValueError, match="no table of a shard; those are masks"):
        local_store.commit_shard(MODEL, images, {"mask": images})


def test_files_of_an_older_version_show_null_in_newer_columns(local_store: Store, tmp_path: Path) -> None:
    attempt = commit(local_store, ["a"])
    commit(local_store, ["b"])
    path = next((tmp_path / "store" / "masks").rglob(f"{attempt}.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["entropy", "stability"]), path)
    assert fetch(local_store, "SELECT count(*), count(entropy) FROM masks") == [(6, 3)]


def test_other_tools_read_the_folder_as_hive_partitions(local_store: Store, tmp_path: Path) -> None:
    import duckdb

    commit(local_store, ["a"])
    assert duckdb.sql(f"SELECT DISTINCT model FROM '{tmp_path}/store/masks/*/*.parquet'").fetchall() == [
        (MODEL,)
    ]
    file = pq.ParquetFile(next((tmp_path / "store" / "masks").rglob("*.parquet")))
    uncertainty = file.read()["uncertainty"].to_pylist()
    assert uncertainty == sorted(uncertainty, reverse=True)
    rle = file.metadata.row_group(0).column(TABLES["masks"].get_field_index("rle"))
    assert not rle.is_stats_set
    assert "PLAIN_DICTIONARY" not in rle.encodings
    assert "RLE_DICTIONARY" not in rle.encodings


def test_odd_folder_and_model_names_work(tmp_path: Path) -> None:
    model = "my model's [best] 100%@0123456789ab"
    store = Store(str(tmp_path / "it's a [store] *? 50%"))
    commit(store, ["a"], model=model)
    commit(store, ["a"], "second", model=model)
    store.compact()
    assert fetch(store, "SELECT model, count(*) FROM masks GROUP BY ALL") == [(model, 3)]
    with pytest.raises(ConfigError, match="A model needs a name"):
        commit(store, ["a"], model="")


def test_a_relative_root_and_a_url_are_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commit(Store("store"), ["a"])
    assert fetch(Store((tmp_path / "store").as_uri()), "SELECT uri FROM images") == [("a",)]


def test_a_store_in_memory_works_within_one_process() -> None:
    store = Store("memory://a-store-in-memory")
    commit(store, ["a", "b"])
    commit(store, ["b"], "second")
    store.compact()
    assert fetch(store, "SELECT uncertainty_source, count(*) FROM masks GROUP BY ALL ORDER BY ALL") == [
        ("first", 3),
        ("second", 3),
    ]


def test_a_model_is_recorded_once(store: Store) -> None:
    record = {
        "model": MODEL,
        "name": "nano",
        "version": "0123456789ab",
        "package": "segment-anything",
        "source": "file",
    }
    record |= {"sha256": "0" * 64, "parameters": 5_000_000, "image_size": 256}
    store.record_model(record)
    store.record_model(record)
    assert len(store.files.list_table("models")) == 1
    store.record_model(record | {"source": "elsewhere"})
    assert fetch(store, "SELECT model, source, parameters FROM models") == [(MODEL, "elsewhere", 5_000_000)]


def test_a_mistyped_store_is_told(store: Store) -> None:
    with pytest.raises(ConfigError, match="There is no store at"):
        store.check_exists()
    commit(store, ["a"])
    store.check_exists()


def test_a_missing_bucket_is_told_without_secrets(s3_server: str) -> None:
    store = Store(
        "s3://no-such-bucket/store",
        {"key": "some-key-id", "secret": SECRET, "client_kwargs": {"endpoint_url": s3_server}},
    )
    with pytest.raises(ConfigError, match="bucket") as caught:
        commit(store, ["a"])
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="bucket"):
        store.query("SELECT 1")


def test_a_silent_server_is_a_passing_error() -> None:
    options = {
        "key": "some-key-id",
        "secret": SECRET,
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
    }
    with pytest.raises(TransientError, match="try again") as caught:
        commit(Store("s3://bucket/store", options), ["a"])
    assert SECRET not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be used"):
        commit(Store(str(tmp_path / "file" / "store")), ["a"])


@pytest.mark.parametrize("root", ["nosuchprotocol://x/y", "dropbox://x"])
def test_an_address_that_cannot_work_is_told(root: str) -> None:
    with pytest.raises(ConfigError, match="Cannot open the store"):
        Store(root)


def test_secrets_never_reach_error_texts() -> None:
    store = Store("memory://x", {"token": "very-secret-token", "nested": {"password": "hunter2hunter2"}})
    error = store.files.explain(
        OSError(5, "denied very-secret-token and hunter2hunter2 at ftp://me:pass@host/x")
    )
    assert isinstance(error, GapmapError)
    assert not any(secret in str(error) for secret in ("very-secret-token", "hunter2hunter2", "me:pass"))


@pytest.mark.parametrize("use", [Store.check_exists, lambda store: store.query("SELECT 1")])
def test_a_password_in_the_stores_address_is_refused_unread(use: Callable[[Store], object]) -> None:
    with pytest.raises(ConfigError, match="takes no user and password") as caught:
        use(Store("s3://AKIAKEY:topsecret@bucket/x"))
    assert "topsecret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("root", ["", " "])
def test_an_empty_address_is_told(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="needs an address"):
        commit(Store(root), ["a"])
    assert not list(tmp_path.iterdir())


def test_secrets_inside_addresses_and_options_never_reach_error_texts() -> None:
    options = {
        "connection_string": "BlobEndpoint=https://account.example;SharedAccessSignature=sv=2024&sig=TOPSECRET1234567",
        "auth": ("me", "TOPSECRET-of-mine"),
        "client_kwargs": {"endpoint_url": "https://minio.example:9000"},
    }
    store = Store("memory://x", options)
    for text in (
        f"cannot parse {options['connection_string']}",
        "denied for sv=2024&sig=TOPSECRET1234567",
        "denied for TOPSECRET-of-mine",
        "GET https://account.example/x?sig=TOPSECRET&se=1 failed",
        "GET ftp://me:TOPSECRET@host/x failed",
    ):
        error = store.files.explain(OSError(5, text))
        assert "TOPSECRET" not in str(error), text
    assert "https://minio.example:9000" in store.files.redact("no answer from https://minio.example:9000/x")
    with pytest.raises(ConfigError, match="cannot contain") as caught:
        Store("memory://x?sig=TOPSECRET")
    assert "TOPSECRET" not in str(caught.value)


def test_importing_the_store_stays_light() -> None:
    code = "import sys, json, engine.store; print(json.dumps([m for m in ('duckdb', 'torch', 's3fs', 'fsspec') if m in sys.modules]))"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert json.loads(loaded.stdout) == []
