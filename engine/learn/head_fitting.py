"""Fitting a head set to samples: a few small perceptrons that share their layers, then the calibration.

Shape suffixes: N prompts, M outputs (3), X rows (N x M), I inputs, K heads, S members.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.learn.perceptron import FitRows, FitSettings, fit_perceptron, stack_members
from engine.learn.token_store import Samples
from engine.uncertainty.calibration import fit_knots
from engine.uncertainty.features import FEATURES
from engine.uncertainty.heads import FIXES, GAPS, IOUS, HeadSet, Pairing
from schemas.errors import ConfigError

_LEAST_MASKS = 100
_NOT_PICKED = 0.3  # weight of the outputs the model does not score best: labelling keeps fewer of them
LEAST_GROUPS = 5
"""Groups without which there is nothing to stop a fit by and to calibrate on."""


@dataclass(frozen=True)
class Fit:
    """A fitted set, and how well it does on groups that took no part.

    Attributes:
        heads: the set, its `predicted_iou` calibrated.
        r2: R² of each head on groups that took no part, by name; on what the model picks, one prompt an object.
        calibrated_on: how many masks it was calibrated on, and whether those were `automatic` or `prompted` ones.
    """

    heads: HeadSet
    r2: dict[str, float]
    calibrated_on: tuple[int, str]


def fit_heads(
    samples: Samples,
    model_id: str,
    larger: str,
    settings: FitSettings,
    *,
    calibrate_on: Collection[str] = (),
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
        calibrate_on: sets whose held-out groups calibrate `predicted_iou`; all sets if none is named. Automatic masks
            are what it is calibrated on where there are 100 of them, else single prompts.
        shown: inputs that are shown, bool_I (for ablations); None shows all to every second perceptron, and features alone to
            the others, which do better on kinds of images that nothing was fitted to.
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
    # What was not kept of an automatic prompt has no features to count.
    known_XI = inputs_NMI[fit_N[:, None] & np.isfinite(samples.iou_nearest_NM)]
    mean_I, std_I = known_XI.mean(0), known_XI.std(0)
    std_I = np.maximum(std_I, 1e-3)
    inputs_XI, targets_XK, weights_XK = (
        torch.from_numpy(values.reshape(-1, values.shape[-1]).astype(np.float32))
        for values in (
            (inputs_NMI - mean_I) / std_I,
            np.nan_to_num(targets_NMK),
            _weights(samples, targets_NMK),
        )
    )
    fit_X, stop_X = (torch.from_numpy(np.flatnonzero(np.repeat(rows_N, 3))) for rows_N in (fit_N, stop_N))
    data = FitRows(inputs_XI, targets_XK, weights_XK, fit_X, stop_X)
    members = []
    for member in range(settings.members):
        tell = (
            (lambda done, m=member: progress(m * settings.epochs + done, settings.members * settings.epochs))
            if progress
            else None
        )
        seen_I = _seen_by(member, inputs_XI.shape[1]) if shown is None else torch.from_numpy(shown)
        seen = replace(data, inputs_XI=inputs_XI * seen_I)
        layers = fit_perceptron(seen, scale_K, offset_K, settings, settings.seed * 100 + member, tell)
        with torch.no_grad():
            layers[0].weight *= seen_I
        members.append(layers)
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
    values_NMK = (
        heads.read_samples(torch.from_numpy(samples.inputs_NMI).flatten(0, 1))
        .numpy()
        .T.reshape(targets_NMK.shape)
    )
    picked_NM = _is_picked(samples)
    judged_NM = picked_NM & (calibrate_N & ~samples.automatic_N)[:, None]
    r2 = {
        name: _explained(values_NMK[judged_NM, k], targets_NMK[judged_NM, k]) for k, name in enumerate(names)
    }
    iou = names.index("iou")
    if calibrate_on:
        calibrate_N &= np.isin(samples.data_N, list(calibrate_on))
    known_NM = calibrate_N[:, None] & np.isfinite(targets_NMK[..., iou])
    masks_NM, kind = known_NM & samples.automatic_N[:, None], "automatic"
    if masks_NM.sum() < _LEAST_MASKS:
        masks_NM, kind = known_NM & picked_NM & ~samples.automatic_N[:, None], "prompted"
    if not masks_NM.any():
        raise ConfigError(
            f"The groups held out of {', '.join(calibrate_on)} have no mask to calibrate on. Name other sets."
        )
    knots_2Q = torch.from_numpy(fit_knots(values_NMK[masks_NM, iou], targets_NMK[masks_NM, iou]))
    return Fit(replace(heads, knots_2Q=knots_2Q), r2, (int(masks_NM.sum()), kind))


def _seen_by(member: int, inputs: int) -> torch.Tensor:
    """Which inputs a perceptron is shown, bool_I."""
    tokens = inputs - len(FEATURES)
    return torch.arange(inputs) >= (0 if member % 2 else tokens)


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


def _weights(samples: Samples, targets_NMK: np.ndarray) -> np.ndarray:
    """How much each target of each output counts, weight_NMK: fully for what labelling may keep; 0 where it is NaN."""
    weight_NM = np.where(_is_picked(samples) | samples.automatic_N[:, None], 1.0, _NOT_PICKED)
    return weight_NM[..., None] * np.isfinite(targets_NMK)


def _is_picked(samples: Samples) -> np.ndarray:
    """Whether an output is the one that the model scores best, bool_NM."""
    return samples.sam_score_NM == samples.sam_score_NM.max(1, keepdims=True)


def _explained(said_X: np.ndarray, true_X: np.ndarray) -> float:
    """R²: the share of the variance that is explained."""
    return round(1 - float(np.mean((said_X - true_X) ** 2) / np.var(true_X)), 4)


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
