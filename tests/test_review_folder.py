"""A queue that is a folder lies in people's hands: they mend its files, move it, and copy it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from review_sides import FolderSide, label_pool, write_pool

from engine.review.pull import pull_answers
from engine.review.push import push_masks
from engine.store import Store
from flows.review import PullSummary
from flows.review_commands import show_answers


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four masks of each of five pictures."""
    made = Store(str(tmp_path / "masks"))
    label_pool(made, write_pool(tmp_path / "pool", 5))
    return made


def export(queue: Path, *tasks: dict[str, Any], **changes: Any) -> None:
    """An answer to each task, as it was shown: always the same one, of the same date."""
    said = {"completed_by": 1, "lead_time": 3.5, "updated_at": "2026-01-01T00:00:00Z", **changes}
    answered = [
        {
            "data": task["data"],
            "annotations": [{"id": number, "result": task["predictions"][0]["result"], **said}],
        }
        for number, task in enumerate(tasks, 1)
    ]
    (queue / "answers" / "export.json").write_text(json.dumps(answered))


def verdicts(store: Store) -> list[str]:
    return [row["verdict"] for row in store.query("FROM labels ORDER BY annotation_id, region").to_pylist()]


def test_an_answer_that_is_mended_in_its_file_comes_again_though_its_date_is_the_same(
    store: Store, tmp_path: Path
) -> None:
    queue = tmp_path / "review"
    side = FolderSide(queue)
    push_masks(store, side.queue, 20)
    task, other = side.tasks()[:2]
    damaged = json.loads(json.dumps(task))
    region = damaged["predictions"][0]["result"][0]
    region["value"]["rle"] = region["value"]["rle"][:20]
    export(queue, damaged, other)
    pull_answers(store, side.queue)
    assert sorted(verdicts(store)) == ["correct"] * 7 + ["unreadable"]
    export(queue, task, other)
    assert pull_answers(store, side.queue).answers == 1
    assert verdicts(store) == ["correct"] * 8
    export(queue, task, other, prediction={"created_ago": "2 hours"})
    assert pull_answers(store, side.queue).answers == 0, "nobody answered otherwise"
    export(queue, task, other, result=task["predictions"][0]["result"][1:], updated_at="2025-12-31T00:00:00Z")
    assert pull_answers(store, side.queue).answers == 0, "an export from before takes no answer back"


@pytest.mark.parametrize("carry", [shutil.move, shutil.copytree])
def test_a_queue_that_is_moved_or_copied_is_answered_and_pushed_to_as_before(
    carry: Any, store: Store, tmp_path: Path
) -> None:
    first = FolderSide(tmp_path / "review")
    push_masks(store, first.queue, 8)
    carry(tmp_path / "review", tmp_path / "elsewhere")
    side = FolderSide(tmp_path / "elsewhere")
    task = side.tasks()[0]
    side.answer(task, task["predictions"][0]["result"])
    report = pull_answers(store, side.queue)
    assert (report.answers, report.strangers) == (1, 0)
    assert store.query("SELECT DISTINCT queue FROM labels").to_pylist() == [{"queue": first.queue.name}]
    assert side.queue.address == str(tmp_path / "elsewhere")
    waiting = 8 - len(task["predictions"][0]["result"])
    again = push_masks(store, side.queue, waiting)
    assert (again.masks, again.waiting) == (0, waiting), "what waits is asked once"


def test_answers_to_another_queue_are_left_alone_and_told_with_its_name(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (FolderSide(tmp_path / name) for name in ("first", "second"))
    push_masks(store, first.queue, 20)
    push_masks(store, second.queue, 1)
    stranger = {**first.tasks()[0], "data": {"item_key": "0" * 32}}
    export(tmp_path / "second", *first.tasks(), stranger)
    report = pull_answers(store, second.queue)
    assert (report.answers, report.strangers, report.elsewhere) == (0, 6, {first.queue.name: 5})
    show_answers(PullSummary(**vars(report)))
    said = capsys.readouterr()
    assert said.out == "0 new or changed answers\n"
    assert (
        f"5 tasks among the answers were sent to {first.queue.name}, not to {second.queue.name}" in said.err
    )
    assert "1 tasks among the answers were never sent from this store" in said.err


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-5.0", "-0.001", "1" + "0" * 400, '"3"', "null"])
def test_a_time_that_is_none_is_left_out_and_averages_stay_right(
    seconds: str, store: Store, tmp_path: Path
) -> None:
    queue = tmp_path / "review"
    side = FolderSide(queue)
    push_masks(store, side.queue, 20)
    task, other = side.tasks()[:2]
    export(queue, task, lead_time="SECONDS")
    text = (queue / "answers" / "export.json").read_text()
    (queue / "answers" / "odd.json").write_text(text.replace('"SECONDS"', seconds))
    export(queue, other)
    pull_answers(store, side.queue)
    averages = "SELECT count(*) AS n, avg(seconds) AS mean, min(seconds) AS least FROM labels"
    assert store.query(averages).to_pylist() == [{"n": 8, "mean": 3.5, "least": 3.5}]
