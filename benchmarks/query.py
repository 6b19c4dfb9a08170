"""How fast the store answers: the 20 most uncertain of a million masks, and what each choice of layout does.

    python benchmarks/query.py [--masks 1000000] [--out benchmarks/results]

Builds a store of synthetic masks with run lengths of realistic size (about 300 bytes) in a temporary folder,
asks it before and after compaction in processes of their own, then measures layouts of the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.store import Store
from engine.store.commit import write_part
from engine.store.files import StoreFiles
from engine.store.layout import new_attempt
from engine.store.snapshot import open_connection, scan_files
from schemas.tables import MASKS

MODEL = "nano@0123456789ab"
MASKS_PER_IMAGE, IMAGES_PER_SHARD = 40, 256
TOP_20 = "SELECT mask_id, image_id, uncertainty FROM masks ORDER BY uncertainty DESC LIMIT 20"
QUERIES = {
    "top_20": TOP_20,
    "top_20_all_columns": "SELECT * FROM masks ORDER BY uncertainty DESC LIMIT 20",
    "top_20_with_uri": f"SELECT uri, t.* FROM ({TOP_20}) t JOIN images USING (image_id)",
    "quantiles": "SELECT quantile_cont(uncertainty, [0.1, 0.5, 0.9]) FROM masks",
}
RUNS = 7


def make_masks(rng: np.random.Generator, first_image: int, n_images: int) -> pa.Table:
    """Rows of `masks` without model and attempt; run lengths of 100 to 500 bytes, skewed as real ones are."""
    count = n_images * MASKS_PER_IMAGE
    lengths = np.clip(rng.lognormal(5.6, 0.5, count), 100, 2000).astype(np.int64)
    letters = np.minimum(48 + rng.geometric(0.06, int(lengths.sum())), 111).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns: dict[str, Any] = {}
    for field in MASKS:
        if field.name in {"model", "attempt"}:
            continue
        if field.name == "rle":
            column = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))
        elif field.name == "mask_id":
            column = pa.array([rng.bytes(16).hex() for _ in range(count)])
        elif field.name == "image_id":
            column = pa.array([f"{first_image + i // MASKS_PER_IMAGE:032x}" for i in range(count)])
        elif field.name == "uncertainty_source":
            column = pa.array(["sam_score"] * count)
        elif pa.types.is_floating(field.type):
            column = pa.array(rng.random(count, dtype=np.float32))
        else:
            column = pa.array(rng.integers(0, 100, count))
        columns[field.name] = column.cast(field.type)
    return pa.table(columns)


def fill_store(store: Store, n_masks: int) -> None:
    """Commit shards as a labelling run does."""
    rng = np.random.default_rng(0)
    for first in range(0, n_masks // MASKS_PER_IMAGE, IMAGES_PER_SHARD):
        n_images = min(IMAGES_PER_SHARD, n_masks // MASKS_PER_IMAGE - first)
        images = pa.table(
            {
                "image_id": [f"{first + i:032x}" for i in range(n_images)],
                "uri": [f"s3://bucket/pool/folder/{first + i:08d}.jpg" for i in range(n_images)],
                "fingerprint": [f"123456-{first + i:032x}" for i in range(n_images)],
                "n_masks": [MASKS_PER_IMAGE] * n_images,
                "settings": ["{}"] * n_images,
            }
        )
        store.commit_shard(MODEL, images, {"masks": make_masks(rng, first, n_images)})


def time_runs(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of several runs, the first apart: it finds the caches of the process empty.

    The processor time of all threads tells more than the clock when the machine has other work.
    """
    times, cpu_times = [], []
    for _ in range(RUNS + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    return {
        "first": round(times[0], 4),
        "min": round(min(times[1:]), 4),
        "median": round(statistics.median(times[1:]), 4),
        "cpu_median": round(statistics.median(cpu_times[1:]), 4),
    }


def ask(root: str) -> dict[str, Any]:
    """Times of this process, for its parent."""
    store = Store(root, threads=2)
    result: dict[str, Any] = {"top_20_from_nothing": time_runs(lambda: store.query(TOP_20))}
    result["peak_mib_of_top_20"] = _peak_mib()
    with store.open_snapshot() as snapshot:
        for name, sql in QUERIES.items():
            result[name] = time_runs(lambda sql=sql: snapshot.con.sql(sql).to_arrow_table())
    result["open_snapshot"] = time_runs(lambda: store.open_snapshot().con.close())
    result["peak_mib"] = _peak_mib()
    return result


def ask_in_new_process(root: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--ask", root]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def measure_layouts(folder: Path, n_masks: int) -> list[dict[str, Any]]:
    """The same rows in other row groups, orders, numbers of files and compressions."""
    rows = make_masks(np.random.default_rng(1), 0, n_masks // MASKS_PER_IMAGE)
    for name in ("model", "attempt"):
        rows = rows.append_column(name, pa.array(["x"] * len(rows)))
    rows = rows.select(MASKS.names).cast(MASKS)
    files = StoreFiles(str(folder))
    results = []
    layouts: list[dict[str, Any]] = [{"row_group": n} for n in (1_000, 2_000, 5_000, 10_240, 20_000, 120_000)]
    layouts += [
        {"sorted": False},
        {"files": 10},
        {"files": 100},
        {"files": 1_000},
        {"compression": "snappy"},
        {"plain_rle": False},
    ]
    for change in layouts:
        layout = {
            "row_group": 10_240,
            "sorted": True,
            "files": 1,
            "compression": "zstd",
            "plain_rle": True,
        } | change
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        paths = []
        for index in range(layout["files"]):
            part = rows.take(pa.array(np.arange(index, len(rows), layout["files"])))
            if layout["sorted"]:
                part = part.sort_by([("uncertainty", "descending")])
            options: dict[str, Any] = {}
            if layout["plain_rle"]:
                names = [name for name in MASKS.names if name != "rle"]
                options = {
                    "use_dictionary": ["model", "image_id", "attempt", "uncertainty_source"],
                    "write_statistics": names,
                }
            path = folder / f"{index}.parquet"
            pq.write_table(
                part, path, row_group_size=layout["row_group"], compression=layout["compression"], **options
            )
            paths.append(str(path))
        con = open_connection(files, threads=2)
        con.execute(f"CREATE VIEW masks AS SELECT * FROM {scan_files(con, 'masks', paths)}")
        size = sum(Path(path).stat().st_size for path in paths)
        result = {**layout, "bytes_a_mask": round(size / len(rows))}
        for name in ("top_20", "top_20_all_columns"):
            times = time_runs(lambda sql=QUERIES[name], con=con: con.sql(sql).to_arrow_table())
            result[name], result[f"{name}_cpu"] = times["min"], times["cpu_median"]
        con.close()
        results.append(result)
        print(json.dumps(result), flush=True)
    return results


def measure_many_parts(folder: Path, n_parts: int) -> dict[str, Any]:
    """Opening a store of many tiny shards, before anybody compacts it."""
    store = Store(str(folder), threads=2)
    rng = np.random.default_rng(2)
    images = pa.table(
        {
            "image_id": ["x"],
            "uri": ["u"],
            "fingerprint": ["f"],
            "n_masks": [MASKS_PER_IMAGE],
            "settings": ["{}"],
        }
    )
    attempt = store.commit_shard(
        MODEL, images, {"masks": make_masks(rng, 0, 1).set_column(1, "image_id", [["x"] * MASKS_PER_IMAGE])}
    )
    tables = {
        name: pq.read_table(next(folder.rglob(f"{name}/*/{attempt}.parquet")), partitioning=None)
        for name in ("images", "masks")
    }
    for index in range(n_parts - 1):
        other = new_attempt()
        for name, table in tables.items():
            for column, value in (("attempt", other), ("image_id", f"x{index}"), ("uri", f"u{index}")):
                if column in table.schema.names:
                    table = table.set_column(
                        table.schema.get_field_index(column), column, [[value] * len(table)]
                    )
            write_part(store.files, name, MODEL, other, table.to_batches())
    result: dict[str, Any] = {"parts": n_parts, "top_20_from_nothing": time_runs(lambda: store.query(TOP_20))}
    start = time.perf_counter()
    store.compact()
    result["compact_seconds"] = round(time.perf_counter() - start, 2)
    result["top_20_from_nothing_after"] = time_runs(lambda: store.query(TOP_20))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        print(json.dumps(ask(arguments.ask)))
        return
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="gapmap-bench-") as temporary:
        folder = Path(temporary)
        store = Store(str(folder / "store"), threads=2)
        start = time.perf_counter()
        fill_store(store, arguments.masks)
        result: dict[str, Any] = {"fill_seconds": round(time.perf_counter() - start, 1)}
        result["shards"] = ask_in_new_process(str(folder / "store"))
        print(json.dumps(result), flush=True)
        start = time.perf_counter()
        store.compact()
        result["compact_seconds"] = round(time.perf_counter() - start, 1)
        result["compacted"] = ask_in_new_process(str(folder / "store"))
        print(json.dumps(result["compacted"]), flush=True)
        shutil.rmtree(folder / "store")
        result["many_parts"] = measure_many_parts(folder / "many", 4_000)
        print(json.dumps(result["many_parts"]), flush=True)
        result["layouts"] = measure_layouts(folder / "layouts", arguments.masks)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "masks": arguments.masks,
        "masks_per_image": MASKS_PER_IMAGE,
        "bar": "top 20 within 0.3 s and 1024 MiB on 2 cores",
        "seconds": f"first run, then minimum and median of {RUNS} more, and their median processor time; page cache warm",
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "cpu": _cpu_name(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("duckdb", "pyarrow", "numpy")},
        },
        **result,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"query-{now.date().isoformat()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)


def _peak_mib() -> int:
    """Largest resident size of this process; ru_maxrss would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    main()
