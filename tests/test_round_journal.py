"""The journal of rounds: what is written down is not done again, and one run holds a round at a time."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from store_rows import fetch

from engine.judging import find_unjudged
from engine.rounds import RoundJournal, hold_round
from engine.store import Store
from engine.store.layout import attempt_time
from schemas.errors import TransientError

PARENT = "nano@000000000000"


class Work:
    """Counts how often it is done."""

    def __init__(self, **numbers: Any) -> None:
        self.numbers, self.done = numbers, 0

    def __call__(self) -> dict[str, Any]:
        self.done += 1
        return self.numbers


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "masks"))


def test_a_round_goes_on_where_it_was_and_the_next_begins_after_its_last_step(store: Store) -> None:
    first = RoundJournal(store)
    label = Work(model=PARENT, images=3)
    assert first.run("pseudolabel", "nano", label) == label.numbers
    assert first.numbers("triage") is None
    again = RoundJournal(store)
    assert again.round_id == first.round_id
    assert again.run("pseudolabel", "nano", label) == label.numbers
    assert label.done == 1, "what is written down is not done again"
    again.run("rescore", PARENT, Work(skipped="refused"))
    again.run("report", PARENT, Work(page="p.html"))
    rows = fetch(store, "SELECT step, model, outcome FROM rounds ORDER BY ended_at")
    assert rows == [
        ("pseudolabel", PARENT, "done"), ("rescore", PARENT, "skipped"), ("report", PARENT, "done"),
    ]  # fmt: skip
    following = RoundJournal(store)
    assert following.round_id > first.round_id
    assert following.numbers("pseudolabel") is None


def test_a_step_that_fails_is_not_written_down(store: Store) -> None:
    def fail() -> dict[str, Any]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        RoundJournal(store).run("pseudolabel", "nano", fail)
    assert fetch(store, "FROM rounds") == []


def test_a_round_sorts_behind_those_of_a_machine_whose_clock_is_ahead(store: Store) -> None:
    ahead = f"{(datetime.now(UTC) + timedelta(days=1)).strftime('%Y%m%dT%H%M%S%f')}-{'f' * 16}"
    now = datetime.now(UTC)
    row = {"round_id": ahead, "model": PARENT, "outcome": "done", "numbers": "{}"}
    store.append("rounds", [{**row, "step": "report", "began_at": now, "ended_at": now}])
    journal = RoundJournal(store)
    assert journal.round_id > ahead
    assert attempt_time(journal.round_id) > now
    journal.run("pseudolabel", "nano", Work(model=PARENT))
    assert RoundJournal(store).round_id == journal.round_id


def test_two_runs_do_not_both_write_a_step_down(store: Store) -> None:
    """As two machines would: the lock holds on one."""
    one = RoundJournal(store)
    one.run("pseudolabel", "nano", Work(model=PARENT))
    other = RoundJournal(store)
    one.run("triage", PARENT, Work())
    with pytest.raises(TransientError, match="Run it again"):
        other.run("triage", PARENT, Work())
    begun_as_well = RoundJournal(Store(f"{store.files.label}-2"))
    RoundJournal(Store(f"{store.files.label}-2")).run("pseudolabel", "nano", Work(model=PARENT))
    with pytest.raises(TransientError):
        begun_as_well.run("pseudolabel", "nano", Work(model=PARENT))
    assert fetch(store, "SELECT count(*) FROM rounds WHERE step = 'triage'") == [(1,)]


HOLDER = """
import sys
from engine.rounds import hold_round
from engine.store import Store
with hold_round(Store(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_run_holds_a_round_however_its_store_is_spelt_and_a_killed_one_lets_go(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", HOLDER, store.files.label]
    holder = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TransientError, match="Another run"), hold_round(store):
        pass
    with hold_round(Store(store.files.label + "-other")):
        pass
    folder, linked = Path(store.files.label), tmp_path / "linked"
    linked.symlink_to(folder.parent)
    monkeypatch.chdir(folder.parent)
    for spelt in (
        folder.name,
        f"{folder}/",
        f"file://{folder}",
        f"../{tmp_path.name}/{folder.name}",
        f"{linked}/{folder.name}",
    ):
        with pytest.raises(TransientError, match="Another run"), hold_round(Store(spelt)):
            pass
    holder.kill()
    holder.wait()
    with hold_round(store):
        pass


@pytest.mark.parametrize(
    ("one", "same", "others"),
    [
        ("memory://masks", "memory://masks/", ["memory://masks-2"]),
        ("s3://photos/masks", "s3a://photos/masks/", ["s3://photos", "s3://photos/masks/2"]),
    ],
)
def test_a_round_is_held_in_a_bucket_however_it_is_spelt(one: str, same: str, others: list[str]) -> None:
    with hold_round(Store(one)):
        with pytest.raises(TransientError, match="Another run"), hold_round(Store(same)):
            pass
        for other in others:
            with hold_round(Store(other)):
                pass


def record_version(
    store: Store, version: str, folder: Path, *, parent: str | None, sets: list[str], name: str = "nano"
) -> str:
    weights = folder / f"{version}.safetensors"
    weights.write_bytes(b"weights")
    about = {"name": name, "version": version, "package": "segment-anything", "sha256": version}
    data = json.dumps({"human": dict.fromkeys(sets, 3)})
    size = {"parameters": 1, "image_size": 512}
    model = f"{name}@{version}"
    store.record_model(
        {"model": model, **about, **size, "source": str(weights), "parent": parent, "data": data}
    )
    return model


def test_a_version_that_learnt_from_people_is_found_until_somebody_judges_it(
    store: Store, tmp_path: Path
) -> None:
    record_version(store, "0" * 12, tmp_path, parent=None, sets=[])
    assert find_unjudged(store, PARENT) is None
    record_version(store, "1" * 12, tmp_path, parent=PARENT, sets=["labelled"])
    assert find_unjudged(store, PARENT) is None, "it learnt nothing of people's answers"
    taught = record_version(store, "2" * 12, tmp_path, parent=PARENT, sets=["answers"])
    found = find_unjudged(store, PARENT)
    assert found is not None
    assert found["model"] == taught
    assert find_unjudged(store, "nano@another") is None
    record_version(store, "0" * 12, tmp_path, parent=None, sets=[])
    assert find_unjudged(store, PARENT), "labelling with a model is no fine-tuning"

    (tmp_path / f"{'2' * 12}.safetensors").unlink()
    assert find_unjudged(store, PARENT) is None, "its weights are gone"
    refused = record_version(store, "3" * 12, tmp_path, parent=PARENT, sets=["answers"])
    decision = {"name": "nano", "source": "s", "previous": PARENT, "previous_source": "p", "reason": "worse"}
    store.record_promotion({"model": refused, "action": "refused", **decision})
    assert find_unjudged(store, PARENT) is None
    in_vain = record_version(store, "4" * 12, tmp_path, parent=PARENT, sets=["answers"])
    assert find_unjudged(store, PARENT)
    RoundJournal(store).run("promote", in_vain, Work(promoted=False, reason="nothing is kept out"))
    assert find_unjudged(store, PARENT) is None, "a round tried, and would try for ever"


def test_a_version_is_found_though_another_model_of_the_store_learnt_later(
    store: Store, tmp_path: Path
) -> None:
    taught = record_version(store, "1" * 12, tmp_path, parent=PARENT, sets=["answers"])
    of_other = "large@000000000000"
    other = record_version(store, "2" * 12, tmp_path, parent=of_other, sets=["answers"], name="large")
    for parent, version in ((PARENT, taught), (of_other, other)):
        found = find_unjudged(store, parent)
        assert found is not None
        assert found["model"] == version


LEARNER = """
import sys
from pathlib import Path
from engine.learn.checkpoints import hold_models
with hold_models(Path(sys.argv[1])), hold_models(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_learning_into_one_folder_waits_for_who_does(tmp_path: Path) -> None:
    """The round holds it, and the fine-tuning that it calls holds it again."""
    command = [sys.executable, "-c", LEARNER, str(tmp_path / "models")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [
        subprocess.Popen(command, cwd=Path(__file__).parents[1], text=True, **pipes)  # type: ignore[call-overload]
        for _ in range(2)
    ]
    said = select.select([of.stdout for of in processes], [], [], 60)[0]
    assert len(said) == 1
    assert not select.select([of.stdout for of in processes if of.stdout not in said], [], [], 2)[0]
    [first] = [of for of in processes if of.stdout in said]
    [second] = [of for of in processes if of is not first]
    first.kill()
    assert second.stdout.readline() == "held\n"
    for process in processes:
        process.kill()
        process.communicate()
    assert not list(tmp_path.iterdir()), "what is only held is not made"
