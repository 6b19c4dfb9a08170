"""A predicted IoU means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from engine.uncertainty.calibration import fit_knots, measure_reliability


def test_a_calibration_mends_a_score_that_is_too_sure() -> None:
    rng = np.random.default_rng(0)
    raw = rng.random(4000)
    true = np.clip(raw**2 + rng.normal(0, 0.05, 4000), 0, 1)
    knots = fit_knots(raw[:2000], true[:2000])
    assert (np.diff(knots[0]) > 0).all()
    assert (np.diff(knots[1]) >= 0).all(), "a better score never means a worse mask"
    mended = np.interp(raw[2000:], *knots)
    assert measure_reliability(raw[2000:], true[2000:]).error > 0.1
    assert measure_reliability(mended, true[2000:]).error < 0.02


def test_the_error_is_the_mean_distance_between_said_and_true() -> None:
    predicted = np.array([0.1, 0.1, 0.9, 0.9])
    reliability = measure_reliability(predicted, np.array([0.2, 0.4, 0.9, 0.9]))
    assert reliability.count == (2, 2)
    assert reliability.error == pytest.approx(0.1)


def test_one_and_the_same_prediction_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="two different"):
        fit_knots(np.full(100, 0.5), np.linspace(0, 1, 100))
