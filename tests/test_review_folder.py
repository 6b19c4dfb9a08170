"""A queue that is a folder lies in people's hands: they mend its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from review_sides import FolderSide, label_pool, write_pool

from engine.review.pull import pull_answers
from engine.review.push import push_masks
from engine.store import Store


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
