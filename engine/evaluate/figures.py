"""Numbers for a report: rounded, and None where there is nothing to say, so that JSON can hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def round_figure(value: float) -> float | None:
    """Four digits; None for what is not finite."""
    return round(float(value), 4) if np.isfinite(value) else None


def summarise(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation of the finite values; None where there are none."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return {"mean": None, "std": None}
    return {"mean": round_figure(float(np.mean(known))), "std": round_figure(float(np.std(known)))}


def correlate(one_N: np.ndarray, other_N: np.ndarray) -> float:
    """Pearson's correlation, -1..1; NaN where one of the two does not vary."""
    if len(one_N) < 2 or not np.std(one_N) or not np.std(other_N):
        return float("nan")
    return float(np.corrcoef(one_N, other_N)[0, 1])
