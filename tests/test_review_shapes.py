"""Answers drawn with other tools than the brush are read as the masks that people saw."""

from __future__ import annotations

import base64
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import pytest

from engine.review.answers import AskedItem, read_answers
from engine.review.queue import AnsweredTask
from engine.review.shapes import draw_region, is_shape

SIZE = (40, 60)


def region(kind: str, value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    about = {"original_height": SIZE[0], "original_width": SIZE[1], "image_rotation": 0}
    return {"id": "r", "type": kind, "value": value, **about, **changes}


def data_url(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()


def test_a_rectangle_covers_the_pixels_whose_centres_it_covers() -> None:
    drawn = draw_region(region("rectanglelabels", {"x": 10, "y": 25, "width": 50, "height": 50}), SIZE)
    expected = np.zeros(SIZE, bool)
    expected[10:30, 6:36] = True
    assert np.count_nonzero(drawn ^ expected) <= 2 * (20 + 30), "an edge at most"
    assert drawn[12:28, 8:34].all()


def test_a_polygon_and_an_ellipse_have_the_area_of_their_shape() -> None:
    triangle = draw_region(region("polygonlabels", {"points": [[0, 0], [100, 0], [0, 100]]}), SIZE)
    assert triangle.sum() == pytest.approx(SIZE[0] * SIZE[1] / 2, rel=0.06)
    round_one = draw_region(region("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25}), SIZE)
    assert round_one.sum() == pytest.approx(np.pi * 15 * 10, rel=0.06)


def test_a_bitmask_is_what_is_not_transparent() -> None:
    mask = np.zeros(SIZE, bool)
    mask[5:20, 7:33] = True
    grey = mask.astype(np.uint8) * 255
    opaque = np.dstack([np.full((*SIZE, 3), 90, np.uint8), grey])
    for picture in (grey, np.dstack([grey] * 3), opaque):
        assert np.array_equal(draw_region(region("bitmask", {"imageDataURL": data_url(picture)}), SIZE), mask)


@pytest.mark.parametrize(
    ("kind", "value", "changes", "said"),
    [
        ("brushlabels", {"format": "rle"}, {}, "damaged"),
        ("brushlabels", {"rle": [1, 2]}, {}, "too few"),
        ("bitmask", {"imageDataURL": "data:image/png;base64,!!"}, {}, "damaged"),
        ("bitmask", {"imageDataURL": data_url(np.zeros((3, 3), np.uint8))}, {}, "3 x 3"),
        ("polygonlabels", {"points": [[0, 0], [1, 1]]}, {}, "three corners"),
        ("polygonlabels", {"points": [[0, 0], [1, "x"], [2, 2]]}, {}, "could not convert"),
        ("rectanglelabels", {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 30}, {}, "turned"),
        ("rectanglelabels", {"x": 1, "y": 1, "width": 5, "height": 5}, {"original_width": 61}, "not 40 x 60"),
        ("rectanglelabels", {"x": 1, "y": 1, "width": 5, "height": 5}, {"image_rotation": 90}, "rotated"),
        ("keypointlabels", {"x": 1, "y": 1}, {}, "no shape"),
        ("brushlabels", None, {}, "no value"),
    ],
)
def test_what_cannot_be_read_says_why(kind: str, value: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw_region(region(kind, value, **changes), SIZE)


def test_choices_and_texts_are_no_regions() -> None:
    assert not is_shape({"type": "choices", "from_name": "verdict"})
    assert not is_shape({"type": "textarea"})
    assert is_shape({"type": "brushlabels"})
    assert is_shape({"type": "brush"})


def test_a_crowded_task_of_several_annotators_is_read_in_the_memory_of_a_few_masks() -> None:
    size, place = (1500, 2000), {"original_height": 1500, "original_width": 2000, "image_rotation": 0}

    def draw(number: int, width: float) -> dict[str, Any]:
        box = {"x": 3 * number, "y": 40, "width": width, "height": 50}
        return {"id": f"new-{number}", "type": "rectangle", **place, "value": box}

    answers = [
        {"id": user, "completed_by": user, "result": [draw(number, 2 - 0.5 * user) for number in range(20)]}
        for user in range(3)
    ]
    task = AnsweredTask("1", "0" * 32, datetime.now(UTC), answers)
    tracemalloc.start()
    rows = read_answers("folder:queue", task, AskedItem("1" * 32, "nano@0123456789ab", size, (), {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row["agreement"] for row in rows[::20]] == pytest.approx([0.625, 0.708, 0.583], abs=0.02)
    assert peak < 10 * size[0] * size[1], "sixty masks were drawn"
