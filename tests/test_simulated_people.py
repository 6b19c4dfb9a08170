"""The annotator who knows the truth: what they leave, mend and refuse."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from engine.masks.rle import encode_masks
from engine.review.answers import AskedItem, read_answers
from engine.review.brush import decode_brush, encode_brush
from engine.review.queue import AnsweredTask
from engine.review.simulated_people import SimulatedAnnotator

SIZE = (60, 80)


def square(y: int, x: int, side: int = 20) -> np.ndarray:
    mask_HW = np.zeros(SIZE, bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def make_task(*masks: np.ndarray, image: str = "known") -> dict[str, Any]:
    regions = [
        {
            "id": f"m{place}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "original_width": SIZE[1],
            "original_height": SIZE[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["object"]},
        }
        for place, mask in enumerate(masks)
    ]
    return {"data": {"image_id": image, "item_key": "k"}, "predictions": [{"result": regions}]}


def drawn(region: dict[str, Any]) -> np.ndarray:
    return decode_brush(region["value"]["rle"], SIZE) >= 128


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_right_masks_are_left_wrong_ones_mended_and_what_is_nothing_refused() -> None:
    right, other = square(5, 5), square(30, 40)
    shifted = square(35, 44)
    assert 0.25 < iou(shifted, other) < 0.9
    task = make_task(right, shifted, square(2, 58, 15))
    answer = SimulatedAnnotator({"known": [right, other]}).answer(task)
    left, mended, nothing, choice = answer["result"]
    assert left == task["predictions"][0]["result"][0]
    assert mended["id"] == "m1"
    assert iou(drawn(mended), other) >= 0.95
    assert (choice["id"], choice["value"]) == (nothing["id"], {"choices": ["no object"]})
    assert not answer["was_cancelled"]
    assert answer["lead_time"] > 3 * 2.5


def test_their_answers_read_as_those_of_people() -> None:
    right, other = square(5, 5), square(30, 40)
    task = make_task(right, square(35, 44), square(2, 58, 15))
    annotation = {"id": 7, "completed_by": 1, **SimulatedAnnotator({"known": [right, other]}).answer(task)}
    rles = {region["id"]: encode_masks(drawn(region)[None])[0] for region in task["predictions"][0]["result"]}
    item = AskedItem("known", "nano@0", SIZE, ("m0", "m1", "m2"), rles)
    rows = read_answers("q", AnsweredTask("1", "k", datetime.now(UTC), [annotation]), item)
    assert {row["mask_id"]: row["verdict"] for row in rows} == {
        "m0": "correct", "m1": "fixed", "m2": "no object",
    }  # fmt: skip


def test_an_image_without_objects_has_none_and_an_unknown_one_is_skipped() -> None:
    annotator = SimulatedAnnotator({"known": []})
    assert [r["type"] for r in annotator.answer(make_task(square(0, 0)))["result"]] == [
        "brushlabels",
        "choices",
    ]
    skipped = annotator.answer(make_task(square(0, 0), image="unknown"))
    assert (skipped["was_cancelled"], skipped["result"]) == (True, [])


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 1.0, 1.0), (1.0, 0.7, 0.99), (3.0, 0.1, 0.8)])
def test_noise_moves_the_edges_as_far_as_is_asked(noise: float, least: float, most: float) -> None:
    truth = square(20, 30)
    annotator = SimulatedAnnotator({"known": [truth]}, noise=noise, seed=1)
    ious = []
    for _ in range(40):
        [region] = annotator.answer(make_task(square(24, 34)))["result"]
        ious.append(iou(drawn(region), truth))
    assert least <= np.mean(ious) <= most
    again = SimulatedAnnotator({"known": [truth]}, noise=noise, seed=1)
    [first] = again.answer(make_task(square(24, 34)))["result"]
    assert iou(drawn(first), truth) == ious[0], "the same seed draws the same"


def test_an_object_that_the_noise_would_take_away_is_drawn_as_it_is() -> None:
    speck = square(20, 30, 2)
    annotator = SimulatedAnnotator({"known": [speck]}, noise=5.0)
    for _ in range(20):
        [region] = annotator.answer(make_task(square(20, 30, 3)))["result"]
        assert drawn(region).any()
