"""What people answered, as rows of `labels`: one row a region, and one for every mask that they did not keep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from engine.masks.rle import encode_masks, mask_iou
from engine.review.label_studio_json import COMMENT, KIND, KINDS, VERDICT
from engine.review.queue import AnsweredTask
from engine.review.shapes import draw_region, is_shape

_NO_OBJECT = "no object"
_LONGEST_S = float(np.finfo(np.float32).max)  # that the column holds


@dataclass(frozen=True)
class AskedItem:
    """What a task asks about, as the store knows it.

    Attributes:
        image_id, model, size: as in `ReviewItem`.
        mask_ids: masks that the task shows.
        rles: run lengths by mask_id, of these and of others that its answers hold.
        models: that made the masks of `rles`, where it is known.
    """

    image_id: str
    model: str
    size: tuple[int, int]
    mask_ids: tuple[str, ...]
    rles: Mapping[str, str]
    models: Mapping[str, str] = field(default_factory=dict)


def read_answers(queue: str, task: AnsweredTask, item: AskedItem) -> list[dict[str, Any]]:
    """Rows of `labels` (without `pulled_at`) for all answers of a task.

    Where several people answered, `agreement` says of each mask how far they drew the same.
    """
    rows = [row for answer in task.annotations for row in _read_answer(queue, task, item, answer)]
    if len(_find_answered(rows)) > 1:
        _add_agreement(rows, item.size)
    return rows


def list_results(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The regions of an answer, and what is said of them, as far as they are what Label Studio writes."""
    results = answer.get("result")
    return [of for of in results if _is_result(of)] if isinstance(results, list) else []


def identify(answer: Mapping[str, Any], task: AnsweredTask) -> tuple[str, datetime]:
    """What the queue calls an answer, and when it was last changed."""
    changed_at = _read_time(answer.get("updated_at") or answer.get("created_at"), task.changed_at)
    return str(answer.get("id") or answer.get("unique_id") or _hash_answer(answer)), changed_at


def digest_answer(answer: Mapping[str, Any]) -> str:
    """Hash of all that rows of `labels` take from an answer, 16 hex digits; their `label_id` begins with it.

    What else a server says of an answer may change by itself.
    """
    said = [answer.get("result"), answer.get("was_cancelled"), answer.get("lead_time")]
    text = json.dumps([*said, _name_annotator(answer.get("completed_by"))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def withdraw(row: Mapping[str, Any], task: AnsweredTask) -> dict[str, Any]:
    """The row that takes the place of an answer which is no longer there."""
    gone = {"verdict": "withdrawn", "said": None, "rle": None, "area": None, "iou": None, "agreement": None}
    at = {"answered_at": task.changed_at, "task_changed_at": task.changed_at}
    name = _name(row["queue"], row["task_id"], row["annotation_id"], row["region"], task.changed_at)
    return {**row, **gone, **at, "label_id": row["label_id"][:16] + name}


def _read_answer(
    queue: str, task: AnsweredTask, item: AskedItem, answer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    annotation_id, answered_at = identify(answer, task)
    digest = digest_answer(answer)
    results = list_results(answer)
    regions = [result for result in results if is_shape(result)]
    there = {str(region.get("id", "")) for region in regions}
    model, asked_ids = _find_shown(item, there)
    common: dict[str, Any] = {
        "queue": queue,
        "item_key": task.item_key,
        "task_id": task.task_id,
        "annotation_id": annotation_id,
        "annotator": _name_annotator(answer.get("completed_by")),
        "image_id": item.image_id,
        "model": model,
        "height": item.size[0],
        "width": item.size[1],
        "seconds": _read_seconds(answer.get("lead_time")),
        "answered_at": answered_at,
        "task_changed_at": task.changed_at,
    }
    said = {
        result["id"]: chosen for result in results if (chosen := _choice(result, VERDICT)) and "id" in result
    }
    kinds = {
        result["id"]: chosen for result in results if (chosen := _choice(result, KIND)) and "id" in result
    }
    comment = "\n".join(_text(result) for result in results if result.get("from_name") == COMMENT).strip()

    def row(region: str, verdict: str, mask_HW: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
        kind = kinds.get(region)
        made = {
            **common,
            "label_id": digest + _name(queue, task.task_id, annotation_id, region, answered_at),
            "mask_id": region if region in item.rles or region in item.mask_ids else None,
            "region": region,
            "verdict": verdict,
            "said": said.get(region),
            "task": kind if kind in KINDS else None,
            "rle": None if mask_HW is None else encode_masks(mask_HW[None])[0],
            "area": None if mask_HW is None else int(np.count_nonzero(mask_HW)),
            "iou": None,
            "agreement": None,
            "comment": comment or None,
        }
        return {**made, **more}

    if answer.get("was_cancelled"):
        return [row(mask_id, "skipped") for mask_id in asked_ids] or [row("", "skipped")]
    if results != (answer.get("result") or []):
        # Whatever the rest is, it may be of a mask that would pass for one they took away.
        return [row("", "unreadable", comment="The answer holds what Label Studio does not write.")]
    rows = []
    for region in regions:
        name = str(region.get("id", ""))
        if said.get(name) == _NO_OBJECT:  # the mask stays in the answer: the verdict decides
            rows.append(row(name, _NO_OBJECT))
            continue
        try:
            mask_HW = draw_region(region, item.size)
        except ValueError as error:
            rows.append(row(name, "unreadable", comment=str(error)))
            continue
        if not mask_HW.any():
            rows.append(row(name, "deleted" if name in item.rles else "nothing"))
            continue
        drawn = row(name, "new", mask_HW)
        if shown := item.rles.get(name):
            iou = float(mask_iou([drawn["rle"]], [shown], *item.size)[0, 0])
            drawn |= {"verdict": "correct" if iou == 1 else "fixed", "iou": iou}
        rows.append(drawn)
    if not there or there & set(asked_ids):
        rows += [row(mask_id, "deleted") for mask_id in asked_ids if mask_id not in there]
    return rows or [row("", "nothing")]


def _find_shown(item: AskedItem, there: set[str]) -> tuple[str, Sequence[str]]:
    """The model and the masks that an answer with these regions is about."""
    others = sorted(there & item.models.keys())
    if not others or there & set(item.mask_ids):
        return item.model, item.mask_ids
    # It was begun before the masks were replaced, and holds those that were there.
    return item.models[others[0]], others


def _add_agreement(rows: list[dict[str, Any]], size: tuple[int, int]) -> None:
    """Mean IoU of each row's mask with what every other annotator made of the same region; none of it counts as 0.

    New masks are each compared with the other's most alike one.
    """
    answers = _find_answered(rows)
    drawn = [row for row in rows if row["rle"]]
    place = {id(row): i for i, row in enumerate(drawn)}
    rles = [row["rle"] for row in drawn]
    iou_DD = mask_iou(rles, rles, *size)
    for row in rows:
        if row["verdict"] in ("skipped", "nothing", "unreadable"):
            continue
        mine, ious = place.get(id(row)), []
        for other in answers - {row["annotation_id"]}:
            of = [each for each in rows if each["annotation_id"] == other]
            alike = [
                each
                for each in of
                if each["region"] == row["region"] or (row["mask_id"] is None and each["mask_id"] is None)
            ]
            theirs = [place[id(each)] for each in alike if id(each) in place]
            if mine is None:
                ious.append(float(not theirs))
            else:
                ious.append(max(iou_DD[mine, theirs], default=0.0))
        row["agreement"] = float(np.mean(ious))


def _find_answered(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Answers of which anything can be read."""
    return {row["annotation_id"] for row in rows if row["verdict"] not in ("skipped", "unreadable")}


def _is_result(result: Any) -> bool:
    if not isinstance(result, Mapping) or not isinstance(result.get("id"), str | int | None):
        return False
    value = result.get("value") or {}
    return isinstance(value, Mapping) and isinstance(value.get("choices") or [], list)


def _choice(result: Mapping[str, Any], name: str) -> str | None:
    if result.get("from_name") != name:
        return None
    chosen = (result.get("value") or {}).get("choices") or []
    return str(chosen[0]) if chosen else None


def _text(result: Mapping[str, Any]) -> str:
    text = (result.get("value") or {}).get("text") or ""
    return (
        "\n".join(map(str, text)) if isinstance(text, Sequence) and not isinstance(text, str) else str(text)
    ).strip()


def _name_annotator(completed_by: Any) -> str | None:
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)


def _read_time(text: Any, otherwise: datetime) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return otherwise
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _read_seconds(time: Any) -> float | None:
    """None for what is no time: one NaN among them, and no average says anything."""
    return float(time) if isinstance(time, int | float) and 0 <= time <= _LONGEST_S else None


def _hash_answer(answer: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(answer.items(), key=lambda of: of[0])).encode()).hexdigest()[:16]


def _name(queue: str, task: str, annotation: str, region: str, answered_at: datetime) -> str:
    text = "\0".join([queue, task, annotation, region, answered_at.isoformat()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
