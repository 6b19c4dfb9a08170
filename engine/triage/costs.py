"""What each way of dealing with a mask is expected to cost, in seconds of a person's time.

A mask is good when its IoU with what people would draw is at least `good_iou`. Accepting one that is not costs what a wrong
label costs later; asking people costs a look, and mending what is not good; a machine's second costs a part of a person's.
How likely a mask is good, how long people take, and how much of a promised gain comes true are learnt from their answers. What
stands in the settings is where that begins, and weighs as much as a few dozen answers.

Shape suffixes: N masks, A answers, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from schemas.settings import TriageSettings

_PRIOR_ANSWERS = 24.0  # how many answers the settings weigh as much as
_PRIOR_TASKS = 8.0
_LEAST_SLOPE = 0.1
_PRIOR_Q = np.linspace(0.02, 0.98, 25)
_LONGEST_S = 600.0  # of a task: beyond, the annotator was at lunch


@dataclass(frozen=True)
class Costs:
    """The costs of one store at one time, s of a person unless another unit is named.

    Attributes:
        slope, middle: a mask is good with probability 1 / (1 + exp(-slope (predicted_iou - middle))).
        look, fix: of a person, for each mask, with the touching up of good ones, and on top for each that is not good.
        error: a mask that is accepted and not good.
        larger, prompt: mending with the larger model, and with a better prompt.
        kept: by remedy, the share of the gain that its head promises that comes true.
        overstated: how much further than that of others the predicted_iou of masks that a machine mended lies above their IoU.
        answers: how many answers the probability was learnt from.
    """

    slope: float
    middle: float
    look: float
    fix: float
    error: float
    larger: float
    prompt: float
    kept: dict[str, float]
    overstated: float
    answers: int

    def expect_iou(self, predicted_iou_N: np.ndarray, mended_N: np.ndarray) -> np.ndarray:
        """What `predicted_iou` means of masks of which a machine mended some, bool_N: comparable with one another, 0..1."""
        return (predicted_iou_N - self.overstated * mended_N).clip(0, 1)

    def p_good(self, predicted_iou_N: np.ndarray) -> np.ndarray:
        """Probability that masks are good, 0..1."""
        return 1 / (1 + np.exp(-self.slope * (predicted_iou_N - self.middle)))

    def accept(self, predicted_iou_N: np.ndarray) -> np.ndarray:
        """What accepting costs."""
        return self.error * (1 - self.p_good(predicted_iou_N))

    def people(self, predicted_iou_N: np.ndarray) -> np.ndarray:
        """What asking costs."""
        return self.look + self.fix * (1 - self.p_good(predicted_iou_N))

    @property
    def threshold(self) -> float:
        """The predicted_iou above which accepting is cheaper than asking; 1 where it never is, 0 where it always is."""
        dear = self.error - self.fix
        if dear <= self.look:  # a wrong label costs less than a look
            return 0.0
        p = 1 - self.look / dear
        return float(np.clip(self.middle + np.log(p / (1 - p)) / self.slope, 0, 1))


@dataclass(frozen=True)
class Evidence:
    """What people's answers say, as `learn_costs` takes it.

    Attributes:
        predicted_iou_A, iou_A: of each mask that was answered, what was expected and what came of it (0 for no object).
        mended_A: whether it is one that a machine mended, bool.
        ious_K, seconds_K: of each task with a time, the same of its masks (0 for one that people added), and the time, s.
        promised, gained: by remedy, for each mask that was mended and answered, the gap its parent had and the true gain (0 where
            there is no object).
        machine_s: by remedy, measured seconds a mask; empty where nothing was mended yet.
    """

    predicted_iou_A: np.ndarray
    iou_A: np.ndarray
    mended_A: np.ndarray
    ious_K: Sequence[np.ndarray]
    seconds_K: np.ndarray
    promised: dict[str, np.ndarray]
    gained: dict[str, np.ndarray]
    machine_s: dict[str, float]


def learn_costs(evidence: Evidence, settings: TriageSettings) -> Costs:
    """Costs from the settings and from what people answered.

    The probability is a logistic regression on the answers and on pseudo-answers that say what the settings expect: IoU spread
    about `predicted_iou` by `spread`. Which masks were asked about does not bias it where the choice looked at
    `predicted_iou` alone.
    """
    overstated = _fit_overstated(evidence)
    slope, middle = _fit_good(evidence, settings, overstated)
    look, fix = _fit_seconds(evidence, settings)
    rate = settings.machine_rate
    machine = {"larger model": settings.larger_s, "better prompt": settings.prompt_s} | evidence.machine_s
    return Costs(
        slope=slope,
        middle=middle,
        look=look,
        fix=fix,
        error=settings.error_s,
        larger=rate * machine["larger model"],
        prompt=rate * machine["better prompt"],
        kept={name: _fit_share(evidence, name, settings.gap_trust) for name in machine},
        overstated=overstated,
        answers=len(evidence.iou_A),
    )


def warn_of_accepting(costs: Costs, settings: TriageSettings) -> str:
    """A sentence where the times that were learnt make accepting the cheapest for every mask, and those set would not; else empty."""
    as_set = replace(costs, look=settings.look_s, fix=settings.fix_s)
    if costs.threshold > 0 or as_set.threshold == 0:
        return ""
    return (
        f"Nothing is left to people, whatever its score: going by their answers a look takes {costs.look:.0f} s and mending "
        f"{costs.fix:.0f} s more, and a wrong mask that is accepted costs {costs.error:.0f} s. If it costs you more, say so: "
        "--error-seconds (error_s in a flow's settings)."
    )


def _fit_overstated(evidence: Evidence) -> float:
    """How much more mended masks promise than others, IoU; nothing before anybody has answered.

    Heads are fitted to single points, not to a remedy's prompts, and of several masks the one that promises most was kept.
    """
    too_much_A, mended_A = evidence.predicted_iou_A - evidence.iou_A, evidence.mended_A.astype(bool)
    if not mended_A.any() or mended_A.all():
        return 0.0
    more = too_much_A[mended_A].mean() - too_much_A[~mended_A].mean()
    sure = min(mended_A.sum(), (~mended_A).sum())
    return float(np.clip(more, 0, 0.5) * sure / (sure + _PRIOR_ANSWERS))


def _fit_good(evidence: Evidence, settings: TriageSettings, overstated: float) -> tuple[float, float]:
    from scipy.stats import norm
    from sklearn.linear_model import LogisticRegression

    expected_Q = norm.cdf((_PRIOR_Q - settings.good_iou) / settings.spread)
    good_A = evidence.iou_A >= settings.good_iou
    said_A = evidence.predicted_iou_A - overstated * evidence.mended_A
    q = np.concatenate([_PRIOR_Q, _PRIOR_Q, said_A])
    good = np.concatenate([np.ones(len(_PRIOR_Q)), np.zeros(len(_PRIOR_Q)), good_A])
    prior = _PRIOR_ANSWERS / len(_PRIOR_Q)
    weight = np.concatenate([prior * expected_Q, prior * (1 - expected_Q), np.ones(len(good_A))])
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(q[:, None], good, sample_weight=weight)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if (
        slope < _LEAST_SLOPE
    ):  # a better score never makes a mask less likely good: then all are as likely as all together
        share = np.average(good, weights=weight)
        slope = _LEAST_SLOPE
        intercept = float(np.log(share / (1 - share)) - slope * np.average(q, weights=weight))
    return slope, -intercept / slope


def _fit_seconds(evidence: Evidence, settings: TriageSettings) -> tuple[float, float]:
    """Seconds a mask and more seconds one that is not good, by least squares that cannot be negative.

    Touching up a good mask is a part of the look: asking is charged for no more than a look at what is good.
    """
    from scipy.optimize import nnls

    taken = (evidence.seconds_K > 0) & (evidence.seconds_K <= _LONGEST_S)
    counts = [[len(ious), (ious < settings.good_iou).sum()] for ious in evidence.ious_K]
    tasks = np.array(counts).reshape(-1, 2)[taken]
    prior = np.sqrt(_PRIOR_TASKS)
    rows = np.concatenate([tasks, [[prior, 0], [0, prior]]])
    seconds = np.concatenate([evidence.seconds_K[taken], [prior * settings.look_s, prior * settings.fix_s]])
    look, fix = nnls(rows.astype(float), seconds.astype(float))[0]
    return max(float(look), 0.1), float(fix)


def _fit_share(evidence: Evidence, remedy: str, expected: float) -> float:
    """Share of promised gain that came true, 0..1.5."""
    promised = evidence.promised.get(remedy, np.zeros(0)).clip(0.01)
    gained = evidence.gained.get(remedy, np.zeros(0))
    typical = 0.1 * _PRIOR_ANSWERS  # what the settings' masks were promised in all
    return float(np.clip((expected * typical + gained.sum()) / (typical + promised.sum()), 0, 1.5))
