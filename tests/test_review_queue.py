"""The most uncertain masks go to people and come back as labels: the same for a folder and for a real Label Studio."""

from __future__ import annotations

import copy
import json
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
import pyarrow as pa
import pytest
from label_studio import LabelStudio
from review_sides import MODEL, SIZE, FolderSide, ServerSide, Side, disk, label_pool, write_pool
from store_rows import tables_of

from engine.masks.rle import decode_rle
from engine.review.brush import decode_brush, encode_brush
from engine.review.connection import Connection
from engine.review.label_studio import LabelStudioQueue
from engine.review.pull import pull_answers
from engine.review.push import PushReport, push_masks
from engine.review.selection import load_items
from engine.store import Snapshot, Store
from schemas.errors import ConfigError
from schemas.settings import AcquisitionSettings

NEWER = "nano@fedcba987654"


@pytest.fixture(params=["folder", pytest.param("label-studio", marks=pytest.mark.slow)])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    if request.param == "folder":
        return FolderSide(tmp_path / "queue")
    return server_side(request.getfixturevalue("label_studio"))


def server_side(server: LabelStudio) -> ServerSide:
    """A project of its own."""
    name = f"queue-{uuid4().hex[:8]}"
    queue = LabelStudioQueue(
        Connection(server.url, server.token),
        name,
        server.media / name,
        f"/data/local-files/?d={name}/",
        annotators=2,
    )
    return ServerSide(server.url, server.token, queue)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "masks"))


@pytest.fixture
def pool(tmp_path: Path, store: Store) -> dict[str, list[dict[str, Any]]]:
    """Masks by file name, four of each of five pictures; those of the first picture are the most uncertain."""
    return label_pool(store, write_pool(tmp_path / "pool", 5))


def shown(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The regions as the editor opens them: what Submit sends if nobody touches them."""
    return copy.deepcopy(task["predictions"][0]["result"])  # type: ignore[no-any-return]


def brush(region: dict[str, Any], mask: np.ndarray, **changes: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["object"]}
    return {**region, "origin": "prediction-changed", "value": value, **changes}


def choose(region: dict[str, Any], name: str, word: str) -> dict[str, Any]:
    about = {
        key: region[key] for key in ("id", "to_name", "original_width", "original_height", "image_rotation")
    }
    return {**about, "from_name": name, "type": "choices", "value": {"choices": [word]}}


def labels(store: Store) -> list[dict[str, Any]]:
    return store.query("FROM labels ORDER BY annotation_id, region").to_pylist()


def test_a_budget_of_masks_is_sent_most_uncertain_first_and_only_once(
    side: Side, store: Store, pool: Any
) -> None:
    report = push_masks(store, side.queue, 7)
    assert (report.masks, report.waiting, report.left_out) == (7, 7, [])
    tasks = side.tasks()
    sent = {region["id"] for task in tasks for region in task["predictions"][0]["result"]}
    every = sorted((row for of in pool.values() for row in of), key=lambda row: -row["uncertainty"])
    assert sent == {row["mask_id"] for row in every[:7]}
    scores = [task["predictions"][0]["score"] for task in tasks]
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(0.1)
    first = tasks[0]
    assert first["data"]["why"].startswith(
        "mask 1  uncertainty 0.90: the model expects a larger model to do better by 0.07"
    )
    for region in shown(first):
        stored = next(row for row in every if row["mask_id"] == region["id"])
        assert (region["original_width"], region["original_height"]) == (stored["width"], stored["height"])
        drawn = decode_brush(region["value"]["rle"], (stored["height"], stored["width"])) > 127
        assert np.array_equal(drawn, decode_rle([stored["rle"]], stored["height"], stored["width"])[0])

    again = push_masks(store, side.queue, 7)
    assert (again.masks, again.waiting) == (0, 7), "what waits counts"
    more = push_masks(store, side.queue, 9)
    assert (more.masks, more.waiting) == (2, 9)
    regions = [region["id"] for task in side.tasks() for region in task["predictions"][0]["result"]]
    assert len(regions) == len(set(regions)) == 9
    rows = store.query("SELECT state, sum(len(mask_ids)) AS masks FROM reviews GROUP BY state").to_pylist()
    assert rows == [{"state": "sent", "masks": 9}]


def test_a_push_that_is_started_while_another_is_at_work_sends_only_what_that_one_has_not(
    side: Side, store: Store, pool: Any
) -> None:
    second: list[PushReport] = []
    other = threading.Thread(target=lambda: second.append(push_masks(Store(store.files.root), side.queue, 9)))

    def start_the_other(*_: int) -> None:
        if not other.ident:
            other.start()
            other.join(3)

    first = push_masks(store, side.queue, 7, progress=start_the_other)
    other.join()
    assert (first.masks, first.waiting) == (7, 7)
    assert [(report.masks, report.waiting) for report in second] == [(2, 9)]
    regions = [region["id"] for task in side.tasks() for region in shown(task)]
    assert len(regions) == len(set(regions)) == 9


@pytest.mark.slow
def test_pushes_of_two_machines_send_a_task_once(
    label_studio: LabelStudio,
    store: Store,
    pool: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side, other = server_side(label_studio), server_side(label_studio)
    other.queue._title = side.queue._title  # type: ignore[attr-defined]
    monkeypatch.setattr("engine.review.label_studio._AT_ONCE", 2)
    reports: list[PushReport] = []

    def push_elsewhere(*_: int) -> None:
        if not reports:
            monkeypatch.setenv("GAPMAP_CACHE", str(tmp_path / "of-another-machine"))
            reports.append(PushReport("", ""))
            reports.append(push_masks(store, other.queue, 20))

    push_masks(store, side.queue, 20, progress=push_elsewhere)
    assert reports[1].masks == 12, "what was sent and planned was seen"
    keys = [task["data"]["item_key"] for task in side.tasks()]
    assert len(keys) == len(set(keys)) == 5


def test_a_crowded_image_becomes_several_tasks(side: Side, store: Store, tmp_path: Path) -> None:
    label_pool(store, write_pool(tmp_path / "crowd", 1, (200, 260)), masks=35)
    push_masks(store, side.queue, 100, acquisition=AcquisitionSettings(per_image=40))
    counts = [len(task["predictions"][0]["result"]) for task in side.tasks()]
    assert sorted(counts) == [5, 30]


def test_pictures_that_people_see_are_upright_copies(
    side: Side, store: Store, pool: Any, request: pytest.FixtureRequest
) -> None:
    push_masks(store, side.queue, 20)
    for task in side.tasks():
        name = task["data"]["image"].rpartition("/")[2].rpartition("=")[2]
        if isinstance(side, FolderSide):
            folder = Path(side.queue.name.partition(":")[2]) / "media"
        else:
            folder = side.queue._media  # type: ignore[attr-defined]
        picture = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        assert picture.shape[:2] == SIZE
        assert b"Exif" not in (folder / name).read_bytes()[:200]
        map_name = task["data"]["map"].rpartition("/")[2].rpartition("=")[2]
        assert cv2.imread(str(folder / map_name)).shape[:2] == SIZE


def test_every_kind_of_answer_becomes_its_row(side: Side, store: Store, pool: Any) -> None:
    push_masks(store, side.queue, 20)
    untouched, edited, removed, skipped, empty = side.tasks()
    regions = shown(untouched)
    side.answer(
        untouched, [*regions, choose(regions[0], "kind", "part"), choose(regions[1], "verdict", "correct")]
    )
    regions = shown(edited)
    larger = disk(0, 11)
    new = {**copy.deepcopy(regions[0]), "id": "drawn-new", "origin": "manual"}
    comment = {
        "id": "c",
        "from_name": "comment",
        "to_name": "image",
        "type": "textarea",
        "value": {"text": ["a smear\n"]},
    }
    side.answer(
        edited,
        [
            brush(regions[0], larger),
            *regions[1:3],
            choose(regions[1], "verdict", "no object"),
            brush(new, disk(12, 5)),
            comment,
        ],
    )
    side.answer(removed, [])
    side.answer(skipped, shown(skipped), skip=True)
    del empty

    report = pull_answers(store, side.queue)
    assert report.answers == 4
    rows = labels(store)
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row["item_key"], []).append(row)
    same = by_key[untouched["data"]["item_key"]]
    assert [row["verdict"] for row in same] == ["correct"] * 4
    assert {row["iou"] for row in same} == {1.0}
    assert sorted(row["task"] or "" for row in same) == ["", "", "", "part"]
    assert sorted(row["said"] or "" for row in same) == ["", "", "", "correct"]
    assert all(row["seconds"] == 3.5 and row["model"] == MODEL and row["annotator"] for row in same)
    mixed = {row["region"]: row for row in by_key[edited["data"]["item_key"]]}
    fixed = mixed[regions[0]["id"]]
    assert fixed["verdict"] == "fixed"
    assert fixed["mask_id"] == regions[0]["id"]
    assert np.array_equal(decode_rle([fixed["rle"]], *SIZE)[0], larger)
    assert fixed["iou"] == pytest.approx(disk(0).sum() / larger.sum())
    assert fixed["comment"] == "a smear"
    assert mixed[regions[1]["id"]]["verdict"] == "no object"
    assert mixed[regions[1]["id"]]["rle"] is None
    assert mixed[regions[2]["id"]]["verdict"] == "correct"
    assert mixed[regions[3]["id"]]["verdict"] == "deleted"
    drawn = mixed["drawn-new"]
    assert (drawn["verdict"], drawn["mask_id"], drawn["iou"]) == ("new", None, None)
    assert np.array_equal(decode_rle([drawn["rle"]], *SIZE)[0], disk(12, 5))
    assert {row["verdict"] for row in by_key[removed["data"]["item_key"]]} == {"deleted"}
    assert {row["verdict"] for row in by_key[skipped["data"]["item_key"]]} == {"skipped"}
    assert len(by_key) == 4
    assert pull_answers(store, side.queue).answers == 0, "nothing comes twice"
    assert labels(store) == rows


def test_an_answer_that_is_changed_comes_again_and_one_that_is_deleted_is_withdrawn(
    side: Side, store: Store, pool: Any
) -> None:
    push_masks(store, side.queue, 8)
    task, other = side.tasks()[:2]
    regions = shown(task)
    answer = side.answer(task, regions)
    kept = side.answer(other, shown(other))
    pull_answers(store, side.queue)
    side.change(task, answer, [brush(regions[0], disk(0, 12)), *regions[2:]])
    assert pull_answers(store, side.queue).answers == 1
    rows = {row["region"]: row for row in labels(store) if row["annotation_id"] == answer}
    assert rows[regions[0]["id"]]["verdict"] == "fixed"
    assert rows[regions[1]["id"]]["verdict"] == "deleted", "what was correct before is not so any more"
    assert len(rows) == len(regions)
    side.withdraw(task, answer)
    pull_answers(store, side.queue)
    verdicts = {row["annotation_id"]: row["verdict"] for row in labels(store)}
    assert verdicts == {answer: "withdrawn", kept: "correct"}
    assert pull_answers(store, side.queue).answers == 0


def test_two_annotators_of_one_task_are_kept_apart_and_their_agreement_told(
    side: Side, store: Store, pool: Any
) -> None:
    push_masks(store, side.queue, 20)
    task = side.tasks()[0]
    regions = shown(task)
    first = side.answer(task, regions)
    pull_answers(store, side.queue)
    assert {row["agreement"] for row in labels(store)} == {None}
    second = side.answer(task, [brush(regions[0], disk(0, 11)), *regions[1:-1]], user=2)
    pull_answers(store, side.queue)
    rows = labels(store)
    assert {row["annotation_id"] for row in rows} == {first, second}
    agreement = {(row["annotation_id"], row["region"]): row["agreement"] for row in rows}
    shared = disk(0).sum() / disk(0, 11).sum()
    for answer in (first, second):
        assert agreement[answer, regions[0]["id"]] == pytest.approx(shared)
        assert agreement[answer, regions[1]["id"]] == 1.0
        assert agreement[answer, regions[-1]["id"]] == 0.0, "one of them took it away"


def test_a_newer_model_changes_what_nobody_has_answered_and_leaves_answers_alone(
    side: Side, store: Store, pool: Any, tmp_path: Path
) -> None:
    push_masks(store, side.queue, 8)
    answered, waiting = side.tasks()[:2]
    side.answer(answered, shown(answered))
    pull_answers(store, side.queue)
    fresh = label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    report = push_masks(store, side.queue, 8)
    assert report.model == NEWER
    assert report.renewed >= 1
    now = {task["data"]["item_key"]: task for task in side.tasks()}
    old = shown(answered)
    assert [r["id"] for r in shown(now[answered["data"]["item_key"]])] == [r["id"] for r in old]
    renewed = now[waiting["data"]["item_key"]]
    ids = {row["mask_id"] for of in fresh.values() for row in of}
    assert {region["id"] for region in shown(renewed)} <= ids
    assert renewed["data"]["model"] == NEWER
    answered_places = {row["rle"] for row in pool["00.jpg"]}
    assert answered_places
    asked = [r["id"] for task in now.values() for r in shown(task) if task["data"]["model"] == NEWER]
    image = store.query("SELECT image_id FROM labels LIMIT 1").to_pylist()[0]["image_id"]
    again = [row["mask_id"] for of in fresh.values() for row in of if row["image_id"] == image]
    assert not set(asked) & set(again), "objects that people have answered for are not asked about again"
    side.answer(renewed, shown(renewed))
    pull_answers(store, side.queue)
    rows = [row for row in labels(store) if row["item_key"] == waiting["data"]["item_key"]]
    assert {row["verdict"] for row in rows} == {"correct"}
    assert {row["model"] for row in rows} == {NEWER}


def test_answers_that_nobody_has_pulled_are_left_alone_by_a_newer_model(
    side: Side, store: Store, pool: Any, tmp_path: Path
) -> None:
    push_masks(store, side.queue, 20)
    right, emptied, skipped = answered = side.tasks()[:3]
    side.answer(right, shown(right))
    side.answer(emptied, [])
    side.answer(skipped, shown(skipped), skip=True)
    label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    report = push_masks(store, side.queue, 20)
    assert (report.answers, report.renewed) == (3, 2)
    assert (report.masks, report.waiting) == (4, 12), "only of the skipped image more can be asked"
    now = {task["data"]["item_key"]: task for task in side.tasks()}
    rows = labels(store)
    for task, verdict in zip(answered, ("correct", "deleted", "skipped"), strict=True):
        key = task["data"]["item_key"]
        assert shown(now[key]) == shown(task)
        said = [(row["verdict"], row["mask_id"]) for row in rows if row["item_key"] == key]
        assert sorted(said) == sorted((verdict, region["id"]) for region in shown(task))
    assert {row["model"] for row in rows} == {MODEL}
    assert pull_answers(store, side.queue).answers == 0


def test_a_task_that_is_answered_while_a_push_renews_others_keeps_its_masks(
    side: Side, store: Store, pool: Any, tmp_path: Path
) -> None:
    push_masks(store, side.queue, 12)
    tasks = side.tasks()[:3]
    fresh = label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    side.answer(tasks[0], shown(tasks[0]))
    side.answer(tasks[1], [], skip=True)
    keys = [task["data"]["item_key"] for task in tasks]
    task_ids = side.queue.find(keys)
    renewed = []
    for task, key in zip(tasks, keys, strict=True):
        of = next(of for of in fresh.values() if of[0]["image_id"] == task["data"]["image_id"])
        [item] = load_items(store, NEWER, [(key, [row["mask_id"] for row in of], None)])
        renewed.append(side.queue.update(task_ids[key], item))
    assert renewed == [False, False, True]
    now = {task["data"]["item_key"]: task for task in side.tasks()}
    assert [now[key]["data"]["model"] for key in keys] == [MODEL, MODEL, NEWER]
    assert [shown(now[key]) == shown(task) for key, task in zip(keys, tasks, strict=True)] == [
        True,
        True,
        False,
    ]


@pytest.mark.slow
def test_a_task_that_somebody_has_begun_keeps_its_masks(
    label_studio: LabelStudio, store: Store, pool: Any, tmp_path: Path
) -> None:
    side = server_side(label_studio)
    push_masks(store, side.queue, 20)
    begun = side.tasks()[0]
    label_studio.ask(f"/api/tasks/{begun['id']}/drafts", {"result": shown(begun)[:1], "lead_time": 2})
    label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    assert push_masks(store, side.queue, 20).renewed == 4
    [now] = [task for task in side.tasks() if task["id"] == begun["id"]]
    assert shown(now) == shown(begun)


@pytest.mark.parametrize("told", [True, False])
def test_tasks_that_people_took_away_before_a_newer_model_count_for_the_masks_they_saw(
    store: Store, pool: Any, tmp_path: Path, told: bool
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    right, emptied, skipped = taken = side.tasks()[:3]
    label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    assert push_masks(store, side.queue, 20).renewed == 5
    if not told:  # as a task that was sent before tasks said which masks they show
        for task in taken:
            del task["data"]["mask_ids"]
    side.answer(right, shown(right))
    side.answer(emptied, [] if told else shown(emptied)[:1])
    side.answer(skipped, shown(skipped), skip=True)
    pull_answers(store, side.queue)
    rows = labels(store)
    assert {row["model"] for row in rows} == {MODEL}
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        verdicts.setdefault(row["item_key"], []).append(row["verdict"])
        assert row["mask_id"] in {of["mask_id"] for every in pool.values() for of in every}
    assert [verdicts[task["data"]["item_key"]] for task in taken] == [
        ["correct"] * 4,
        ["deleted"] * 4 if told else ["correct"],
        ["skipped"] * 4,
    ]


def test_a_task_whose_answer_a_later_export_takes_back_shows_the_masks_of_a_newer_model(
    store: Store, pool: Any, tmp_path: Path
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    task = side.tasks()[0]
    side.answer(task, shown(task))
    answers = tmp_path / "queue" / "answers"
    os.utime(answers / f"{task['data']['item_key']}.json", (1.7e9, 1.7e9))
    (answers / "a-later-one.json").write_text(json.dumps([{"data": task["data"], "annotations": []}]))
    label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    assert push_masks(store, side.queue, 20).renewed == 5


def test_a_task_that_somebody_deleted_is_sent_again(side: Side, store: Store, pool: Any) -> None:
    push_masks(store, side.queue, 8)
    tasks = side.tasks()
    side.delete(tasks[0])
    report = push_masks(store, side.queue, 8)
    assert report.masks == len(shown(tasks[0]))
    now = [task["data"]["item_key"] for task in side.tasks()]
    assert sorted(now) == sorted(task["data"]["item_key"] for task in tasks)


def test_an_image_that_is_gone_is_told_and_the_rest_is_sent(
    side: Side, store: Store, pool: Any, tmp_path: Path
) -> None:
    (tmp_path / "pool" / "00.jpg").unlink()
    report = push_masks(store, side.queue, 20)
    assert [name for name, _ in report.left_out] == ["00.jpg"]
    assert report.masks == 16


def test_images_that_are_gone_take_no_room_from_the_rest(
    side: Side, store: Store, pool: Any, tmp_path: Path
) -> None:
    (tmp_path / "pool" / "00.jpg").rename(tmp_path / "away.jpg")
    first = push_masks(store, side.queue, 2)
    assert (first.masks, first.waiting, len(first.left_out)) == (1, 1, 1), "the worst mask is of that image"
    second = push_masks(store, side.queue, 2)
    assert (second.masks, second.waiting, len(second.left_out)) == (1, 2, 1)
    (tmp_path / "away.jpg").rename(tmp_path / "pool" / "00.jpg")
    third = push_masks(store, side.queue, 4)
    assert (third.masks, third.left_out) == (2, []), "it is there again"


def test_a_newer_model_renews_tasks_whose_pool_has_moved_away(
    side: Side, store: Store, pool: Any, tmp_path: Path
) -> None:
    push_masks(store, side.queue, 20)
    label_pool(store, tmp_path / "pool", model=NEWER, tag="second", radius=8)
    (tmp_path / "pool").rename(tmp_path / "moved")
    report = push_masks(store, side.queue, 20)
    assert (report.renewed, report.left_out) == (5, []), "the published copies are enough"


def test_exports_of_any_date_and_of_several_servers_are_read(store: Store, pool: Any, tmp_path: Path) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    tasks = side.tasks()
    side.answer(tasks[0], shown(tasks[0]))
    pull_answers(store, side.queue)
    # Another server numbered its answer 1 as well, and its export lay somewhere for a year.
    answer = {"id": 1, "result": shown(tasks[1]), "completed_by": 7, "updated_at": "2025-01-01T00:00:00Z"}
    late = tmp_path / "queue" / "answers" / "late.json"
    late.write_text(json.dumps([{"data": tasks[1]["data"], "annotations": [answer]}]))
    os.utime(late, (1.7e9, 1.7e9))
    assert pull_answers(store, side.queue).answers == 1
    rows = labels(store)
    assert {row["annotation_id"] for row in rows} == {"1"}
    assert {row["item_key"] for row in rows} == {task["data"]["item_key"] for task in tasks[:2]}
    assert {row["verdict"] for row in rows} == {"correct"}
    assert pull_answers(store, side.queue).answers == 0


def test_a_pull_opens_the_store_once_for_each_batch_of_answers(
    store: Store, pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    task, other = side.tasks()[:2]
    answer = side.answer(task, shown(task))
    pull_answers(store, side.queue)
    side.withdraw(task, answer)
    side.answer(other, shown(other))
    batches, opened = len(list(side.queue.answers(None, frozenset()))), []

    def open_snapshot() -> Snapshot:
        opened.append(1)
        return Store.open_snapshot(store)

    monkeypatch.setattr(store, "open_snapshot", open_snapshot)
    pull_answers(store, side.queue)
    assert len(opened) == 1 + batches, "and once for what is known"
    assert {row["verdict"] for row in labels(store)} == {"withdrawn", "correct"}


@pytest.mark.slow
def test_an_answer_that_is_changed_while_a_pull_reads_hides_no_other(
    label_studio: LabelStudio, store: Store, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = server_side(label_studio)
    push_masks(store, side.queue, 20)
    answers = [(task, side.answer(task, shown(task))) for task in side.tasks()]
    monkeypatch.setattr("engine.review.label_studio._AT_ONCE", 2)
    monkeypatch.setattr("engine.review.pull._OVERLAP", timedelta(0))  # as if hours lay between the answers
    plain, listed = Connection.get, []

    def get(self: Connection, path: str, *arguments: Any, **more: Any) -> Any:
        found = plain(self, path, *arguments, **more)
        if path == "/api/tasks" and len(found["tasks"]) == 2 and not listed:
            listed.append(path)  # a page was read: now its first answer is changed, so that it is the latest
            first = found["tasks"][0]["id"]
            task, answer = next(of for of in answers if of[0]["id"] == first)
            side.change(task, answer, shown(task)[:1])
        return found

    monkeypatch.setattr(Connection, "get", get)
    pull_answers(store, side.queue)
    pull_answers(store, side.queue)
    assert listed
    assert {row["annotation_id"] for row in labels(store)} == {answer for _, answer in answers}
    changed = [row for row in labels(store) if row["verdict"] == "deleted"]
    assert len(changed) == 3, "the change came, too"


@pytest.mark.slow
def test_a_pull_from_a_queue_that_is_not_there_makes_none(label_studio: LabelStudio, store: Store) -> None:
    queue = server_side(label_studio).queue
    for _ in range(2):
        with pytest.raises(ConfigError, match="Push to it first"):
            pull_answers(store, queue)


def test_a_pull_from_a_folder_that_nothing_was_pushed_to_says_so(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("mistyped", "empty"):
        with pytest.raises(ConfigError, match=f"no queue in .*{name}. Push to it first"):
            pull_answers(store, FolderSide(tmp_path / name).queue)


def test_answers_that_are_no_export_of_the_queue_are_counted(store: Store, pool: Any, tmp_path: Path) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    task = side.tasks()[0]
    side.answer(task, shown(task))
    for name, wrong in (("a", {"a": 1}), ("b", [{"data": {"image": "x.png"}, "annotations": []}, 7])):
        (tmp_path / "queue" / "answers" / f"{name}.json").write_text(json.dumps(wrong))
    report = pull_answers(store, side.queue)
    assert (report.answers, report.strangers) == (1, 3)


def test_a_push_that_was_killed_while_it_wrote_a_task_leaves_a_queue_that_is_pushed_to_and_pulled_from(
    store: Store, pool: Any, tmp_path: Path
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 8)
    whole = next((tmp_path / "queue" / "tasks").glob("*.json"))
    text = whole.read_text()
    whole.with_name(f".{whole.stem}-0123456789abcdef.json").write_text(text[:100])
    whole.with_name(f".{whole.stem}-fedcba9876543210.json").write_text(text)
    (tmp_path / "queue" / "answers" / ".copied-in-part.json").write_text(text[:100])
    push_masks(store, side.queue, 9)
    tasks = json.loads((tmp_path / "queue" / "tasks.json").read_text())
    keys = [task["data"]["item_key"] for task in tasks]
    assert len(keys) == len(set(keys)) == store.query("FROM reviews").num_rows
    assert pull_answers(store, side.queue).answers == 0


def test_what_people_have_answered_is_not_handed_to_label_studio_again(
    store: Store, pool: Any, tmp_path: Path
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)

    def handed_on() -> list[dict[str, Any]]:
        return json.loads((tmp_path / "queue" / "tasks.json").read_text())  # type: ignore[no-any-return]

    tasks = handed_on()
    assert tasks == side.tasks(), "most uncertain first"
    answer = side.answer(tasks[0], shown(tasks[0]))
    pull_answers(store, side.queue)
    push_masks(store, side.queue, 1)
    assert handed_on() == tasks[1:]
    side.withdraw(tasks[0], answer)
    pull_answers(store, side.queue)
    push_masks(store, side.queue, 1)
    assert handed_on() == tasks


def test_masks_that_were_labelled_away_before_they_were_shown_are_not_answered_for(
    store: Store, pool: Any, tmp_path: Path
) -> None:
    side, folder = FolderSide(tmp_path / "queue"), tmp_path / "pool"
    folder.rename(tmp_path / "away")
    asked = push_masks(store, side.queue, 20, acquisition=AcquisitionSettings(random_share=0))
    assert (asked.masks, len(asked.left_out)) == (0, 5), "planned, and not shown"
    folder.mkdir()
    for name, masks in (("00.jpg", 2), ("02.jpg", 0)):  # as a run with other settings would that finds fewer
        (tmp_path / "away" / name).rename(folder / name)
        label_pool(store, folder, masks=masks)
        (folder / name).rename(tmp_path / "away" / name)
    folder.rmdir()
    (tmp_path / "away").rename(folder)

    report = push_masks(store, side.queue, 14)
    assert (report.masks, report.items, report.waiting, report.closed) == (14, 4, 14, 1)
    task = next(task for task in side.tasks() if len(shown(task)) == 2)
    side.answer(task, shown(task))
    pull_answers(store, side.queue)
    assert [row["verdict"] for row in labels(store)] == ["correct", "correct"]
    key = task["data"]["item_key"]
    [row] = store.query(f"FROM reviews WHERE item_key = '{key}'").to_pylist()
    assert row["mask_ids"] == [region["id"] for region in shown(task)]
    assert row["chosen_by"] == ["uncertainty"] * 2
    assert push_masks(store, side.queue, 12).closed == 0, "told once"


def test_a_mask_that_was_mended_while_it_was_chosen_is_not_asked_about(
    store: Store, pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, of_image = FolderSide(tmp_path / "queue"), pool["00.jpg"]
    mended = {**of_image[0], "mask_id": "0" * 32, "parent_mask_id": of_image[0]["mask_id"]}
    of_image[0]["replaced_by"] = mended["mask_id"]
    [image] = store.query(f"FROM images WHERE image_id = '{mended['image_id']}'").to_pylist()
    append = store.append

    def mend_before(table: str, rows: list[dict[str, Any]]) -> None:
        """Another process commits what it mended of the image."""
        if rows:
            monkeypatch.setattr(store, "append", append)
            images, tables = tables_of([{**image, "attempt": None, "n_masks": 5}])
            masks = pa.Table.from_pylist([*of_image, mended], schema=tables["masks"].schema)
            store.commit_shard(MODEL, images, {"masks": masks})
        append(table, rows)

    monkeypatch.setattr(store, "append", mend_before)
    report = push_masks(store, side.queue, 20, acquisition=AcquisitionSettings(random_share=0))
    asked = {region["id"] for task in side.tasks() for region in shown(task)}
    held = {row["mask_id"] for of in pool.values() for row in of if row["replaced_by"] is None}
    assert (asked, len(held)) == (held, 19)
    assert (report.masks, report.waiting) == (19, 19)
    planned = store.query("SELECT unnest(mask_ids) AS mask_id FROM reviews").to_pylist()
    assert {row["mask_id"] for row in planned} == held, "nobody is waited for"


@pytest.mark.parametrize(
    "result",
    [
        7,
        [None],
        ["text"],
        [{"id": [1], "type": "choices", "from_name": "verdict", "value": {"choices": ["correct"]}}],
        [{"id": "a", "type": "choices", "from_name": "verdict", "value": {"choices": {"a": 1}}}],
        [{"id": "a", "type": "textarea", "from_name": "comment", "value": [3]}],
    ],
)
def test_an_answer_that_label_studio_does_not_write_is_a_row_and_the_others_are_pulled(
    store: Store, pool: Any, tmp_path: Path, result: Any
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    task, other = side.tasks()[:2]
    odd = side.answer(task, result)
    side.answer(task, shown(task), user=2)
    side.answer(other, shown(other))
    assert pull_answers(store, side.queue).answers == 3
    rows = labels(store)
    assert [row["verdict"] for row in rows if row["annotation_id"] == odd] == ["unreadable"]
    assert {(row["verdict"], row["agreement"]) for row in rows if row["annotation_id"] != odd} == {
        ("correct", None)
    }


def test_a_region_with_a_picture_that_is_none_is_a_row(store: Store, pool: Any, tmp_path: Path) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    task = side.tasks()[0]
    first, *rest = shown(task)
    side.answer(task, [{**first, "type": "bitmask", "value": {"imageDataURL": 7}}, *rest])
    pull_answers(store, side.queue)
    verdicts = {row["region"]: row["verdict"] for row in labels(store)}
    assert verdicts == {first["id"]: "unreadable"} | {region["id"]: "correct" for region in rest}


def test_an_export_without_answers_where_they_belong_is_named(
    store: Store, pool: Any, tmp_path: Path
) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20)
    data = side.tasks()[0]["data"]
    (tmp_path / "queue" / "answers" / "odd.json").write_text(json.dumps([{"data": data, "annotations": [7]}]))
    with pytest.raises(ConfigError, match=r"odd\.json holds an answer .* '7'"):
        pull_answers(store, side.queue)
