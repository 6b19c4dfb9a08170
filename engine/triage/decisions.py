"""From calibrated scores to a decision for each mask: the cheapest of accepting, mending and asking.

Shape suffixes: N masks, D decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.triage.costs import Costs

DECISIONS = ("accept", "larger model", "better prompt", "people")
REMEDIES = {"larger model": "model_gap", "better prompt": "prompt_gap"}
"""Decisions that a machine carries out, and the gap that says what each is expected to gain (UncertainSAM)."""


@dataclass(frozen=True)
class Decided:
    """What is to be done with N masks.

    Attributes:
        decision_N: place in `DECISIONS`, int64.
        p_good_N: probability that the mask is good as it is, 0..1.
        cost_N: what the decision is expected to cost, seconds of a person.
        gain_N: what it saves against the cheaper of accepting and asking, the same unit; at least 0.
    """

    decision_N: np.ndarray
    p_good_N: np.ndarray
    cost_N: np.ndarray
    gain_N: np.ndarray


def decide_masks(
    predicted_iou_N: np.ndarray,
    gaps: dict[str, np.ndarray],
    tried: dict[str, np.ndarray],
    costs: Costs,
) -> Decided:
    """The cheapest decision for each mask.

    A mended mask is expected to be as good as it was and the share `costs.kept` of its gap better, and is then accepted or
    asked about, whichever is cheaper.

    Args:
        predicted_iou_N: calibrated, 0..1; of mended masks what `Costs.expect_iou` makes of it.
        gaps: for each of `REMEDIES` that can be had, IoU that it promises for each mask; NaN for nothing.
        tried: for each of them, bool_N: it was tried on this mask before.
        costs: of each way.
    """
    accept_N, people_N = costs.accept(predicted_iou_N), costs.people(predicted_iou_N)
    cost_DN = np.full((len(DECISIONS), len(predicted_iou_N)), np.inf)
    cost_DN[DECISIONS.index("accept")], cost_DN[DECISIONS.index("people")] = accept_N, people_N
    for remedy, machine in (("larger model", costs.larger), ("better prompt", costs.prompt)):
        if remedy in gaps:
            gain_N = np.nan_to_num(gaps[remedy], nan=0.0) * costs.kept[remedy]
            mended_N = np.clip(predicted_iou_N + gain_N, 0, 1)
            after_N = machine + np.minimum(costs.accept(mended_N), costs.people(mended_N))
            possible_N = (gain_N > 0) & ~tried[remedy]
            cost_DN[DECISIONS.index(remedy)] = np.where(possible_N, after_N, np.inf)
    decision_N = cost_DN.argmin(0)
    cost_N = cost_DN.min(0)
    return Decided(decision_N, costs.p_good(predicted_iou_N), cost_N, np.minimum(accept_N, people_N) - cost_N)
