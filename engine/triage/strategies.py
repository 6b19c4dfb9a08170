"""Acquisition strategies under their usual names: in which order masks are worth a person's time.

Uncertainty, entropy and map rank masks one by one. Coreset is k-centre greedy (Sener and Savarese, "Active
learning for convolutional neural networks: a core-set approach", ICLR 2018). Badge follows Ash et al., "Deep batch
active learning by diverse, uncertain gradient lower bounds", ICLR 2020: k-means++ seeding on gradients of the last layer,
whose length grows with the uncertainty. Here a mask's embedding, scaled by its uncertainty, stands for the gradient.

Shape suffixes: N candidates, S those of a shortlist, M covered masks, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from engine.triage.candidates import Candidates
from schemas.errors import ConfigError
from schemas.settings import Strategy

DIVERSE = ("coreset", "badge")
"""Strategies that compare masks by their embeddings."""
_AT_ONCE = 1024  # covered masks compared at once: bounds the memory


def score_candidates(candidates: Candidates, strategy: Strategy, seed: int) -> np.ndarray:
    """score_N, float64: the higher, the earlier a mask is looked at.

    Args:
        candidates: N masks.
        strategy: for the diverse ones it is the uncertainty, which decides who comes into question.
        seed: of `random`.

    Raises:
        ConfigError: `map`, and no mask has a map.
    """
    if strategy == "random":
        return -draw_numbers(candidates.mask_ids, seed)
    if strategy == "entropy":
        return candidates.entropy_N.astype(np.float64)
    if strategy != "map":
        return candidates.uncertainty_N.astype(np.float64)
    if len(candidates) and np.isnan(candidates.map_N).all():
        raise ConfigError(
            "No mask has an uncertainty map. Label with a model that has a refiner, or use the strategy uncertainty."
        )
    return np.nan_to_num(candidates.map_N.astype(np.float64), nan=-1.0)


def draw_numbers(mask_ids: Iterable[str], seed: int) -> np.ndarray:
    """A random number for each mask, 0..1, float64, that stays its own under a seed, whichever masks are beside it.

    To take the masks with the least numbers is to draw without replacement, each as likely ("permanent random numbers",
    Ohlsson 1995). A draw that goes on later, with masks that are new by then, makes with the earlier one
    a single such draw from all of them.
    """
    key = str(seed).encode()
    digests = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in mask_ids)
    return np.fromiter((int.from_bytes(of, "little") for of in digests), np.uint64) / 2.0**64


def spread_choice(
    points_SC: np.ndarray,
    count: int,
    admit: Callable[[int], bool],
    *,
    covered_MC: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> None:
    """Choose up to `count` points that are far from each other, one after another.

    Without `rng` it is k-centre greedy: always the point farthest from all that are covered. With it, k-means++: a point is
    drawn with a probability that grows with its squared distance to them. Where nothing is covered yet the first point is.

    Args:
        points_SC: float32, the most important first.
        count: to choose.
        admit: called with a position; whether it may be chosen. Those that may not are not asked for again.
        covered_MC: points that need no more cover.
        rng: for k-means++.
    """
    length_S = np.einsum("sc,sc->s", points_SC, points_SC)
    distance_S = np.full(len(points_SC), np.inf)  # squared, to the nearest covered point
    for start in range(0, 0 if covered_MC is None else len(covered_MC), _AT_ONCE):
        part_MC = covered_MC[start : start + _AT_ONCE]  # type: ignore[index]
        squared_SM = length_S[:, None] - 2 * points_SC @ part_MC.T + np.einsum("mc,mc->m", part_MC, part_MC)
        np.minimum(distance_S, squared_SM.min(1), out=distance_S)
    np.maximum(distance_S, 0, out=distance_S)
    left_S = np.ones(len(points_SC), bool)
    chosen = 0
    while chosen < count and left_S.any():
        place = _next_place(np.where(left_S, distance_S, -1.0), rng)
        left_S[place] = False
        if not admit(place):
            continue
        chosen += 1
        squared_S = length_S - 2 * points_SC @ points_SC[place] + length_S[place]
        np.minimum(distance_S, np.maximum(squared_S, 0), out=distance_S)


def _next_place(distance_S: np.ndarray, rng: np.random.Generator | None) -> int:
    """The farthest point, or one drawn by squared distance; points that are out have -1."""
    farthest = int(distance_S.argmax())
    if rng is None or not 0 < distance_S[farthest] < np.inf:
        return farthest
    sums_S = np.cumsum(np.maximum(distance_S, 0))
    return int(np.searchsorted(sums_S, rng.random() * sums_S[-1], side="right"))
