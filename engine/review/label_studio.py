"""The queue on a Label Studio server: one project, tasks in the order of their uncertainty.

Tasks are known by their `item_key`, whatever the project is called; nothing is sent without a look at what is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.review.connection import Connection
from engine.review.items import ReviewItem
from engine.review.label_studio_json import (
    MODEL_VERSION,
    make_data,
    make_prediction,
    make_task,
    read_shown,
)
from engine.review.media import publish_media
from engine.review.project import data_filter, find_project, furnish_project, make_project
from engine.review.queue import AnsweredTask
from schemas.errors import ConfigError, ImageError

_AT_ONCE = 100
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
            project = find_project(self._http, self._title)
            if project is None:
                project = make_project(self._http, self._title, self._annotators)
            furnish_project(self._http, project, self._media, self._media_url)
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
            only = [data_filter("filter:tasks:data.item_key", "in_list", "List", wanted)]
            for task in self._list_tasks(only):
                key, task_id = task["data"]["item_key"], str(task["id"])
                if key not in found:
                    found[key] = task_id
                elif not _is_answered(task):
                    # A push was killed, and the server went on with what it had sent while the next one looked.
                    self._http.change("DELETE", f"/api/tasks/{task_id}")
        return found

    def send(
        self,
        items: Sequence[ReviewItem],
        sent: Callable[[dict[str, str]], None],
        left_out: Callable[[ReviewItem, str], None],
        answered: Collection[str],
    ) -> None:
        project = self.project_id
        chunks = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
        with ThreadPoolExecutor(_WORKERS) as pool:
            coming: list[Future[dict[str, Any] | str]] = []
            # While the server takes some, the next ones are made.
            for chunk, following in pairwise([[], *chunks, []]):
                tasks: dict[str, dict[str, Any]] = {}
                for item, future in zip(chunk, coming, strict=True):
                    task = future.result()
                    if isinstance(task, str):
                        left_out(item, task)
                    else:
                        tasks[item.item_key] = task
                coming = [pool.submit(self._prepare, item) for item in following]
                if tasks:
                    # Another machine may have sent some meanwhile.
                    there = self.find(list(tasks))
                    if missing := {key: task for key, task in tasks.items() if key not in there}:
                        there |= self._import(project, missing)
                    sent(there)
        # The first import of a project sets its version only if the project had none.
        self._http.change("PATCH", f"/api/projects/{project}", {"model_version": MODEL_VERSION})

    def update(self, task_id: str, item: ReviewItem) -> bool:
        addresses = [self._media_url + name for name in publish_media(item, self._media)]
        prediction = make_prediction(item)
        # Only now: whatever was answered while the pictures were drawn counts, too.
        task = self._http.get(f"/api/tasks/{task_id}", missing_is_none=True)
        if task is None or _is_answered(task) or task.get("draft_exists"):
            return False
        self._http.change("PATCH", f"/api/tasks/{task_id}", {"data": make_data(item, *addresses)})
        there = [of["id"] for of in task.get("predictions") or []]
        if there:
            self._http.change("PATCH", f"/api/predictions/{there[0]}", prediction)
        else:
            self._http.post("/api/predictions", {"task": int(task_id), **prediction})
        return True

    def answers(self, since: datetime | None, known: frozenset[str]) -> Iterator[list[AnsweredTask]]:
        if self._id is None and find_project(self._http, self._title) is None:
            raise ConfigError(
                f"Label Studio at {self._http.url} has no project of the queue {self._title!r}. Push to it first, or name another: "
                "--project"
            )
        # What changes from here on is left to the next time, which begins with the latest change seen now.
        newest = self._get_tasks({"ordering": ["-tasks:updated_at"]}, 1)
        if not newest:
            return
        only = [
            data_filter(
                "filter:tasks:updated_at", "less_or_equal", "Datetime", _stamp(_changed_at(newest[0]))
            )
        ]
        if since is not None:
            only.append(data_filter("filter:tasks:updated_at", "greater_or_equal", "Datetime", _stamp(since)))
        touched = [
            task
            for task in self._list_tasks(only)
            if _is_answered(task) or str(task["id"]) in known
            if (task.get("data") or {}).get("item_key")
        ]
        touched.sort(key=_changed_at)
        chunks = [touched[start : start + _AT_ONCE] for start in range(0, len(touched), _AT_ONCE)]
        with ThreadPoolExecutor(1) as pool:
            coming: Future[list[AnsweredTask]] | None = None
            # While some are read, the server writes the next ones.
            for following in [*chunks, None]:
                done = coming.result() if coming else None
                coming = pool.submit(self._export, following) if following else None
                if done is not None:
                    yield done

    def _export(self, tasks: Sequence[dict[str, Any]]) -> list[AnsweredTask]:
        params = {"exportType": "JSON", "ids[]": [task["id"] for task in tasks], "download_all_tasks": "true"}
        exported = {
            of["id"]: of for of in self._http.get(f"/api/projects/{self.project_id}/export", params) or []
        }
        return [
            AnsweredTask(
                str(task["id"]),
                task["data"]["item_key"],
                _changed_at(task),
                exported.get(task["id"], {}).get("annotations") or [],
                read_shown(exported.get(task["id"], {}).get("data") or {}),
            )
            for task in tasks
        ]

    def _import(self, project: int, tasks: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Send tasks by item_key; returns their ids."""
        made = self._http.post(
            f"/api/projects/{project}/import", list(tasks.values()), {"return_task_ids": "true"}
        )
        ids = made.get("task_ids") or [] if isinstance(made, dict) else []
        keys = list(tasks)
        return dict(zip(keys, map(str, ids), strict=True)) if len(ids) == len(keys) else self.find(keys)

    def _prepare(self, item: ReviewItem) -> dict[str, Any] | str:
        """The task, or why it cannot be one."""
        try:
            addresses = [self._media_url + name for name in publish_media(item, self._media)]
            return make_task(item, *addresses)
        except (ImageError, ConfigError) as error:
            return str(error)

    def _list_tasks(self, only: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tasks of the project with what a pull has to know of them, in the order of their ids.

        Each request asks for ids beyond the last one: by page numbers, a task that is changed or deleted meanwhile would
        move others to a page that was asked for already.
        """
        found: list[dict[str, Any]] = []
        last = 0
        while True:
            beyond = data_filter("filter:tasks:id", "greater", "Number", last)
            asked = {"ordering": ["tasks:id"], "filters": {"conjunction": "and", "items": [*only, beyond]}}
            tasks = self._get_tasks(asked, _AT_ONCE)
            found += tasks
            if len(tasks) < _AT_ONCE:
                return found
            last = tasks[-1]["id"]

    def _get_tasks(self, query: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The first tasks of a query of the Data Manager."""
        params = {
            "project": self.project_id,
            "page": 1,
            "page_size": count,
            "include": "id,updated_at,data,total_annotations,cancelled_annotations",
            "query": json.dumps(query),
        }
        return list(self._http.get("/api/tasks", params).get("tasks") or [])


def _is_answered(task: dict[str, Any]) -> bool:
    return bool(task.get("total_annotations") or task.get("cancelled_annotations"))


def _changed_at(task: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(task["updated_at"])


def _stamp(time: datetime) -> str:
    """As the Data Manager's filters want it: without fractional seconds they find nothing."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
