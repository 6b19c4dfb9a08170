"""Calibration of a predicted IoU: a monotone map, and how far a prediction is off.

Shape suffixes: N masks, Q knots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LEAST_PER_KNOT = 20


@dataclass(frozen=True)
class Reliability:
    """Predicted and true IoU of masks in bins of equal width of the prediction; empty bins are left out.

    Attributes:
        predicted, true: mean of each bin, 0..1.
        count: masks in it.
    """

    predicted: tuple[float, ...]
    true: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance between the two, weighted by the counts, 0..1."""
        gaps = np.abs(np.array(self.predicted) - np.array(self.true))
        return float(np.average(gaps, weights=self.count)) if self.count else float("nan")


def measure_reliability(predicted_N: np.ndarray, true_N: np.ndarray, bins: int = 15) -> Reliability:
    """Bin predictions, 0..1, and compare them with the truth, after Guo et al. (ICML 2017), for a regression."""
    bin_N = np.clip((predicted_N * bins).astype(int), 0, bins - 1)
    used = np.unique(bin_N)
    return Reliability(
        tuple(float(predicted_N[bin_N == b].mean()) for b in used),
        tuple(float(true_N[bin_N == b].mean()) for b in used),
        tuple(int((bin_N == b).sum()) for b in used),
    )


def fit_knots(raw_N: np.ndarray, true_N: np.ndarray, most: int = 25) -> np.ndarray:
    """Knots of a monotone map from raw predictions to what they turned out to be, knots_2Q, both rows ascending.

    Isotonic regression over bins of equally many masks: no bin so small that it follows single masks.

    Raises:
        ValueError: fewer than two different raw values.
    """
    from scipy.optimize import isotonic_regression

    order_N = np.argsort(raw_N, kind="stable")
    bins = np.array_split(order_N, int(np.clip(len(order_N) // _LEAST_PER_KNOT, 2, most)))
    raw_Q = np.array([raw_N[members].mean() for members in bins])
    true_Q = isotonic_regression(
        np.array([true_N[members].mean() for members in bins]), weights=[len(members) for members in bins]
    ).x
    rising_Q = np.concatenate([[True], np.diff(raw_Q) > 1e-6])
    if rising_Q.sum() < 2:
        raise ValueError("A calibration needs at least two different predictions.")
    return np.stack([raw_Q[rising_Q], true_Q[rising_Q]]).astype(np.float32)
