"""Fetch what people answered: ask what changed since the last pull, and write it as rows of `labels`.

How far a pull got is what its rows say themselves, so there is no cursor that could be lost or run ahead of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.review.answers import AskedItem, digest_answer, identify, list_results, read_answers, withdraw
from engine.review.queue import AnsweredTask, ReviewQueue

if TYPE_CHECKING:
    from engine.store import Snapshot, Store

# A server shows a change when its transaction ends, not when it is dated.
_OVERLAP = timedelta(seconds=90)

# Rows of answers by (task_id, annotation_id): through a folder, answers of several servers may bear the same number.
_Known = Mapping[tuple[str, str], Mapping[str, Any]]
_KNOWN = """
    SELECT task_id, annotation_id, any_value(verdict) AS verdict, max(answered_at) AS answered_at, max(task_changed_at) AS changed_at,
           list(DISTINCT label_id[:16]) AS digests
    FROM labels WHERE queue = $queue GROUP BY task_id, annotation_id
"""
_ITEMS = "SELECT * FROM reviews WHERE list_contains($keys, item_key)"
_SHOWN = """
    SELECT mask_id, any_value(rle) AS rle, any_value(model) AS model FROM masks
    WHERE list_contains($images, image_id) AND list_contains($mask_ids, mask_id) GROUP BY mask_id
"""
_OLD_ROWS = "SELECT * FROM labels WHERE queue = $queue AND list_contains($tasks, task_id)"


@dataclass
class PullReport:
    """What a pull found.

    Attributes:
        queue: where.
        answers: answers that are new or changed.
        verdicts: how many rows of each.
        strangers: tasks that bear a key which was never sent to this queue, or none.
        elsewhere: how many of them this store sent to which other queue.
    """

    queue: str
    answers: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    strangers: int = 0
    elsewhere: Counter[str] = field(default_factory=Counter)


def pull_answers(
    store: Store, queue: ReviewQueue, *, progress: Callable[[int], None] | None = None
) -> PullReport:
    """Write every answer that is new or was changed since the last pull; the same answer is never written twice.

    Args:
        store: that the masks were sent from.
        queue: where people answer.
        progress: called with the number of answers so far.

    Raises:
        ConfigError: the queue cannot be used.
        TransientError: it failed in passing; run it again.
    """
    report = PullReport(queue.name)
    known_rows = store.read(lambda snapshot: snapshot.rows(_KNOWN, {"queue": queue.name}))
    known = {(row["task_id"], row["annotation_id"]): row for row in known_rows}
    since = max((row["changed_at"] for row in known_rows), default=None)
    if since is not None:
        since -= _OVERLAP
    for tasks in queue.answers(since, frozenset(row["task_id"] for row in known_rows)):
        rows = _read_tasks(store, queue.name, tasks, known, report)
        pulled_at = datetime.now(UTC)
        store.append("labels", [{**row, "pulled_at": pulled_at} for row in rows])
        report.verdicts.update(row["verdict"] for row in rows)
        report.answers += len({(row["task_id"], row["annotation_id"]) for row in rows})
        if progress:
            progress(report.answers)
    return report


def _read_tasks(
    store: Store,
    queue: str,
    tasks: Sequence[AnsweredTask],
    known: _Known,
    report: PullReport,
) -> list[dict[str, Any]]:
    """Rows of the answers that are not in the store as they are now, in the order of the tasks."""
    gone = _find_gone(tasks, known)
    asked = {"queue": queue, "tasks": sorted({task_id for task_id, _ in gone})}

    def read(snapshot: Snapshot) -> tuple[dict[str, AskedItem], dict[str, str], list[dict[str, Any]]]:
        sent = snapshot.rows(_ITEMS, {"keys": [task.item_key for task in tasks]})
        here = [row for row in sent if row["queue"] == queue]
        elsewhere = {row["item_key"]: row["queue"] for row in sent if row["queue"] != queue}
        said = snapshot.rows(_OLD_ROWS, asked) if gone else []
        return _load_items(snapshot, here, tasks), elsewhere, said

    items, elsewhere, said = store.read(read)
    old: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in said:
        old.setdefault((row["task_id"], row["annotation_id"]), []).append(row)
    rows = []
    for task in tasks:
        item = items.get(task.item_key)
        if item is None:
            report.strangers += 1
            if task.item_key in elsewhere:
                report.elsewhere[elsewhere[task.item_key]] += 1
            continue
        if task.shown:  # what is planned may have changed since
            item = replace(item, model=task.shown[0], mask_ids=task.shown[1])
        if not all(_is_known(answer, task, known) for answer in task.annotations):
            # All of them: where one of several answers changed, so did what the others agree with.
            rows += read_answers(queue, task, item)
        withdrawn = [answer for answer in gone if answer[0] == task.task_id]
        rows += [withdraw(row, task) for answer in withdrawn for row in old.get(answer, [])]
    return rows


def _is_known(answer: Mapping[str, Any], task: AnsweredTask, known: _Known) -> bool:
    """Whether an answer is in the store as it is now, or a later one in its stead."""
    name, answered_at = identify(answer, task)
    stored = known.get((task.task_id, name))
    if stored is None or stored["verdict"] == "withdrawn" or stored["answered_at"] < answered_at:
        return False
    # What is mended in a file by hand keeps its date.
    return stored["answered_at"] > answered_at or digest_answer(answer) in stored["digests"]


def _find_gone(tasks: Sequence[AnsweredTask], known: _Known) -> list[tuple[str, str]]:
    """(task_id, annotation_id) of answers that were written once and are no longer there."""
    there = {task.task_id: {identify(answer, task)[0] for answer in task.annotations} for task in tasks}
    return [
        (task_id, name)
        for (task_id, name), row in known.items()
        if row["verdict"] != "withdrawn" and task_id in there and name not in there[task_id]
    ]


def _load_items(
    snapshot: Snapshot, rows: Sequence[Mapping[str, Any]], tasks: Sequence[AnsweredTask]
) -> dict[str, AskedItem]:
    """What each task asks about as it was sent last, by its row of `reviews`, with every mask that it or its answers show."""
    regions = {
        str(region.get("id"))
        for task in tasks
        for answer in task.annotations
        for region in list_results(answer)
    }
    told = {mask_id for task in tasks if task.shown for mask_id in task.shown[1]}
    mask_ids = sorted(regions | told | {mask_id for row in rows for mask_id in row["mask_ids"]})
    shown = {"images": sorted({row["image_id"] for row in rows}), "mask_ids": mask_ids}
    found = snapshot.rows(_SHOWN, shown) if rows else []
    rles = {row["mask_id"]: row["rle"] for row in found}
    models = {row["mask_id"]: row["model"] for row in found}
    return {
        row["item_key"]: AskedItem(
            row["image_id"], row["model"], (row["height"], row["width"]), tuple(row["mask_ids"]), rles, models
        )
        for row in rows
    }
