"""Send masks that are worth it to people: plan, write the plan down, send, write down what arrived.

A plan is a row before it is a task, and every push first looks which of the planned tasks are there. So one that was killed
anywhere is gone on with, and nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.review.items import ReviewItem, group_masks
from engine.review.plans import mark_sent, plan_item, shrink_plan
from engine.review.pull import PullReport, pull_answers
from engine.review.queue import ReviewQueue, hold_queue
from engine.review.selection import answered_keys, load_items, open_items
from engine.store.model_choice import newest_model
from engine.triage.acquisition import select_masks
from engine.triage.reading import FreeMasks, read_embeddings, read_free_masks
from schemas.errors import ImageError
from schemas.settings import AcquisitionSettings

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_RENEWED_AT_ONCE = 50


@dataclass
class PushReport:
    """What a push did.

    Attributes:
        queue, model: where to, and whose masks.
        answers: new or changed ones that were fetched first.
        masks, items: newly sent, or sent again because somebody had deleted their tasks.
        waiting: masks that people have not answered, with these.
        renewed: unanswered items that show masks of a newer model now.
        closed: items that are asked no more, because none of their masks holds any more.
        left_out: items that could not be shown, and are tried again by the next push: name of the image, and why.
    """

    queue: str
    model: str
    answers: int = 0
    masks: int = 0
    items: int = 0
    waiting: int = 0
    renewed: int = 0
    closed: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, item: ReviewItem, why: str) -> None:
        """Note an item that cannot be shown."""
        self.left_out.append((item.copies[0][0].rpartition("/")[2], why))


def push_masks(
    store: Store,
    queue: ReviewQueue,
    budget: int,
    *,
    acquisition: AcquisitionSettings | None = None,
    model: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    pulled: Callable[[PullReport], None] | None = None,
) -> PushReport:
    """Fill the queue up to `budget` masks that wait for people.

    What they answered is fetched first: it waits no more, and its objects are not asked about again. Items that nobody has
    answered show the masks of `model` from then on, in their new order. Waits for another push of this machine to the queue.

    Args:
        store: with masks.
        queue: where people answer.
        budget: masks that wait for people after the push, at most; those that wait already count.
        acquisition: which masks are chosen; None for the most uncertain ones, with a tenth drawn from the accepted ones.
        model: whose masks, name@version or a name; None for the one that labelled last.
        progress: called with (items sent, items to send).
        pulled: called with what was fetched, if anything was.

    Raises:
        ConfigError: the store has no masks (of this model), or not what the strategy needs, or the queue cannot be used.
        TransientError: the queue failed in passing; run it again.
    """
    model = newest_model(store, model)
    report = PushReport(queue.name, model)
    with hold_queue(queue):
        waiting, there = _find_waiting(store, queue)
        if there:
            fetched = pull_answers(store, queue)
            if fetched.answers:
                report.answers = fetched.answers
                if pulled:
                    pulled(fetched)
                waiting, there = _find_waiting(store, queue)
        present = [row for row in waiting if row["item_key"] in there]
        store.append(
            "reviews", [mark_sent(row, there[row["item_key"]]) for row in present if row["state"] != "sent"]
        )
        _renew(store, queue, present, there, model, report)
        # What was planned or deleted goes first: what cannot be shown takes no room from the rest.
        _send(store, queue, [row for row in waiting if row["item_key"] not in there], report, progress)
        report.waiting = sum(len(row["mask_ids"]) for row in present) + report.masks
        if (room := budget - report.waiting) > 0:
            chosen = _choose(store, queue.name, model, room, acquisition or AcquisitionSettings())
            planned = [plan_item(queue.name, model, of, priority) for of, priority in group_masks(chosen)]
            store.append("reviews", planned)
            before = report.masks
            _send(store, queue, planned, report, progress)
            report.waiting += report.masks - before
    return report


def _find_waiting(store: Store, queue: ReviewQueue) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of `reviews` of the items that wait, and the task ids of those that are in the queue, by item_key."""
    waiting = open_items(store, queue.name)
    return waiting, queue.find([row["item_key"] for row in waiting])


def _choose(
    store: Store, queue: str, model: str, room: int, acquisition: AcquisitionSettings
) -> list[dict[str, Any]]:
    """Masks to ask about in the order in which they were chosen, each with who chose it."""

    def choose(snapshot: Snapshot) -> list[dict[str, Any]]:
        free = read_free_masks(snapshot, queue, model)
        asked_MC = read_embeddings(snapshot, model, free.asked_ids) if free.candidates.embed else None
        chosen = select_masks(
            free.candidates, room, acquisition, asked_MC, asked=free.n_asked, drawn=free.n_drawn
        )
        return [{**_candidate(free, i), "chosen_by": chosen_by} for i, chosen_by in chosen]

    return store.read(choose)


def _candidate(free: FreeMasks, i: int) -> dict[str, Any]:
    of, (height, width) = free.candidates, free.size_N2[i].tolist()
    about = {"mask_id": of.mask_ids[i], "image_id": of.image_ids[i], "height": height, "width": width}
    return about | {"uncertainty": float(of.uncertainty_N[i])}


def _send(
    store: Store,
    queue: ReviewQueue,
    rows: Sequence[Mapping[str, Any]],
    report: PushReport,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Send planned items, and write down each that arrived; what is not to be seen any more leaves the plan before that."""
    by_key = {row["item_key"]: row for row in rows}
    items: list[ReviewItem] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        items += load_items(
            store,
            model,
            [(row["item_key"], row["mask_ids"], row["priority"]) for row in rows if row["model"] == model],
        )
    items.sort(key=lambda item: -item.priority)
    showable = {item.item_key: item for item in items}
    changed = [
        shrink_plan(row, showable.get(key))
        for key, row in by_key.items()
        if key not in showable or len(showable[key].masks) < len(row["mask_ids"])
    ]
    store.append("reviews", changed)
    by_key |= {row["item_key"]: row for row in changed}
    report.closed += len(by_key) - len(items)
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(items))

    def sent(task_ids: dict[str, str]) -> None:
        store.append("reviews", [mark_sent(by_key[key], task_id) for key, task_id in task_ids.items()])
        report.items += len(task_ids)
        report.masks += sum(len(by_key[key]["mask_ids"]) for key in task_ids)
        tell(len(task_ids))

    def left_out(item: ReviewItem, why: str) -> None:
        report.leave_out(item, why)
        tell(1)

    queue.send(items, sent, left_out, answered_keys(store, queue.name))


def _renew(
    store: Store,
    queue: ReviewQueue,
    rows: Sequence[Mapping[str, Any]],
    there: Mapping[str, str],
    model: str,
    report: PushReport,
) -> None:
    """Let unanswered items of older models show this model's most uncertain masks of the same image.

    Killed in between, the items that were changed and not written down are changed once more.
    """
    old = {row["item_key"]: row for row in rows if row["model"] != model}
    if not old:
        return
    free: dict[str, list[str]] = {}
    images = sorted({row["image_id"] for row in old.values()})
    of_images = store.read(lambda snapshot: read_free_masks(snapshot, queue.name, model, images)).candidates
    for i in np.argsort(-of_images.uncertainty_N, kind="stable").tolist():
        if of_images.people_N[i]:
            free.setdefault(of_images.image_ids[i], []).append(of_images.mask_ids[i])
    groups: list[tuple[str, list[str], None]] = []
    for key, row in old.items():  # an image of which the new model has nothing to ask keeps its masks
        of, count = free.get(row["image_id"], []), len(row["mask_ids"])
        if of:
            groups.append((key, of[:count], None))
            free[row["image_id"]] = of[count:]
    renewed: list[dict[str, Any]] = []
    for item in load_items(store, model, groups):
        task_id = there[item.item_key]
        try:
            if not queue.update(task_id, item):
                continue
        except ImageError as error:
            report.leave_out(item, str(error))
            continue
        shows = {
            "model": model,
            "mask_ids": [mask.mask_id for mask in item.masks],
            # None of them is of a random draw any more.
            "chosen_by": ["uncertainty"] * len(item.masks),
            "uncertainty": item.uncertainty,
            "priority": item.priority,
        }
        renewed.append(mark_sent({**old[item.item_key], **shows}, task_id))
        if len(renewed) == _RENEWED_AT_ONCE:
            store.append("reviews", renewed)
            report.renewed, renewed = report.renewed + len(renewed), []
    store.append("reviews", renewed)
    report.renewed += len(renewed)
