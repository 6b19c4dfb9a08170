"""In which order people are asked: the most uncertain first, and the random share so that it stays one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.review.items import group_masks


def row(n: int, image: int, uncertainty: float, chosen_by: str = "uncertainty") -> dict[str, Any]:
    return {"mask_id": f"m{n}", "image_id": f"i{image}", "uncertainty": uncertainty, "chosen_by": chosen_by}


def test_masks_that_were_drawn_come_evenly_between_the_others_in_the_order_of_the_draw() -> None:
    drawn = [row(100 + n, n, uncertainty, "random") for n, uncertainty in enumerate([0.1, 0.3, 0.05, 0.2])]
    others = [row(n, n % 10, 0.5 + n / 50) for n in range(20)]
    items = group_masks([*drawn, *others])
    priorities = [priority for _, priority in items]
    assert priorities == sorted(priorities, reverse=True)
    places = [place for place, (of, _) in enumerate(items) if of[0]["chosen_by"] == "random"]
    assert [items[place][0][0]["mask_id"] for place in places] == ["m100", "m101", "m102", "m103"]
    assert np.ptp(np.diff(places)) <= 1
    assert all(len({of["chosen_by"] for of in masks}) == 1 for masks, _ in items)


@pytest.mark.parametrize("kept", [[], [row(0, 0, 0.7)]])
def test_a_queue_with_hardly_any_but_drawn_masks_works(kept: list[dict[str, Any]]) -> None:
    items = group_masks([*(row(n, n, 0.2, "random") for n in range(1, 4)), *kept])
    assert len(items) == 3 + len(kept)
    assert all(0 <= priority <= 1 for _, priority in items)
    assert group_masks([]) == []


def test_when_half_of_the_queue_is_answered_its_drawn_masks_still_tell_the_error_without_bias() -> None:
    """Uncertain masks are wrong more often, and share images with others; a quarter to three quarters of the tasks are answered."""
    rng = np.random.default_rng(0)
    found, truths = [], []
    for _ in range(400):
        uncertainty_N = rng.uniform(0, 0.5, 60)
        wrong_N = rng.random(60) < uncertainty_N
        chosen = rng.permutation(60)[:12]
        rows = [row(n, n // 4, float(uncertainty_N[n]), "random") for n in chosen.tolist()]
        rows += [row(100 + n, n, float(rng.uniform(0.5, 1))) for n in range(15)]
        items = group_masks(rows)
        answered = items[: round(len(items) * rng.uniform(0.25, 0.75))]
        found += [
            wrong_N[int(of["mask_id"][1:])]
            for masks, _ in answered
            for of in masks
            if of["chosen_by"] == "random"
        ]
        truths.append(wrong_N.mean())
    assert len(found) > 1500
    assert np.mean(found) == pytest.approx(np.mean(truths), abs=0.025)


def test_crowded_images_do_not_take_the_first_places_of_the_random_share() -> None:
    """Five images of a hundred accepted masks, one in twenty wrong, and five hundred of one, three in ten wrong."""
    rng = np.random.default_rng(0)
    image_N = [n // 100 for n in range(500)] + list(range(5, 505))
    wrong_N = np.concatenate([rng.random(500) < 0.05, rng.random(500) < 0.3])
    others = [row(1000 + n, 1000 + n, 0.9 - n / 500) for n in range(200)]
    found = []
    for _ in range(400):
        chosen = rng.permutation(1000)[:50]
        items = group_masks([*others, *(row(n, image_N[n], 0.1, "random") for n in chosen.tolist())])
        answered = [of for of, _ in items[: len(items) // 5]]
        drawn = [int(of["mask_id"][1:]) for masks in answered for of in masks if of["chosen_by"] == "random"]
        assert drawn == chosen[: len(drawn)].tolist(), "in the order of the draw"
        found.append(wrong_N[drawn].mean())
    assert np.mean(found) == pytest.approx(wrong_N.mean(), abs=0.02)
