"""A review queue without a server: a folder of Label Studio's JSON.

FOLDER/tasks/ITEM_KEY.json     one task each, as Label Studio imports them
FOLDER/tasks.json              all that nobody has answered, in one file
FOLDER/media/…                 the pictures
FOLDER/queue.txt               what the queue is called in the store
FOLDER/answers/*.json          what comes back: exports of Label Studio (JSON), or of anything that writes the same

An answer's task is known by `data.item_key`, so the tasks may have gone through any Label Studio on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.review.items import ReviewItem
from engine.review.label_studio_json import LABEL_CONFIG, Shown, make_task, read_shown
from engine.review.media import publish_media
from engine.review.queue import AnsweredTask
from engine.store.whole_file import written_whole
from schemas.errors import ConfigError, ImageError

_AT_ONCE = 100


class FolderQueue:
    """See the module.

    Args:
        folder: made when something is sent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._answered: dict[Path, tuple[tuple[int, int], dict[str, bool]]] = {}

    @property
    def name(self) -> str:
        """`folder:` and the path at which it was pushed to first: moved or copied, it is the same queue."""
        named = self._named.read_text().strip() if self._named.exists() else ""
        return named if named.startswith("folder:") else f"folder:{self._folder}"

    @property
    def address(self) -> str:
        """The folder."""
        return str(self._folder)

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        return {key: key for key in keys if self._task(key).exists()}

    def send(
        self,
        items: Sequence[ReviewItem],
        sent: Callable[[dict[str, str]], None],
        left_out: Callable[[ReviewItem, str], None],
        answered: Collection[str],
    ) -> None:
        if not self._named.exists():
            name = self.name
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._named) as part:
                part.write_text(f"{name}\n")
        for item in items:
            try:
                self._write(item)
            except (ImageError, ConfigError) as error:
                left_out(item, str(error))
            else:
                sent({item.item_key: item.item_key})
        self._write_whole(answered)

    def update(self, task_id: str, item: ReviewItem) -> bool:
        if self._is_answered(item.item_key):
            return False
        self._write(item)
        return True

    def answers(self, since: datetime | None, known: frozenset[str]) -> Iterator[list[AnsweredTask]]:
        if not any((self._folder / name).exists() for name in ("tasks", "tasks.json")):
            raise ConfigError(
                f"There is no queue in {self._folder}. Push to it first, or name another: --queue"
            )
        # Every export is read each time: one that is put here today may bear last week's date.
        found: dict[str, AnsweredTask] = {}
        strangers: list[AnsweredTask] = []
        for path in _list_json(self._folder / "answers"):
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            for key, answers, shown in _read_export(path):
                if not key:
                    strangers.append(AnsweredTask("", "", changed, []))
                # Of several exports that hold a task the one written last is right.
                elif key not in found or changed >= found[key].changed_at:
                    found[key] = AnsweredTask(key, key, changed, answers, shown)
        tasks = sorted([*found.values(), *strangers], key=lambda task: task.changed_at)
        for start in range(0, len(tasks), _AT_ONCE):
            yield tasks[start : start + _AT_ONCE]

    def _is_answered(self, key: str) -> bool:
        """Whether the newest export of a task holds an answer; each export is read once, and again when it was changed."""
        before, self._answered = self._answered, {}
        for path in _list_json(self._folder / "answers"):
            status = path.stat()
            version = status.st_mtime_ns, status.st_size
            if path not in before or before[path][0] != version:
                before[path] = version, {of: bool(answers) for of, answers, _ in _read_export(path)}
            self._answered[path] = before[path]
        said = [(version, keys[key]) for version, keys in self._answered.values() if key in keys]
        return max(said)[1] if said else False

    def _write(self, item: ReviewItem) -> None:
        image, map_image = publish_media(item, self._folder / "media")
        task = make_task(item, f"media/{image}", f"media/{map_image}")
        path = self._task(item.item_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_text(json.dumps(task))

    def _write_whole(self, answered: Collection[str]) -> None:
        """The tasks that wait in one file, and the interface: what one gives to Label Studio's import."""
        waiting = [path for path in _list_json(self._folder / "tasks") if path.stem not in answered]
        waiting.sort(key=_read_score)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "answers").mkdir(exist_ok=True)
        with written_whole(self._folder / "tasks.json") as part, part.open("w") as file:
            file.write("[")
            for place, path in enumerate(waiting):  # one at a time: a task is as large as its masks
                file.write((", " if place else "") + path.read_text())
            file.write("]")
        with written_whole(self._folder / "interface.xml") as part:
            part.write_text(LABEL_CONFIG)

    @property
    def _named(self) -> Path:
        return self._folder / "queue.txt"

    def _task(self, key: str) -> Path:
        return self._folder / "tasks" / f"{key}.json"


def _list_json(folder: Path) -> list[Path]:
    """Files of a folder that are whole: a name with a dot in front is of one that is being written, or was left by a kill."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _read_score(path: Path) -> float:
    return float(json.loads(path.read_text())["predictions"][0]["score"])


def _read_export(path: Path) -> Iterator[tuple[str, list[dict[str, Any]], Shown | None]]:
    """(item_key, annotations, shown) of each answered task of an export; the key is empty for what is no task of a queue."""
    try:
        tasks = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read as an export of Label Studio ({error}). Export it as JSON, or take it away."
        ) from None
    for task in tasks if isinstance(tasks, list) else [tasks]:
        data = task.get("data") if isinstance(task, dict) else None
        key = data.get("item_key") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(key, str):
            yield "", [], None
        elif isinstance(task.get("annotations"), list):
            if odd := [answer for answer in task["annotations"] if not isinstance(answer, dict)]:
                raise ConfigError(
                    f"{path} holds an answer that Label Studio does not write: {str(odd[0])[:100]!r}. Export it again, or take it away."
                )
            yield key, task["annotations"], read_shown(data)
