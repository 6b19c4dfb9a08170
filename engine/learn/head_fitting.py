"""Fitting a head set to samples: a few small perceptrons that share their layers, then the calibration.

Shape suffixes: N prompts, M outputs (3), X rows (N x M), I inputs, K heads, S members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.learn.perceptron import FitRows, FitSettings, fit_perceptron, stack_members
from engine.learn.token_store import Samples
from engine.uncertainty.calibration import fit_knots
from engine.uncertainty.features import FEATURES
from engine.uncertainty.heads import FIXES, GAPS, IOUS, HeadSet, Pairing
from schemas.errors import ConfigError

_NOT_PICKED = 0.3  # weight of the outputs the model does not score best: labelling keeps fewer of them
LEAST_GROUPS = 5
"""Groups without which there is nothing to stop a fit by and to calibrate on."""


@dataclass(frozen=True)
class Fit:
    """A fitted set, and how well it does on groups that took no part.

    Attributes:
        heads: the set, its `predicted_iou` calibrated on prompts.
        r2: R² of each head, by name.
        held_groups: the groups that took no part in the fit (as in `Samples.group_N`).
    """

    heads: HeadSet
    r2: dict[str, float]
    held_groups: frozenset[str]


def fit_heads(
    samples: Samples,
    model_id: str,
    larger: str,
    settings: FitSettings,
    *,
    shown: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """Fit a head set to samples.

    Groups are split in three: most of them are fitted to, a seventh says when to stop, and a seventh
    calibrates `predicted_iou` (and gives the R²).

    Args:
        samples: of one model, of labelled images it may learn from.
        model_id: whose tokens they are.
        larger: `name@version` of the larger model; empty where there is none.
        shown: inputs that are shown, bool_I; the others are zero (for ablations).
        progress: called with (epochs done, epochs in all).

    Raises:
        ConfigError: too few groups to split.
    """
    fit_N, stop_N, calibrate_N = _split(samples.group_N, settings.seed)
    names = tuple(name for name in GAPS + IOUS if larger or name not in ("model_gap", FIXES["model_gap"]))
    targets_NMK = make_targets(samples, names)
    scale_K = torch.tensor([2.0 if name in GAPS else 1.0 for name in names])
    offset_K = torch.tensor([1.0 if name in GAPS else 0.0 for name in names])
    inputs_NMI = samples.inputs_NMI
    mean_I, std_I = (f(inputs_NMI[fit_N].reshape(-1, inputs_NMI.shape[2]), 0) for f in (np.mean, np.std))
    std_I = np.maximum(std_I, 1e-3)
    if shown is not None:
        std_I = np.where(shown, std_I, 1e6)
    inputs_XI, targets_XK, weights_X1 = (
        torch.from_numpy(values.reshape(-1, values.shape[-1]).astype(np.float32))
        for values in ((inputs_NMI - mean_I) / std_I, targets_NMK, _weights(samples))
    )
    fit_X, stop_X = (torch.from_numpy(np.flatnonzero(np.repeat(rows_N, 3))) for rows_N in (fit_N, stop_N))
    data = FitRows(inputs_XI, targets_XK, weights_X1, fit_X, stop_X)
    members = []
    for member in range(settings.members):
        tell = (
            (lambda done, m=member: progress(m * settings.epochs + done, settings.members * settings.epochs))
            if progress
            else None
        )
        members.append(fit_perceptron(data, scale_K, offset_K, settings, settings.seed * 100 + member, tell))
    heads = HeadSet(
        names,
        stack_members(members, mean_I, std_I),
        scale_K,
        offset_K,
        Pairing.own,
        model_id,
        len(FEATURES),
        None,
        larger,
    )
    held = torch.from_numpy(inputs_NMI[calibrate_N]).flatten(0, 1)
    values_KX = heads.read(held).numpy()
    truth_KX = targets_NMK[calibrate_N].reshape(-1, len(names)).T
    picked_X = _weights(samples)[calibrate_N].reshape(-1) == 1
    raw, true = values_KX[names.index("iou")][picked_X], truth_KX[names.index("iou")][picked_X]
    knots_2Q = torch.from_numpy(fit_knots(raw, true))
    r2 = {
        name: round(1 - float(np.mean((v - t)[picked_X] ** 2) / np.var(t[picked_X])), 4)
        for name, v, t in zip(names, values_KX, truth_KX, strict=True)
    }
    held_groups = frozenset(np.unique(samples.group_N[calibrate_N]).tolist())
    return Fit(replace(heads, knots_2Q=knots_2Q), r2, held_groups)


def make_targets(samples: Samples, names: tuple[str, ...]) -> np.ndarray:
    """What each head should say of each output, target_NMK: IoU 0..1, gaps -1..1."""
    best_N1 = samples.iou_NM.max(1, keepdims=True)
    ious = {
        "iou": samples.iou_nearest_NM,
        "iou_meant": samples.iou_NM,
        "iou_best": best_N1,
        "iou_larger": samples.iou_larger_N[:, None],
        "iou_dense": samples.iou_dense_N[:, None],
    }
    columns = [
        ious[FIXES[name]] - samples.iou_NM
        if name in FIXES
        else np.broadcast_to(ious[name], samples.iou_NM.shape)
        for name in names
    ]
    return np.stack(columns, 2).astype(np.float32)


def _weights(samples: Samples) -> np.ndarray:
    """How much each output counts, weight_NM1: the one the model scores best, fully."""
    picked_NM = samples.sam_score_NM == samples.sam_score_NM.max(1, keepdims=True)
    return np.where(picked_NM, 1.0, _NOT_PICKED)[..., None]


def _split(group_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which samples are fitted to, stop the fit, and calibrate: by group, each set's groups alike."""
    rng = np.random.default_rng([seed, 7])
    stop, calibrate = [], []
    groups = np.unique(group_N)
    sets = np.array([group.partition("/")[0] for group in groups])
    for name in np.unique(sets):
        drawn = rng.permutation(groups[sets == name])
        seventh = (
            max(1, round(len(drawn) / 7)) if len(drawn) > 2 else 0
        )  # one or two groups are all fitted to
        stop += drawn[:seventh].tolist()
        calibrate += drawn[seventh : 2 * seventh].tolist()
    if len(groups) < LEAST_GROUPS or not stop or not calibrate:
        raise ConfigError(
            f"Heads need images of at least {LEAST_GROUPS} groups to be fitted and calibrated, three of them in one set; "
            f"there are {len(groups)}. Give more labelled images, or more scenes."
        )
    stop_N, calibrate_N = np.isin(group_N, stop), np.isin(group_N, calibrate)
    return ~stop_N & ~calibrate_N, stop_N, calibrate_N
