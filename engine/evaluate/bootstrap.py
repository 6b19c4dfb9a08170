"""Is one model better than another, or was it luck? A paired bootstrap over groups of images.

Both models drew the same masks, so masks are compared one by one; and masks of one group of images (tiles of one
picture, cells of one look) rise and fall together, so whole groups are drawn, with replacement (Efron and Tibshirani
1993). Treating masks as independent would make intervals several times too narrow.

Shape suffixes: G groups, R draws, K figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.evaluate.mask_results import MaskResult
from schemas.records import TASKS

ALL_TASKS = "all"
_METRICS = ("miou", "mbiou")
_AT_ONCE = 2**22  # weights of groups held at once


@dataclass(frozen=True)
class Difference:
    """By how much the mean of one model is above another's.

    Attributes:
        task: one of `TASKS`, or `all`.
        points: number of clicks.
        metric: `miou` or `mbiou`.
        mean: difference of the means over masks, -1..1; above 0 the first model is better.
        low, high: interval that has the true difference with the confidence asked for; None where there is only one
            group of images, which says nothing of how others would turn out.
        n: masks.
        groups: of images, that they are in.
    """

    task: str
    points: int
    metric: str
    mean: float
    low: float | None
    high: float | None
    n: int
    groups: int


def paired_bootstrap(
    results: Sequence[MaskResult],
    against: Sequence[MaskResult],
    *,
    draws: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """Differences `results` - `against` of mean IoU and boundary IoU, by task and over all, for each number of clicks.

    Means are over masks: a set with more masks weighs more (thin them with `choose_images` if it should not). Groups
    are drawn from all sets together. The same results and seed give the same intervals, and a task's do not depend on
    which other tasks or numbers of clicks there are.

    Args:
        results: of the one model.
        against: of the other, for the same masks and numbers of clicks, in any order.
        draws: of groups; more make the interval's ends steadier.
        confidence: of the interval, 0..1.
        seed: of the draws.

    Raises:
        ValueError: the two are not of the same masks.
    """
    ours, theirs = (sorted(of, key=_key) for of in (results, against))
    if [_key(result) for result in ours] != [_key(result) for result in theirs]:
        raise ValueError(
            "The results are of other masks or other numbers of clicks than those to compare with."
        )
    pairs = list(zip(ours, theirs, strict=True))
    tasks = [task for task in TASKS if any(result.task == task for result in ours)]
    differences = []
    for task in [*tasks, ALL_TASKS]:
        for points in sorted({result.points for result in ours}):
            of = [(a, b) for a, b in pairs if a.points == points and task in (a.task, ALL_TASKS)]
            if not of:
                continue
            gain_NK = np.array([(a.iou - b.iou, a.biou - b.biou) for a, b in of])
            group_N = _number([(a.data, a.group) for a, _ in of])
            ends = _interval(gain_NK, group_N, draws, confidence, seed)
            for k, metric in enumerate(_METRICS):
                low, high = (None, None) if ends is None else (float(ends[0, k]), float(ends[1, k]))
                mean = float(gain_NK[:, k].mean())
                differences.append(
                    Difference(task, points, metric, mean, low, high, len(of), int(group_N.max()) + 1)
                )
    return differences


def _key(result: MaskResult) -> tuple[str, str, str, int, str, int]:
    return result.data, result.group, result.image, result.mask, result.task, result.points


def _number(groups: Sequence[tuple[str, str]]) -> np.ndarray:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _interval(
    gain_NK: np.ndarray, group_N: np.ndarray, draws: int, confidence: float, seed: int
) -> np.ndarray | None:
    """Ends of the interval of the mean, 2K; None with a single group."""
    groups = int(group_N.max()) + 1
    if groups < 2:
        return None
    sum_GK = np.zeros((groups, gain_NK.shape[1]))
    np.add.at(sum_GK, group_N, gain_NK)
    size_G = np.bincount(group_N).astype(float)
    rng = np.random.default_rng(seed)
    means_RK = []
    for start in range(0, draws, step := max(1, _AT_ONCE // groups)):
        rows = min(step, draws - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        times_RG = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        means_RK.append((times_RG @ sum_GK) / (times_RG @ size_G)[:, None])
    tail = (1 - confidence) / 2
    return np.quantile(np.concatenate(means_RK), [tail, 1 - tail], axis=0)
