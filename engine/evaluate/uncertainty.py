"""The tables of UncertainSAM for any model: which score finds the masks that a fix would mend.

For each gap (model, prompt, task) and each method relative AUC, the correlation of each method with the true
IoU, the calibration of `predicted_iou`, and what the inputs of the heads are worth (Kaiser et al., ICML 2025,
section 5). The prediction that is judged is the output the model itself scores best, from one central point;
nothing is chosen by looking at the answer.

Shape suffixes: N samples, M outputs (3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.evaluate.figures import correlate, summarise
from engine.evaluate.relative_auc import random_auc, relative_auc
from engine.learn.head_fitting import fit_heads
from engine.learn.perceptron import FitSettings
from engine.learn.token_store import Samples
from engine.uncertainty.calibration import measure_reliability
from engine.uncertainty.features import FEATURES
from engine.uncertainty.heads import HeadSet, subtract_ious

GAPS_OF = {"model": "model_gap", "prompt": "prompt_gap", "task": "task_gap"}
INPUTS = {
    "iou_token": (0,),
    "mask_token": (1,),
    "both_tokens": (0, 1),
    "features": (2,),
    "tokens_and_features": (0, 1, 2),
}
"""What heads are shown in an ablation: 0 the IoU token, 1 the mask token, 2 the features of the mask."""
TOLD = "tokens_of_the_best_output"
"""One more row of the ablation: both tokens, but of the output that the truth picks, as the released code shows them."""
_SHARES = 100


@dataclass(frozen=True)
class Judged:
    """The judged predictions of samples: true IoU before and after each fix, and what each method says.

    Attributes:
        before_N: true IoU of the picked output.
        after: of each fix, by gap (`model`, `prompt`, `task`); without `model` where there is no larger one.
        scores: by method, then by gap; the highest is mended first.
        quality: by method, what orders predictions from bad to good.
    """

    before_N: np.ndarray
    after: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    quality: Mapping[str, np.ndarray]


def judge(samples: Samples, heads: HeadSet) -> Judged:
    """What every method says of the central prompts of samples."""
    picked_N = samples.sam_score_NM.argmax(1)
    rows_N = np.flatnonzero(samples.central_N)
    place = (rows_N, picked_N[rows_N])
    before_N = samples.iou_NM[place].astype(np.float64)
    after = {"prompt": samples.iou_dense_N[rows_N], "task": samples.iou_NM[rows_N].max(1).astype(np.float64)}
    if np.isfinite(samples.iou_larger_N[rows_N]).all():
        after = {"model": samples.iou_larger_N[rows_N], **after}
    values = dict(
        zip(heads.names, heads.read_samples(torch.from_numpy(samples.inputs_NMI[place])), strict=True)
    )
    star = {gap: values[name].numpy() for gap, name in GAPS_OF.items() if gap in after and name in values}
    plain = {name: value.numpy() for name, value in subtract_ious(values).items()}
    plain = {gap: plain[name] for gap, name in GAPS_OF.items() if gap in after and name in plain}
    one_for_all = {"sam_score": -samples.sam_score_NM[place], "entropy": samples.entropy_NM[place]}
    one_for_all |= {
        name: values_N[rows_N]
        for name, values_N in samples.entropies.items()
        if np.isfinite(values_N[rows_N]).all()
    }
    scores = {name: dict.fromkeys(after, score_N) for name, score_N in one_for_all.items()}
    quality = {name: -score_N for name, score_N in one_for_all.items()}
    quality["delta"] = -np.mean(list(plain.values()), 0)
    quality["delta_star"] = -np.mean(list(star.values()), 0)
    quality["predicted_iou"] = heads.calibrate(values["iou"]).numpy()
    return Judged(before_N, after, {**scores, "delta": plain, "delta_star": star}, quality)


def evaluate_uncertainty(
    rounds: Iterable[tuple[Samples, HeadSet]], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The tables, as a dict that can be written as JSON.

    Args:
        rounds: samples and the heads they are judged with, once a seed; groups are drawn from each with
            replacement, so that the spread is that of other images and other fits.
        progress: called with the rounds done.

    Returns:
        `relative_auc` {gap: {method: {mean, std}}}, `curves` {gap: {method: mean IoU after mending 0, 1 … 100 %}},
        `correlation` {method: r} with the true IoU, `calibration_error` and `calibration` of `predicted_iou` for
        the masks' nearest objects, `n` predictions, `sets` {data: {n, iou, after each fix}}.
    """
    areas: dict[str, dict[str, list[float]]] = {}
    correlation: dict[str, list[float]] = {}
    errors, first = [], None
    for seed, (samples, heads) in enumerate(rounds):
        judged = judge(samples, heads)
        draw_N = _draw_groups(samples.group_N[samples.central_N], seed)
        for gap, after_N in judged.after.items():
            before, after = judged.before_N[draw_N], after_N[draw_N]
            table = areas.setdefault(gap, {})
            for method, scores in judged.scores.items():
                if gap in scores:
                    table.setdefault(method, []).append(relative_auc(scores[gap][draw_N], before, after))
            table.setdefault("random", []).append(random_auc(before, after))
            table.setdefault("oracle", []).append(relative_auc(after - before, before, after))
        for method, quality_N in judged.quality.items():
            correlation.setdefault(method, []).append(correlate(quality_N[draw_N], judged.before_N[draw_N]))
        nearest_N = _nearest(samples)
        predicted_N = judged.quality["predicted_iou"]
        errors.append(measure_reliability(predicted_N[draw_N], nearest_N[draw_N]).error)
        first = first or (samples, judged, measure_reliability(predicted_N, nearest_N))
        if progress:
            progress(seed + 1)
    if first is None:
        raise ValueError("There is nothing to evaluate: no rounds.")
    samples, judged, reliability = first
    return {
        "relative_auc": {
            gap: {method: summarise(values) for method, values in table.items()}
            for gap, table in areas.items()
        },
        "curves": {gap: _curves(judged, gap) for gap in judged.after},
        "correlation": {
            **{method: summarise(values)["mean"] for method, values in correlation.items()},
            "random": 0.0,
            "oracle": 1.0,
        },
        "calibration_error": round(float(np.mean(errors)), 4),
        "calibration": {
            "predicted": reliability.predicted,
            "true": reliability.true,
            "count": reliability.count,
        },
        "n": len(judged.before_N),
        "sets": _describe_sets(samples, judged),
    }


def ablate_inputs(
    samples: tuple[Samples, Samples],
    model_id: str,
    larger: str,
    seeds: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Relative AUC of the direct gaps when heads see only some of their inputs.

    Args:
        samples: those that heads are fitted to, and those that they are judged on.
        model_id, larger: as in `fit_heads`.
        seeds: fits for each choice of inputs.
        progress: called with the fits done.

    Returns:
        {inputs, of `INPUTS` and `TOLD`: {gap: {mean, std}}}.
    """
    fitted, judged_on = samples
    index = np.arange(fitted.inputs_NMI.shape[2])
    tokens = (len(index) - len(FEATURES)) // 2
    part = np.digitize(index, [tokens, 2 * tokens])  # 0 IoU token, 1 mask token, 2 features
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for place, (name, parts) in enumerate({**INPUTS, TOLD: INPUTS["both_tokens"]}.items()):
        values: dict[str, list[float]] = {}
        if name == TOLD:
            fitted, judged_on = _tell_answer(fitted), _tell_answer(judged_on)
        for seed in range(seeds):
            settings = FitSettings(seed=seed, members=1)
            heads = fit_heads(fitted, model_id, larger, settings, shown=np.isin(part, parts)).heads
            result = judge(judged_on, heads)
            for gap, score_N in result.scores["delta_star"].items():
                values.setdefault(gap, []).append(relative_auc(score_N, result.before_N, result.after[gap]))
            if progress:
                progress(place * seeds + seed + 1)
        table[name] = {gap: summarise(areas) for gap, areas in values.items()}
    return table


def _tell_answer(samples: Samples) -> Samples:
    """Samples whose judged outputs show the inputs of the truly best one: what cannot be known in use."""
    every = np.arange(len(samples))
    inputs_NMI = samples.inputs_NMI.copy()
    inputs_NMI[every, samples.sam_score_NM.argmax(1)] = samples.inputs_NMI[every, samples.iou_NM.argmax(1)]
    return replace(samples, inputs_NMI=inputs_NMI)


def _nearest(samples: Samples) -> np.ndarray:
    rows_N = np.flatnonzero(samples.central_N)
    return samples.iou_nearest_NM[rows_N, samples.sam_score_NM[rows_N].argmax(1)].astype(np.float64)


def _draw_groups(group_N: np.ndarray, seed: int) -> np.ndarray:
    """Positions of the samples of groups that were drawn with replacement, as many groups as there are."""
    groups, place_N = np.unique(group_N, return_inverse=True)
    drawn = np.random.default_rng([seed, 11]).integers(len(groups), size=len(groups))
    order = np.argsort(place_N, kind="stable")
    ends = np.cumsum(np.bincount(place_N))
    starts = np.concatenate([[0], ends[:-1]])
    return np.concatenate([order[starts[g] : ends[g]] for g in drawn])


def _curves(judged: Judged, gap: str) -> dict[str, list[float]]:
    gain_N = judged.after[gap] - judged.before_N
    scores = {method: of[gap] for method, of in judged.scores.items() if gap in of} | {"oracle": gain_N}
    curves = {
        method: _curve(judged.before_N, gain_N[np.argsort(-score_N)]) for method, score_N in scores.items()
    }
    return curves | {"random": _curve(judged.before_N, np.full(len(gain_N), gain_N.mean()))}


def _curve(before_N: np.ndarray, ordered_N: np.ndarray) -> list[float]:
    total = np.concatenate([[0], ordered_N.cumsum()]) / len(ordered_N) + before_N.mean()
    places = np.linspace(0, len(ordered_N), _SHARES + 1).round().astype(int)
    return [round(float(total[k]), 4) for k in places]


def _describe_sets(samples: Samples, judged: Judged) -> dict[str, dict[str, float]]:
    data_N = samples.data_N[samples.central_N]
    return {
        str(name): {
            "n": int((data_N == name).sum()),
            "iou": round(float(judged.before_N[data_N == name].mean()), 4),
            **{gap: round(float(after_N[data_N == name].mean()), 4) for gap, after_N in judged.after.items()},
        }
        for name in np.unique(data_N)
    }
