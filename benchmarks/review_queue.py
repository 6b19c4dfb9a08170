"""How long a push and a pull of many items take, beyond the time that Label Studio itself needs.

    python benchmarks/review_queue.py --items 1000 --side 1024

A Label Studio server of its own is started (installed first, if need be), a store with one mask an image is made, all of it is
pushed, every task is answered through the server's interface with the mask a little changed, and all is pulled. The server's own time is
what passed while a request was under way. Beside it: the SDK's import of the same tasks, and its encoding of the same masks.
Writes a dated JSON file to benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from generate import ROOT, write_report
from PIL import Image

sys.path.insert(0, str(ROOT / "tests"))
from label_studio import running_label_studio
from review_sides import ServerSide, disk, label_pool

from engine.review.brush import decode_brush, encode_brush
from engine.review.connection import Connection
from engine.review.label_studio import LabelStudioQueue
from engine.review.pull import pull_answers
from engine.review.push import push_masks
from engine.scenes import make_scene
from engine.store import Store


def timed(connection: Connection, work: Any) -> dict[str, float]:
    """Seconds of some work: all, of these waiting for the server, and what is left."""
    waited, begun = connection.waited_s, time.perf_counter()
    work()
    total, server = time.perf_counter() - begun, connection.waited_s - waited
    return {"total": round(total, 2), "server": round(server, 2), "beyond": round(total - server, 2)}


def time_codec(size: tuple[int, int], repeats: int = 20) -> dict[str, float]:
    """Milliseconds a mask, ours and the SDK's, least of several runs."""
    from label_studio_sdk.converter.brush import decode_rle, mask2rle

    mask = disk(7, 300, size)
    rle = encode_brush(mask)
    ways = {
        "encode": lambda: encode_brush(mask),
        "encode_sdk": lambda: mask2rle(mask.astype(np.uint8) * 255),
        "decode": lambda: decode_brush(rle, size),
        "decode_sdk": lambda: decode_rle(rle).reshape(*size, 4)[..., 3],
    }
    found = {}
    for name, work in ways.items():
        runs = []
        for _ in range(repeats):
            begun = time.perf_counter()
            work()
            runs.append(time.perf_counter() - begun)
        found[name] = round(1000 * min(runs), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the images, pixels")
    asked = parser.parse_args()
    load = os.getloadavg()
    size = (asked.side, asked.side)
    with tempfile.TemporaryDirectory() as name, running_label_studio(Path(name) / "server") as server:
        folder = Path(name)
        (folder / "pool").mkdir()
        painted = [Image.fromarray(make_scene(seed, asked.side).image) for seed in range(8)]
        for number in range(asked.items):
            picture = painted[number % len(painted)].copy()
            picture.putpixel((0, 0), (number % 256, number // 256, 0))
            picture.save(folder / "pool" / f"{number:05}.jpg", quality=92)
            with (folder / "pool" / f"{number:05}.jpg").open("ab") as file:
                file.write(number.to_bytes(4, "big"))  # contents differ, pixels need not
        store = Store(str(folder / "masks"))
        label_pool(store, folder / "pool", masks=1, radius=asked.side // 4)
        connection = Connection(server.url, server.token)
        queue = LabelStudioQueue(connection, "bench", server.media / "bench", "/data/local-files/?d=bench/")
        queue.project_id  # noqa: B018  made beforehand
        results: dict[str, Any] = {"items": asked.items, "side": asked.side, "codec_ms": time_codec(size)}
        results["push"] = timed(connection, lambda: push_masks(store, queue, asked.items))
        results["push_again"] = timed(connection, lambda: push_masks(store, queue, asked.items))
        side = ServerSide(server.url, server.token, queue)
        tasks = queue.find(
            [row["item_key"] for row in store.query("SELECT item_key FROM reviews").to_pylist()]
        )
        answer = encode_brush(disk(7, asked.side // 4, size))
        region = {
            "id": "new",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "image_rotation": 0,
        }
        region |= {"original_width": asked.side, "original_height": asked.side}
        region |= {"value": {"format": "rle", "rle": answer, "brushlabels": ["object"]}}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda task_id: side.answer({"id": task_id}, [region]), tasks.values()))
        results["pull"] = timed(connection, lambda: pull_answers(store, queue))
        results["pull_again"] = timed(connection, lambda: pull_answers(store, queue))
        count = "SELECT count(DISTINCT annotation_id) AS n FROM labels"
        results["answers"] = store.query(count).to_pylist()[0]["n"]
    write_report("review-queue", [results], load)


if __name__ == "__main__":
    main()
