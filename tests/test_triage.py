"""Triage: the cheapest way for each mask, by costs that answers teach; decided once, written down, and people's masks left alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_rows import MODEL
from triage_rows import NOW, box_rle, commit_scored, decisions_of, label_row, review_row

from engine.learn.answers import read_answers
from engine.store import Store
from engine.triage.costs import Costs, Evidence, learn_costs, warn_of_accepting
from engine.triage.decisions import DECISIONS, decide_masks
from engine.triage.duplicates import settle_duplicates
from engine.triage.evidence import read_evidence
from engine.triage.mending import find_pending
from engine.triage.triage import count_undecided, count_unscored, triage_masks
from schemas.errors import ConfigError
from schemas.settings import TriageSettings

NEXT = "nano@ffffffffffff"
SETTINGS = TriageSettings()
NOBODY = Evidence(*(np.zeros(0) for _ in range(5)), promised={}, gained={}, machine_s={})
COSTS = learn_costs(NOBODY, SETTINGS)
REMEDIES = ("larger model", "better prompt")


def after(**changes: Any) -> Costs:
    changes.setdefault("mended_A", np.zeros(len(changes.get("iou_A", ()))))
    return learn_costs(replace(NOBODY, **changes), SETTINGS)


# What things cost.


def test_without_answers_the_costs_are_as_set() -> None:
    assert (COSTS.look, COSTS.fix) == pytest.approx((SETTINGS.look_s, SETTINGS.fix_s))
    assert (COSTS.error, COSTS.answers) == (SETTINGS.error_s, 0)
    assert COSTS.larger == pytest.approx(SETTINGS.machine_rate * SETTINGS.larger_s)
    assert COSTS.kept == pytest.approx(dict.fromkeys(REMEDIES, SETTINGS.gap_trust))
    # IoU spread about predicted_iou: half of the masks that are expected to be just good are.
    assert COSTS.p_good(np.array([SETTINGS.good_iou])) == pytest.approx(0.5, abs=0.03)
    assert COSTS.p_good(np.array([SETTINGS.good_iou + SETTINGS.spread])) == pytest.approx(0.84, abs=0.05)


def test_many_answers_move_the_probability_towards_what_they_say() -> None:
    """Scores that promise 0.2 too much: what is good from 0.7 on is so from 0.9 on."""
    rng = np.random.default_rng(0)
    said = rng.uniform(0.3, 1, 1500)
    true = (said - 0.2 + rng.normal(0, 0.05, len(said))).clip(0, 1)
    few, many = (after(predicted_iou_A=said[:n], iou_A=true[:n]) for n in (20, 1500))
    assert many.answers == 1500
    assert COSTS.middle < few.middle < many.middle
    assert many.middle == pytest.approx(0.9, abs=0.02)
    assert many.p_good(np.array([0.8]))[0] < 0.1 < COSTS.p_good(np.array([0.8]))[0]
    assert many.slope > COSTS.slope, "and they are surer of it"


def test_masks_that_a_machine_mended_and_that_promise_too_much_are_asked_about() -> None:
    """Scores that say what is so, but for mended masks, which are 0.2 worse than theirs."""
    rng = np.random.default_rng(0)
    said, mended = rng.uniform(0.3, 1, 2000), rng.random(2000) < 0.3
    true = (said - 0.2 * mended + rng.normal(0, 0.05, len(said))).clip(0, 1)
    costs = after(predicted_iou_A=said, iou_A=true, mended_A=mended)
    assert costs.overstated == pytest.approx(0.2, abs=0.03)
    assert costs.middle == pytest.approx(SETTINGS.good_iou, abs=0.02), "the others are as good as they say"
    q = np.array([0.84, 0.84])
    decided = decide_masks(costs.expect_iou(q, np.array([False, True])), {}, {}, costs)
    assert [DECISIONS[place] for place in decided.decision_N] == ["accept", "people"]
    few = after(predicted_iou_A=said[:40], iou_A=true[:40], mended_A=mended[:40])
    assert 0 < few.overstated < costs.overstated, "few answers change little"
    assert COSTS.overstated == 0
    better = after(predicted_iou_A=said, iou_A=(said + 0.1 * mended).clip(0, 1), mended_A=mended)
    assert better.overstated == 0, "never a reason to accept sooner"


def test_answers_that_contradict_the_score_make_it_worthless_but_never_turn_it_round() -> None:
    said = np.linspace(0, 1, 400)
    costs = after(predicted_iou_A=said, iou_A=1 - said)
    p = costs.p_good(np.array([0.0, 0.5, 1.0]))
    assert (np.diff(p) > 0).all()
    assert np.ptp(p) < 0.05
    assert p[1] == pytest.approx((1 - said >= SETTINGS.good_iou).mean(), abs=0.05), "as many as there are"


def test_seconds_are_learnt_from_tasks_and_lunch_does_not_count() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(1, 12, 300)
    wrong = rng.binomial(masks, 0.4)
    seconds = 2.0 * masks + 25.0 * wrong + rng.normal(0, 2, 300)
    seconds[::40] = 5000
    ious = [np.array([1.0] * (n - bad) + [0.4] * bad) for n, bad in zip(masks, wrong, strict=True)]
    costs = after(ious_K=ious, seconds_K=seconds)
    assert (costs.look, costs.fix) == pytest.approx((2, 25), rel=0.1)
    few = after(ious_K=ious[1:2], seconds_K=seconds[1:2])
    assert abs(few.fix - SETTINGS.fix_s) < abs(few.fix - 25), "one task changes little"


def test_people_who_touch_up_good_masks_are_not_asked_as_if_that_took_no_time() -> None:
    """They leave what lies within a tenth of right, and take the longer for all else the further it lies off."""
    rng = np.random.default_rng(0)
    said = rng.uniform(0.2, 1, 3000)
    true = (said + rng.normal(0, 0.12, len(said))).clip(0, 1)
    seconds = np.where(true >= 0.9, 2.5, 5 + 12 * (1 - true))
    costs = after(predicted_iou_A=said, iou_A=true, ious_K=true[:, None], seconds_K=seconds)
    assert costs.people(said).mean() == pytest.approx(seconds.mean(), rel=0.03)
    wrong = SETTINGS.error_s * (true < SETTINGS.good_iou)
    thresholds = np.linspace(0.5, 1, 101)
    spent = [np.where(said >= threshold, wrong, seconds).mean() for threshold in thresholds]
    assert costs.threshold == pytest.approx(thresholds[np.argmin(spent)], abs=0.03)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.5), (0.0, 0.0), (-0.3, 0.0), (9.0, 1.5)])
def test_the_share_of_promised_gain_that_comes_true_is_learnt(share: float, expected: float) -> None:
    promised = np.full(2000, 0.1)
    costs = after(promised={"larger model": promised}, gained={"larger model": share * promised})
    assert costs.kept["larger model"] == pytest.approx(expected, abs=0.02)
    assert costs.kept["better prompt"] == pytest.approx(SETTINGS.gap_trust)


def test_the_threshold_is_where_accepting_and_asking_cost_the_same() -> None:
    q = np.array([COSTS.threshold])
    assert COSTS.accept(q) == pytest.approx(COSTS.people(q))
    assert replace(COSTS, error=COSTS.fix + COSTS.look).threshold == 0
    assert replace(COSTS, look=0.9 * (COSTS.error - COSTS.fix), middle=3).threshold == 1


# What is decided.


def decide(predicted_iou: float, costs: Costs = COSTS, *, tried: str = "", **gaps: float) -> str:
    names = {"larger model": gaps.get("larger", np.nan), "better prompt": gaps.get("prompt", np.nan)}
    decided = decide_masks(
        np.array([predicted_iou]),
        {name: np.array([gap]) for name, gap in names.items()},
        {name: np.array([name == tried]) for name in names},
        costs,
    )
    assert decided.gain_N[0] >= 0
    return DECISIONS[int(decided.decision_N[0])]


def test_a_certain_mask_is_accepted_and_a_hopeless_one_is_for_people() -> None:
    assert decide(0.98) == "accept"
    assert decide(0.2) == "people"
    assert decide(0.2, larger=-0.3, prompt=0.0) == "people"


def test_a_gap_pays_for_its_remedy_and_only_once() -> None:
    assert decide(0.6, larger=0.3) == "larger model"
    assert decide(0.6, larger=0.3, tried="larger model") == "people"
    assert decide(0.6, larger=0.3, prompt=0.2, tried="larger model") == "better prompt"
    assert decide(0.6, larger=0.1, prompt=0.3) == "better prompt"
    assert decide(0.6, replace(COSTS, larger=20.0), larger=0.3) == "people", "the machine is too dear"
    assert decide(0.6, replace(COSTS, kept=dict.fromkeys(REMEDIES, 0.0)), larger=0.3) == "people"
    dear = replace(COSTS, larger=1.0)
    assert [decide(q, dear, larger=0.3) for q in (0.7, 0.99)] == ["larger model", "accept"], (
        "little is left to gain"
    )


def test_where_a_wrong_label_costs_less_than_a_look_everything_is_accepted() -> None:
    cheap = learn_costs(NOBODY, TriageSettings(error_s=2, machine_rate=1))
    assert cheap.threshold == 0
    for q in (0.0, 0.3, 0.7, 1.0):
        assert decide(q, cheap, larger=0.5) == "accept"


def test_slow_answers_that_make_triage_accept_everything_are_told() -> None:
    slow = after(ious_K=np.zeros((12, 1)), seconds_K=np.full(12, 90.0))
    assert (slow.threshold, COSTS.threshold > 0.5) == (0, True)
    assert re.search(
        r"mending \d\d s more, .* costs 30 s.*--error-seconds", warn_of_accepting(slow, SETTINGS)
    )
    dear = TriageSettings(error_s=600)
    assert not warn_of_accepting(replace(slow, error=dear.error_s), dear)
    assert not warn_of_accepting(COSTS, SETTINGS)
    cheap = TriageSettings(error_s=2)
    assert not warn_of_accepting(learn_costs(NOBODY, cheap), cheap), "who set it knows"


# A store.


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "masks"))


MIXED = [
    [{"predicted_iou": 0.99}, {"predicted_iou": 0.3}, {"predicted_iou": 0.6, "model_gap": 0.3}],
    [{"predicted_iou": 0.6, "prompt_gap": 0.3}, {"predicted_iou": 0.97}],
]
WORDS = [["accept", "people", "larger model"], ["better prompt", "accept"]]


def test_every_mask_that_holds_is_decided_on_and_the_newest_triage_is_seen(store: Store) -> None:
    rows = commit_scored(store, MIXED)
    totals = triage_masks(store, MODEL, COSTS)
    wanted = {
        row["mask_id"]: word
        for of, words in zip(rows, WORDS, strict=True)
        for row, word in zip(of, words, strict=True)
    }
    assert decisions_of(store) == wanted
    assert {of.decision: of.masks for of in totals} == {
        "accept": 2,
        "larger model": 1,
        "better prompt": 1,
        "people": 1,
    }
    [row] = store.query(
        "SELECT sum(cost) AS cost, sum(gain) AS gain, avg(p_good) AS p FROM decisions"
    ).to_pylist()
    assert row["cost"] == pytest.approx(sum(of.cost for of in totals), rel=1e-5)
    assert row["gain"] == pytest.approx(sum(of.gain for of in totals), rel=1e-5)
    assert row["p"] == pytest.approx(sum(of.p_good * of.masks for of in totals) / 5, rel=1e-5)
    assert find_pending(store, MODEL, REMEDIES) == sorted({of[0]["image_id"] for of in rows})
    assert find_pending(store, MODEL, ["better prompt"]) == [rows[1][0]["image_id"]]
    triage_masks(store, MODEL, COSTS, ("better prompt",))
    wanted[rows[0][2]["mask_id"]] = "people"
    assert decisions_of(store) == wanted, "the larger model cannot be had any more"


def test_nothing_is_written_where_it_is_only_asked(store: Store) -> None:
    commit_scored(store, MIXED)
    asked = triage_masks(store, MODEL, COSTS, write=False)
    assert not decisions_of(store)
    assert asked == triage_masks(store, MODEL, COSTS)


def test_a_triage_that_is_killed_leaves_every_decision_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.triage.triage._ROWS_AT_ONCE", 2048)
    commit_scored(store, [[{}] * 5000])
    triage_masks(store, MODEL, COSTS)
    before = decisions_of(store)
    assert len(before) == 5000
    told = []

    def end_in_the_middle(done: int, masks: int) -> None:
        told.append(done)
        assert decisions_of(store) == before, "nor does anybody see a part of it meanwhile"
        if len(told) == 2:
            raise KeyboardInterrupt

    others = replace(COSTS, error=0.0)
    with pytest.raises(KeyboardInterrupt):
        triage_masks(store, MODEL, others, progress=end_in_the_middle)
    assert told[-1] < 5000
    assert decisions_of(store) == before
    triage_masks(store, MODEL, others)
    assert set(decisions_of(store).values()) == {"accept"}


def test_answered_masks_are_left_out_and_skipped_ones_are_not(store: Store) -> None:
    unsure = {"predicted_iou": 0.6, "model_gap": 0.3}
    rows = commit_scored(store, [[{**unsure, "rle": box_rle(x, x + 9)} for x in range(0, 40, 10)]])[0]
    triage_masks(store, MODEL, COSTS)
    assert find_pending(store, MODEL, REMEDIES)
    verdicts = ("correct", "skipped", "withdrawn", "deleted")
    store.append("labels", [label_row(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)])
    assert sum(of.masks for of in triage_masks(store, MODEL, COSTS)) == 2
    assert set(decisions_of(store)) == {rows[1]["mask_id"], rows[2]["mask_id"]}
    store.append("labels", [label_row(row, "correct", annotation_id="2") for row in rows[1:3]])
    triage_masks(store, MODEL, COSTS)
    assert decisions_of(store), "nothing newer is decided of this image"
    assert not find_pending(store, MODEL, REMEDIES), "but nobody mends what people have answered for"


def test_what_people_answered_of_one_version_is_neither_accepted_nor_mended_nor_asked_of_the_next(
    store: Store,
) -> None:
    found = [(0, 10), (20, 30), (40, 50)]
    old = commit_scored(store, [[{"rle": box_rle(*of)} for of in found]])[0]
    new = {"predicted_iou": 0.6, "model_gap": 0.3}
    again = [{**new, "mask_id": f"new-{x0}", "rle": box_rle(x0, x1 - 1)} for x0, x1 in found]
    commit_scored(store, [again], model=NEXT)
    assert find_pending(store, NEXT, REMEDIES) == []
    triage_masks(store, NEXT, COSTS)
    assert find_pending(store, NEXT, REMEDIES)
    verdicts = ("no object", "skipped", "correct")
    store.append("labels", [label_row(row, verdict) for row, verdict in zip(old, verdicts, strict=True)])
    totals = triage_masks(store, NEXT, COSTS)
    assert sum(of.masks for of in totals) == 1
    assert set(decisions_of(store)) == {"new-20"}
    assert count_undecided(store, NEXT) == 0, "a round does not wait for the others"
    everything = box_rle(15, 35)  # they drew more than they were shown
    store.append("labels", [label_row(old[1], "fixed", annotation_id="2", rle=everything)])
    assert find_pending(store, NEXT, REMEDIES) == [], "what they were shown counts, too"


def test_masks_that_wait_for_people_are_not_mended(store: Store) -> None:
    rows = commit_scored(store, [[{"predicted_iou": 0.6, "model_gap": 0.3}] * 3])[0]
    triage_masks(store, MODEL, COSTS)
    store.append("reviews", [review_row(rows[:2], "a"), review_row(rows[2:], "b")])
    assert not find_pending(store, MODEL, REMEDIES)
    triage_masks(store, MODEL, COSTS)
    assert set(decisions_of(store).values()) == {"people"}
    store.append("labels", [label_row(row, "skipped", task="a") for row in rows[:2]])
    triage_masks(store, MODEL, COSTS)
    assert sorted(decisions_of(store).values()) == ["larger model", "larger model", "people"]


def test_what_was_tried_on_a_mask_or_made_it_is_not_tried_again(store: Store) -> None:
    gaps = {"predicted_iou": 0.6, "model_gap": 0.3, "prompt_gap": 0.2}
    child = {"parent_mask_id": "first", "repair": "larger model"}
    spent = {"parent_mask_id": "second", "repair": "better prompt", "replaced_by": "second"}
    commit_scored(
        store,
        [
            [
                {**gaps, "mask_id": "first", "replaced_by": "child"},
                {**gaps, "mask_id": "child", **child},
                {**gaps, "mask_id": "second", "model_gap": None},
                {**gaps, "mask_id": "spent", **spent},
                {**gaps, "mask_id": "grandchild", "parent_mask_id": "child", "repair": "better prompt"},
                {**gaps, "mask_id": "other"},
            ]
        ],
    )
    triage_masks(store, MODEL, COSTS)
    assert decisions_of(store) == {
        "child": "people",  # the larger model made it, and a better prompt was tried on it
        "second": "people",
        "grandchild": "people",
        "other": "larger model",
    }


def test_a_store_without_the_columns_of_mending_is_decided_on(store: Store) -> None:
    mended = ("parent_mask_id", "repair", "decoded_by", "replaced_by")
    commit_scored(store, MIXED, drop=mended)
    assert sum(of.masks for of in triage_masks(store, MODEL, COSTS)) == 5


def test_masks_without_heads_are_told_and_never_accepted(store: Store) -> None:
    commit_scored(store, [[{"predicted_iou": None}] * 2])
    with pytest.raises(ConfigError, match="no predicted_iou"):
        triage_masks(store, MODEL, COSTS)
    commit_scored(
        store, [[{"predicted_iou": None}, {"predicted_iou": float("nan")}, {"predicted_iou": 0.99}]]
    )
    totals = triage_masks(store, MODEL, COSTS)
    assert {of.decision: of.masks for of in totals if of.masks} == {"accept": 1}
    assert count_unscored(store, MODEL) == 2


# What answers say.


def test_answers_are_read_as_evidence(store: Store) -> None:
    mended = {"repair": "better prompt", "parent_mask_id": "parent", "rle": box_rle(0, 20)}
    failed = {
        "repair": "larger model",
        "parent_mask_id": "kept",
        "replaced_by": "kept",
        "rle": box_rle(40, 50),
    }
    again = {"repair": "larger model", "parent_mask_id": "mended", "rle": box_rle(0, 20)}
    [rows] = commit_scored(
        store,
        [
            [
                {"mask_id": "parent", "prompt_gap": 0.4, "rle": box_rle(0, 10), "replaced_by": "mended"},
                {"mask_id": "mended", "model_gap": 0.2, **mended, "replaced_by": "again"},
                {"mask_id": "again", **again, "predicted_iou": 0.8},
                {"mask_id": "kept", "model_gap": 0.3, "predicted_iou": float("nan")},
                {"mask_id": "failed", **failed},
                {"mask_id": "gone", "predicted_iou": 0.25},
            ]
        ],
    )
    by_id = {row["mask_id"]: row for row in rows}
    store.append(
        "labels",
        [
            label_row(by_id["again"], "correct", task="t", seconds=30.0, iou=None),
            label_row(by_id["gone"], "no object", task="t", seconds=30.0),
            label_row(by_id["kept"], "fixed", iou=0.5),
            label_row(by_id["failed"], "skipped", seconds=4.0),
        ],
    )
    store.append(
        "rounds", [round_row({"better prompt": {"tried": 4, "held": 1, "seconds": 2.0}}), round_row({})]
    )
    found = read_evidence(store)
    said = sorted(zip(found.predicted_iou_A.tolist(), found.iou_A.tolist(), strict=True))
    assert said == [(0.25, 0), (pytest.approx(0.8), 1)], "a score that is no number says nothing"
    assert dict(zip(found.iou_A.tolist(), found.mended_A.tolist(), strict=True)) == {0: False, 1: True}
    assert ([sorted(ious) for ious in found.ious_K], found.seconds_K.tolist()) == ([[0, 1]], [30])
    # The prompt won 10 of 20 columns, whoever holds now; the larger model no more than was there, and once nothing.
    assert found.promised["better prompt"] == pytest.approx([0.4])
    assert found.gained["better prompt"] == pytest.approx([0.5])
    assert sorted(found.promised["larger model"]) == pytest.approx([0.2, 0.3])
    assert found.gained["larger model"] == pytest.approx([0, 0])
    assert found.machine_s == {"better prompt": 0.5}
    assert learn_costs(found, SETTINGS).answers == 2


def test_mended_masks_that_people_take_away_gained_nothing(store: Store) -> None:
    parents = [{"mask_id": f"p{n}", "prompt_gap": 0.2, "rle": box_rle(0, 30)} for n in range(4)]
    mended = [
        {"mask_id": f"m{n}", "parent_mask_id": f"p{n}", "repair": "better prompt", "rle": box_rle(0, 36)}
        for n in range(4)
    ]
    parents = [
        parent | {"replaced_by": child["mask_id"]} for parent, child in zip(parents, mended, strict=True)
    ]
    rows = {row["mask_id"]: row for of in commit_scored(store, [parents + mended]) for row in of}
    answers = [
        label_row(rows["m0"], "fixed", rle=box_rle(0, 40), iou=0.9),
        label_row(rows["m1"], "no object"),
        label_row(rows["m2"], "deleted"),
        label_row(rows["m3"], "skipped"),
    ]
    store.append("labels", answers)
    found = read_evidence(store)
    assert found.promised["better prompt"] == pytest.approx([0.2] * 3)
    assert sorted(found.gained["better prompt"]) == pytest.approx([0, 0, 0.15])


def test_masks_that_people_took_away_are_learnt_as_such_unless_others_disagree(store: Store) -> None:
    drawn = [{"rle": box_rle(10 * place, 10 * place + 9)} for place in range(5)]
    [rows] = commit_scored(store, [drawn])
    keep, away, none, disputed, skipped = rows
    store.append(
        "labels",
        [
            label_row(keep, "correct", area=432, agreement=1.0),
            label_row(away, "deleted", agreement=None),
            label_row(none, "no object", agreement=1.0),
            label_row(disputed, "deleted", agreement=0.0),
            label_row(skipped, "skipped"),
        ],
    )
    [image] = read_answers(store)
    assert [mask.rle["counts"] for mask in image.masks] == [keep["rle"]]
    assert sorted(image.rejected) == sorted([away["rle"], none["rle"]])


def round_row(repairs: dict[str, Any]) -> dict[str, Any]:
    about = {"round_id": "r", "step": "triage", "model": MODEL, "outcome": "done"}
    return about | {"numbers": json.dumps({"repairs": repairs}), "began_at": NOW, "ended_at": NOW}


# Doubles.


def test_of_doubles_the_one_of_people_holds_else_the_better() -> None:
    def row(name: str, score: float | None, x0: int, x1: int) -> dict[str, Any]:
        about = {"mask_id": name, "predicted_iou": score, "rle": box_rle(x0, x1)}
        return {**about, "height": 48, "width": 64, "replaced_by": None}

    def settle(new: set[str], people: set[str]) -> dict[str, str]:
        rows = [row("a", 0.5, 0, 20), row("b", 0.9, 0, 19), row("c", 0.7, 0, 21), row("d", None, 30, 40)]
        settle_duplicates(rows, new, people)
        return {of["mask_id"]: of["replaced_by"] for of in rows if of["replaced_by"]}

    assert settle(set(), set()) == {}, "doubles that nothing mended stay as they are"
    assert settle({"a"}, set()) == {"a": "b"}
    assert settle({"b"}, set()) == {"a": "b", "c": "b"}
    assert settle({"b"}, {"a"}) == {"b": "a"}, "c and a were there before"
    assert settle({"b"}, {"a", "c"}) == {"b": "c"}
    assert settle({"d"}, set()) == {}
