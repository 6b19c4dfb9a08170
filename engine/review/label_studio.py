"""The queue on a Label Studio server: one project, tasks in the order of their uncertainty.

Tasks are known by their `item_key`, whatever the project is called; nothing is sent without a look at what is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.review.connection import Connection
from engine.review.items import ReviewItem
from engine.review.label_studio_json import (
    INSTRUCTION,
    LABEL_CONFIG,
    MODEL_VERSION,
    make_data,
    make_prediction,
    make_task,
)
from engine.review.media import publish_media
from engine.review.queue import AnsweredTask
from schemas.errors import ConfigError, ImageError

_AT_ONCE = 100
_MARK = "gapmap:"
_WORKERS = 4


class LabelStudioQueue:
    """A project, found by the mark in its description, or made.

    Args:
        connection: to the server.
        project: name of the queue; a new project is called so. People may rename it.
        media: folder that the pictures are written to.
        media_url: what its files are called in front of their names, as annotators' browsers open them.
        annotators: answers to each task before it counts as done.
    """

    def __init__(
        self,
        connection: Connection,
        project: str,
        media: Path,
        media_url: str = "/data/local-files/?d=",
        *,
        annotators: int = 1,
    ) -> None:
        self._http, self._title, self._media = connection, project, media
        self._media_url, self._annotators = media_url, annotators
        self._id: int | None = None

    @property
    def name(self) -> str:
        """`label-studio:`, the host, and the queue's name."""
        return f"label-studio:{self._http.host}/{self._title}"

    @property
    def project_id(self) -> int:
        """Number of the project on the server; it is made if it is not there."""
        if self._id is None:
            project = self._find_project() or self._make_project()
            self._furnish(project)
            self._id = project
        return self._id

    @property
    def address(self) -> str:
        """Where people answer."""
        return f"{self._http.url}/projects/{self.project_id}/data"

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(keys), _AT_ONCE):
            wanted = list(keys[start : start + _AT_ONCE])
            only = [_filter("filter:tasks:data.item_key", "in_list", "List", wanted)]
            for task in self._list_tasks(only, "tasks:id"):
                key, task_id = task["data"]["item_key"], str(task["id"])
                if key not in found:
                    found[key] = task_id
                elif not (task.get("total_annotations") or task.get("cancelled_annotations")):
                    # A push was killed, and the server went on with what it had sent while the next one looked.
                    self._http.change("DELETE", f"/api/tasks/{task_id}")
        return found

    def send(
        self,
        items: Sequence[ReviewItem],
        sent: Callable[[dict[str, str]], None],
        left_out: Callable[[ReviewItem, str], None],
    ) -> None:
        project = self.project_id
        with ThreadPoolExecutor(_WORKERS) as pool:
            for start in range(0, len(items), _AT_ONCE):
                chunk = items[start : start + _AT_ONCE]
                ready: list[ReviewItem] = []
                tasks: list[dict[str, Any]] = []
                for item, task in zip(chunk, pool.map(self._prepare, chunk), strict=True):
                    if isinstance(task, str):
                        left_out(item, task)
                    else:
                        ready.append(item)
                        tasks.append(task)
                if not tasks:
                    continue
                made = self._http.post(f"/api/projects/{project}/import", tasks, {"return_task_ids": "true"})
                ids = made.get("task_ids") or [] if isinstance(made, dict) else []
                keys = [item.item_key for item in ready]
                sent(
                    dict(zip(keys, map(str, ids), strict=True)) if len(ids) == len(keys) else self.find(keys)
                )
        # The first import of a project sets its version only if the project had none.
        self._http.change("PATCH", f"/api/projects/{project}", {"model_version": MODEL_VERSION})

    def update(self, task_ids: Sequence[str], items: Sequence[ReviewItem]) -> None:
        for task_id, item in zip(task_ids, items, strict=True):
            addresses = [self._media_url + name for name in publish_media(item, self._media)]
            self._http.change("PATCH", f"/api/tasks/{task_id}", {"data": make_data(item, *addresses)})
            task = self._http.get(f"/api/tasks/{task_id}")
            prediction = make_prediction(item)
            there = [of["id"] for of in task.get("predictions") or []]
            if there:
                self._http.change("PATCH", f"/api/predictions/{there[0]}", prediction)
            else:
                self._http.post("/api/predictions", {"task": int(task_id), **prediction})

    def answers(self, since: datetime | None, known: frozenset[str]) -> Iterator[list[AnsweredTask]]:
        only = []
        if since is not None:
            stamp = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            only = [_filter("filter:tasks:updated_at", "greater_or_equal", "Datetime", stamp)]
        chunk: list[dict[str, Any]] = []
        for task in self._list_tasks(only, "tasks:updated_at"):
            touched = (
                task.get("total_annotations") or task.get("cancelled_annotations") or str(task["id"]) in known
            )
            if touched and (task.get("data") or {}).get("item_key"):
                chunk.append(task)
            if len(chunk) == _AT_ONCE:
                yield self._export(chunk)
                chunk = []
        if chunk:
            yield self._export(chunk)

    def _export(self, tasks: Sequence[dict[str, Any]]) -> list[AnsweredTask]:
        params = {"exportType": "JSON", "ids[]": [task["id"] for task in tasks], "download_all_tasks": "true"}
        exported = {
            of["id"]: of for of in self._http.get(f"/api/projects/{self.project_id}/export", params) or []
        }
        return [
            AnsweredTask(
                str(task["id"]),
                task["data"]["item_key"],
                datetime.fromisoformat(task["updated_at"]),
                exported.get(task["id"], {}).get("annotations") or [],
            )
            for task in tasks
        ]

    def _prepare(self, item: ReviewItem) -> dict[str, Any] | str:
        """The task, or why it cannot be one."""
        try:
            addresses = [self._media_url + name for name in publish_media(item, self._media)]
            return make_task(item, *addresses)
        except (ImageError, ConfigError) as error:
            return str(error)

    def _list_tasks(self, only: list[dict[str, Any]], ordering: str) -> Iterator[dict[str, Any]]:
        """Tasks of the project with what a pull has to know of them, page by page."""
        asked: dict[str, Any] = {"ordering": [ordering]}
        if only:
            asked["filters"] = {"conjunction": "and", "items": only}
        page = 1
        while True:
            params = {
                "project": self.project_id,
                "page": page,
                "page_size": _AT_ONCE,
                "include": "id,updated_at,data,total_annotations,cancelled_annotations",
                "query": json.dumps(asked),
            }
            found = self._http.get("/api/tasks", params, missing_is_none=True)  # past the last page: 404
            tasks = (found or {}).get("tasks") or []
            yield from tasks
            if len(tasks) < _AT_ONCE:
                return
            page += 1

    def _find_project(self) -> int | None:
        """The project whose description bears our mark."""
        page = 1
        while found := self._http.get(
            "/api/projects", {"page": page, "page_size": _AT_ONCE}, missing_is_none=True
        ):
            for project in found.get("results") or []:
                if _MARK + self._title in (project.get("description") or "").split("\n"):
                    return int(project["id"])
            if not found.get("next"):
                return None
            page += 1
        return None

    def _make_project(self) -> int:
        made = self._http.post(
            "/api/projects",
            {
                "title": self._title[:50],
                "description": f"{_MARK}{self._title}\nKeep the line above: gapmap knows the project by it.",
                "label_config": LABEL_CONFIG,
                "expert_instruction": INSTRUCTION,
                "show_instruction": False,
                "sampling": "Uncertainty sampling",
                "show_collab_predictions": True,
                "model_version": MODEL_VERSION,
                "maximum_annotations": self._annotators,
            },
        )
        return int(made["id"])

    def _furnish(self, project: int) -> None:
        """What the project needs beside its tasks; looked at each time, for the making of it may have been killed."""
        if self._media_url.startswith("/data/local-files/"):
            self._media.mkdir(parents=True, exist_ok=True)
            if not self._http.get("/api/storages/localfiles", {"project": project}):
                folder = {
                    "project": project,
                    "title": "gapmap",
                    "path": str(self._media),
                    "use_blob_urls": True,
                }
                self._http.post("/api/storages/localfiles", folder)
        if not self._http.get("/api/dm/views", {"project": project}):
            waiting = [_filter("filter:tasks:total_annotations", "equal", "Number", 0)]
            view = {
                "title": "Most uncertain first",
                "ordering": ["tasks:predictions_score"],
                "filters": {"conjunction": "and", "items": waiting},
            }
            self._http.post("/api/dm/views", {"project": project, "data": view})


def _filter(name: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": name, "operator": operator, "type": kind, "value": value}
