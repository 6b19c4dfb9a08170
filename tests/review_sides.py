"""A store with real pictures and masks, and the people's side of both queues, so that the same tests hold for both."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import pyarrow as pa
from PIL import Image
from store_rows import content_id, image_row, tables_of

from engine.masks.geometry import mask_boxes
from engine.masks.rle import encode_masks
from engine.pool import list_pool, read_image
from engine.review.folder_queue import FolderQueue
from engine.review.label_studio import LabelStudioQueue
from engine.review.queue import ReviewQueue
from engine.store import Store
from schemas.settings import PoolSettings
from schemas.tables import MAPS, MASKS

MODEL = "nano@0123456789ab"
SIZE = (96, 128)


def disk(place: int, radius: int = 9, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A disk, bool HW; each place of a grid its own."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = 14 + 22 * (place // 5 % 4), 14 + 24 * (place % 5)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def label_pool(
    store: Store, folder: Path, *, model: str = MODEL, masks: int = 4, tag: str = "first", radius: int = 9
) -> dict[str, list[dict[str, Any]]]:
    """Commit masks of the pictures of a folder, as a labelling run would; returns the rows of `masks` by file name."""
    images, rows, maps, by_name = [], [], [], {}
    for number, item in enumerate(sorted(list_pool(str(folder), PoolSettings()), key=lambda item: item.uri)):
        image = read_image(item, PoolSettings())
        height, width = image.pixels.shape[:2]
        about = {
            "height": height,
            "width": width,
            "fingerprint": item.fingerprint,
            "image_id": image.image_id,
        }
        images.append(image_row(item.uri, n_masks=masks, **about))
        of = []
        for place in range(masks):
            drawn = disk(place, radius, (height, width))
            box = mask_boxes(drawn[None])[0].tolist()
            row: dict[str, Any] = {
                f.name: None if f.nullable else 0 for f in MASKS if f.name not in ("model", "attempt")
            }
            row |= {
                "mask_id": content_id(f"{image.image_id}/{place}/{tag}"),
                "image_id": image.image_id,
                "rle": encode_masks(drawn[None])[0],
                "area": int(drawn.sum()),
                "height": height,
                "width": width,
                "uncertainty": 0.9 - 0.02 * number - 0.1 * place,
                "uncertainty_source": "predicted_iou",
                "model_gap": 0.07,
                "prompt_gap": 0.0,
                "task_gap": -0.1,
                **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
            }
            of.append(row)
            values = np.linspace(0, 255, 64).astype(np.uint8)
            frame = {"x0": box[0] - 4.0, "y0": box[1] - 4.0, "x1": box[2] + 4.0, "y1": box[3] + 4.0}
            maps.append(
                {"mask_id": row["mask_id"], "image_id": image.image_id, **frame, "rows": 8, "columns": 8}
                | {"values": values.tobytes(), "map_source": "self"}
            )
        rows += of
        by_name[item.uri.rpartition("/")[2]] = of
    plain = [f for f in MASKS if f.name not in ("model", "attempt")]
    tables = {
        "masks": pa.Table.from_pylist(rows, schema=pa.schema(plain)),
        "maps": pa.Table.from_pylist(
            maps, schema=pa.schema([f for f in MAPS if f.name not in ("model", "attempt")])
        ),
    }
    store.commit_shard(model, tables_of(images)[0], tables)
    return by_name


def write_pool(folder: Path, count: int, size: tuple[int, int] = SIZE) -> Path:
    """Pictures that differ, one of them turned by EXIF."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8)
        picture = Image.fromarray(noise).resize(size[::-1])
        exif = Image.Exif()
        if number == 1:
            picture, exif = picture.rotate(90, expand=True), exif
            exif[0x0112] = 6
        picture.save(folder / f"{number:02}.jpg", exif=exif)
    return folder


class Side(Protocol):
    """What people do in a queue."""

    queue: ReviewQueue

    def tasks(self) -> list[dict[str, Any]]:
        """Tasks as Label Studio's JSON, in the order in which they are served."""
        ...

    def answer(
        self, task: dict[str, Any], result: list[dict[str, Any]], *, skip: bool = False, user: int = 1
    ) -> str: ...

    def change(self, task: dict[str, Any], answer: str, result: list[dict[str, Any]]) -> None: ...

    def withdraw(self, task: dict[str, Any], answer: str) -> None: ...

    def delete(self, task: dict[str, Any]) -> None: ...


class FolderSide:
    """Answers as exports in the folder."""

    def __init__(self, folder: Path) -> None:
        self.queue: ReviewQueue = FolderQueue(folder)
        self._folder, self._count = folder, 0
        self._answers: dict[str, dict[str, dict[str, Any]]] = {}

    def tasks(self) -> list[dict[str, Any]]:
        tasks = [json.loads(path.read_text()) for path in (self._folder / "tasks").glob("*.json")]
        return sorted(tasks, key=lambda task: task["predictions"][0]["score"])

    def answer(
        self, task: dict[str, Any], result: list[dict[str, Any]], *, skip: bool = False, user: int = 1
    ) -> str:
        self._count += 1
        now = datetime.now(UTC).isoformat()
        answer = {"id": self._count, "result": result, "was_cancelled": skip, "completed_by": user}
        answer |= {"lead_time": 3.5, "created_at": now, "updated_at": now}
        self._answers.setdefault(task["data"]["item_key"], {})[str(self._count)] = answer
        self._export(task)
        return str(self._count)

    def change(self, task: dict[str, Any], answer: str, result: list[dict[str, Any]]) -> None:
        of = self._answers[task["data"]["item_key"]][answer]
        of |= {"result": result, "updated_at": datetime.now(UTC).isoformat()}
        self._export(task)

    def withdraw(self, task: dict[str, Any], answer: str) -> None:
        del self._answers[task["data"]["item_key"]][answer]
        self._export(task)

    def delete(self, task: dict[str, Any]) -> None:
        (self._folder / "tasks" / f"{task['data']['item_key']}.json").unlink()

    def _export(self, task: dict[str, Any]) -> None:
        key = task["data"]["item_key"]
        answers = list(self._answers[key].values())
        text = json.dumps([{"data": task["data"], "annotations": answers}])
        (self._folder / "answers" / f"{key}.json").write_text(text)


class ServerSide:
    """Answers through the interface that the editor uses."""

    def __init__(self, url: str, token: str, queue: LabelStudioQueue) -> None:
        self.queue: ReviewQueue = queue
        self._of = queue
        headers = {"Authorization": f"Token {token}", "Connection": "close"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60)

    def tasks(self) -> list[dict[str, Any]]:
        params = {"project": self._of.project_id, "fields": "all", "page_size": 100}
        tasks = self._http.get("/api/tasks", params=params).json()["tasks"]
        return sorted(tasks, key=lambda task: task["predictions"][0]["score"])  # type: ignore[no-any-return]

    def answer(
        self, task: dict[str, Any], result: list[dict[str, Any]], *, skip: bool = False, user: int = 1
    ) -> str:
        body = {"result": result, "was_cancelled": skip, "lead_time": 3.5}
        made = self._http.post(f"/api/tasks/{task['id']}/annotations", json=body)
        made.raise_for_status()
        return str(made.json()["id"])

    def change(self, task: dict[str, Any], answer: str, result: list[dict[str, Any]]) -> None:
        self._http.patch(f"/api/annotations/{answer}", json={"result": result}).raise_for_status()

    def withdraw(self, task: dict[str, Any], answer: str) -> None:
        self._http.delete(f"/api/annotations/{answer}").raise_for_status()

    def delete(self, task: dict[str, Any]) -> None:
        self._http.delete(f"/api/tasks/{task['id']}").raise_for_status()
