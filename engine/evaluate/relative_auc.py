"""Relative AUC: how much of the gain that correcting brings comes early, when the most uncertain go first.

Predictions are corrected one after another (by a larger model, a better prompt, the best of three masks),
in the order of a score; c(k) is the mean IoU after k corrections. Relative AUC is the area between c and
its start, over the same area of the oracle, which corrects the largest true gain first (after UncertainSAM,
Kaiser et al., ICML 2025, section 5).
"""

from __future__ import annotations

import numpy as np


def relative_auc(score_N: np.ndarray, before_N: np.ndarray, after_N: np.ndarray) -> float:
    """Share of the oracle's area that ordering by `score_N` reaches; 1 is the oracle's, and NaN if that has none.

    Equal scores are taken in every order, on average, so that nothing depends on the order of the rows.

    Args:
        score_N: uncertainty, the highest is corrected first.
        before_N: IoU of each prediction, 0..1.
        after_N: IoU of its corrected version, 0..1; may be lower.

    Raises:
        ValueError: the lengths differ, there is nothing, or a value is not finite.
    """
    gain_N = _check(before_N, after_N)
    score_N = np.asarray(score_N, np.float64)
    if score_N.shape != gain_N.shape or not np.isfinite(score_N).all():
        raise ValueError("score_N must be finite and as long as the IoU.")
    _, group_N = np.unique(-score_N, return_inverse=True)
    mean_G = np.bincount(group_N, gain_N) / np.bincount(group_N)
    return _ratio(mean_G[np.sort(group_N)], gain_N)


def random_auc(before_N: np.ndarray, after_N: np.ndarray) -> float:
    """Relative AUC of an ordering at random, expected: what every score has to beat."""
    gain_N = _check(before_N, after_N)
    return _ratio(np.full(len(gain_N), gain_N.mean()), gain_N)


def _check(before_N: np.ndarray, after_N: np.ndarray) -> np.ndarray:
    before_N, after_N = np.asarray(before_N, np.float64), np.asarray(after_N, np.float64)
    if before_N.shape != after_N.shape or before_N.ndim != 1 or not len(before_N):
        raise ValueError("before_N and after_N must be lists of one length, with something in them.")
    if not np.isfinite([before_N, after_N]).all():
        raise ValueError("IoU must be finite.")
    return after_N - before_N


def _ratio(ordered_N: np.ndarray, gain_N: np.ndarray) -> float:
    oracle = np.sort(gain_N)[::-1].cumsum().sum()
    return float(ordered_N.cumsum().sum() / oracle) if oracle > 0 else float("nan")
