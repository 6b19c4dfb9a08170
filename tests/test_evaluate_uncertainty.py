"""Which score finds the masks that a fix would mend."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sample_rows import as_automatic, make_samples

from engine.evaluate.automatic_masks import judge_automatic
from engine.evaluate.uncertainty import INPUTS, TOLD, ablate_inputs, evaluate_uncertainty, judge
from engine.generate.records import MASK_ROW, ImageMasks
from engine.learn.automatic_rows import match_masks
from engine.learn.data import LabelledImage, LabelledMask
from engine.learn.head_fitting import fit_heads
from engine.learn.perceptron import FitSettings
from engine.learn.token_store import join_samples
from engine.masks.rle import encode_masks
from engine.uncertainty.heads import HeadSet

FAST = FitSettings(members=1, hidden=32, epochs=12)
METHODS = {"sam_score", "entropy", "H_Y", "H_A", "H_Xp", "H_Theta", "delta", "delta_star", "random", "oracle"}


@pytest.fixture(scope="module")
def heads() -> HeadSet:
    return fit_heads(make_samples(2000), "m@0", "l@0", FAST).heads


def test_heads_that_know_beat_scores_that_do_not(heads: HeadSet) -> None:
    result = evaluate_uncertainty([(make_samples(400, seed=5), heads)] * 3)
    assert set(result["relative_auc"]) == {"model", "prompt", "task"}
    for gap, table in result["relative_auc"].items():
        assert set(table) == METHODS
        assert table["oracle"]["mean"] == 1
        assert table["delta_star"]["mean"] > table["random"]["mean"] + 0.02, gap
        assert table["delta_star"]["mean"] > table["H_Y"]["mean"], gap
    assert result["n"] == 200, "only central prompts are judged"
    assert result["correlation"]["predicted_iou"] > result["correlation"]["sam_score"] + 0.1
    assert set(result["correlation"]) >= METHODS
    assert 0 <= result["calibration_error"] < 0.08
    assert result["relative_auc"]["task"]["entropy"]["std"] > 0, "other groups, other numbers"
    json.dumps(result, allow_nan=False)


def test_without_a_larger_model_there_is_no_model_gap() -> None:
    samples = make_samples(600, larger=False)
    result = evaluate_uncertainty([(samples, fit_heads(samples, "m@0", "", FAST).heads)])
    assert set(result["relative_auc"]) == {"prompt", "task"}
    assert "H_Theta" not in result["relative_auc"]["task"]
    json.dumps(result, allow_nan=False)


def test_the_curves_start_at_what_the_model_picks_and_end_mended(heads: HeadSet) -> None:
    samples = make_samples(400, seed=5)
    judged = judge(samples, heads)
    curves = evaluate_uncertainty([(samples, heads)])["curves"]["prompt"]
    for method, curve in curves.items():
        assert len(curve) == 101
        assert curve[0] == pytest.approx(judged.before_N.mean(), abs=1e-4), method
        assert curve[-1] == pytest.approx(judged.after["prompt"].mean(), abs=1e-4), method
    assert all(o >= s - 1e-6 for o, s in zip(curves["oracle"], curves["delta_star"], strict=True))


def test_an_ablation_shows_where_the_knowledge_is() -> None:
    fitted, held = make_samples(1500), make_samples(400, seed=5)
    table = ablate_inputs((fitted, held), "m@0", "l@0", 1)
    assert set(table) == {*INPUTS, TOLD}
    for gap in ("model", "prompt"):
        assert table["features"][gap]["mean"] > table["both_tokens"][gap]["mean"] + 0.02, (
            "tokens are noise here"
        )


def test_automatic_masks_are_matched_with_the_object_under_their_point() -> None:
    truths = np.zeros((2, 40, 40), bool)
    truths[0, 5:25, 5:25] = True  # whole
    truths[1, 8:16, 8:16] = True  # its part
    labelled = tuple(
        LabelledMask({"size": [40, 40], "counts": rle}, int(truth.sum()), "entity")
        for rle, truth in zip(encode_masks(truths), truths, strict=True)
    )
    image = LabelledImage("a", "a", "", labelled, lambda: np.zeros((40, 40, 3), np.uint8))
    found = np.zeros((3, 40, 40), bool)
    found[0] = truths[1]
    found[1, 5:25, 5:15] = True  # half of the whole, asked for outside of the part
    found[2, 30:38, 30:38] = True
    rows = np.zeros(3, MASK_ROW)
    rows["point"] = [(10, 10), (6, 20), (33, 33)]
    iou = match_masks(ImageMasks(40, 40, rows, encode_masks(found)), image)
    np.testing.assert_allclose(iou, [1, 0.5, np.nan])


def test_what_is_like_a_mask_that_people_took_away_is_right_about_nothing() -> None:
    def draw(*boxes: tuple[int, int, int, int]) -> list[str]:
        masks = np.zeros((len(boxes), 40, 40), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        return encode_masks(masks)

    [labelled] = draw((5, 5, 25, 25))
    image = LabelledImage(
        "a",
        "a",
        "",
        (LabelledMask({"size": [40, 40], "counts": labelled}, 400, "entity"),),
        lambda: np.zeros((40, 40, 3), np.uint8),
        rejected=tuple(draw((30, 30, 38, 38), (5, 5, 25, 24))),
    )
    rows = np.zeros(4, MASK_ROW)
    rows["point"] = [(33, 33), (33, 3), (10, 10), (30, 10)]
    # Like one that was taken away, like none, like one but on the object, and beside the object but most of it.
    found = draw((30, 30, 38, 37), (30, 0, 38, 8), (5, 5, 25, 24), (5, 5, 31, 24))
    iou = match_masks(ImageMasks(40, 40, rows, found), image)
    np.testing.assert_allclose(iou, [0, np.nan, 0.95, np.nan])
    assert image.digest != replace(image, rejected=()).digest, "what was asked of it before is asked anew"


def test_automatic_masks_are_judged_by_themselves(heads: HeadSet) -> None:
    prompted, automatic = make_samples(400, seed=5), as_automatic(make_samples(300, seed=6), less=0.0)
    result = judge_automatic(join_samples([prompted, automatic]), heads)
    assert result["n"] == 300, "one of three was kept"
    assert {name: of["n"] for name, of in result["sets"].items()} == {"cells": 150, "cars": 150}
    assert result["correlation"]["predicted_iou"] > result["correlation"]["sam_score"] + 0.1
    json.dumps(result, allow_nan=False)
    assert judge_automatic(prompted, heads)["n"] == 0
