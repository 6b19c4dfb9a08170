"""Comparing scores by what correcting the most uncertain first brings."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from engine.evaluate.relative_auc import random_auc, relative_auc

BEFORE, AFTER = np.array([0.2, 0.5, 0.9, 0.4]), np.array([0.8, 0.6, 0.7, 0.4])


def area(order: tuple[int, ...]) -> float:
    """By the letter: correct one after another, and add up how far the mean IoU rose after each."""
    iou, total = BEFORE.copy(), 0.0
    for index in order:
        iou[index] = AFTER[index]
        total += iou.mean() - BEFORE.mean()
    return total


def test_correcting_by_the_true_gain_is_the_oracle() -> None:
    assert relative_auc(AFTER - BEFORE, BEFORE, AFTER) == pytest.approx(1)
    assert max(area(order) for order in permutations(range(4))) == pytest.approx(area((0, 1, 3, 2)))


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_a_score_is_worth_the_area_under_its_own_order(order: tuple[int, ...]) -> None:
    score = np.empty(4)
    score[list(order)] = [4, 3, 2, 1]
    assert relative_auc(score, BEFORE, AFTER) == pytest.approx(area(order) / area((0, 1, 3, 2)))


def test_a_score_that_says_nothing_is_worth_chance() -> None:
    """However its rows are ordered; and chance is the mean over all orders."""
    every = np.mean([area(order) for order in permutations(range(4))]) / area((0, 1, 3, 2))
    assert random_auc(BEFORE, AFTER) == pytest.approx(every)
    assert relative_auc(np.zeros(4), BEFORE, AFTER) == pytest.approx(every)


def test_ties_do_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(200), rng.random(200)
    score = rng.integers(0, 5, 200).astype(float)
    shuffled = rng.permutation(200)
    assert relative_auc(score, before, after) == pytest.approx(
        relative_auc(score[shuffled], before[shuffled], after[shuffled])
    )


def test_nothing_to_gain_has_no_answer() -> None:
    assert math.isnan(relative_auc(np.arange(4), AFTER, AFTER))
    assert math.isnan(random_auc(AFTER, AFTER))


@pytest.mark.parametrize(
    ("score", "before"),
    [(np.zeros(3), BEFORE), (np.array([1, 2, np.nan, 3]), BEFORE), (np.zeros(4), BEFORE * np.nan)],
)
def test_lists_that_do_not_go_together_are_refused(score: np.ndarray, before: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        relative_auc(score, before, AFTER)


def test_no_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="something in them"):
        relative_auc(np.zeros(0), np.zeros(0), np.zeros(0))
