"""A queue that is a folder lies in people's hands."""

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
