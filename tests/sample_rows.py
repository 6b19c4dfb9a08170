"""Samples with a planted truth: the features say what a fix gains, SamScore says a little of how good a mask is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.learn.token_store import Samples
from engine.uncertainty.features import FEATURES

TOKEN = 4


def make_samples(count: int = 600, seed: int = 0, *, larger: bool = True) -> Samples:
    """`count` samples in 30 groups of two sets; tokens are noise."""
    rng = np.random.default_rng(seed)
    features = rng.random((count, 3, len(FEATURES))).astype(np.float32)
    tokens = rng.normal(size=(count, 3, 2 * TOKEN)).astype(np.float32)
    iou = 0.2 + 0.5 * features[..., 0] + rng.normal(0, 0.03, (count, 3))
    before = iou.max(1)
    score = np.clip(0.5 * iou + rng.random((count, 3)) * 0.5, 0, 1)
    return Samples(
        data_N=np.array(["cells", "cars"])[np.arange(count) % 2],
        group_N=np.array([f"{('cells', 'cars')[i % 2]}/{i // 2 % 15}" for i in range(count)]),
        central_N=np.arange(count) % 4 < 2,
        automatic_N=np.zeros(count, bool),
        inputs_NMI=np.concatenate([tokens, features], 2),
        sam_score_NM=score,
        entropy_NM=rng.random((count, 3)),
        iou_NM=iou,
        iou_nearest_NM=iou,
        iou_dense_N=before + 0.2 * features[:, :, 2].mean(1),
        iou_larger_N=before + 0.3 * features[:, :, 1].mean(1) if larger else np.full(count, np.nan),
        entropies={
            name: rng.random(count) if name != "H_Theta" or larger else np.full(count, np.nan)
            for name in ("H_Y", "H_A", "H_Xp", "H_Theta")
        },
    )


def as_automatic(samples: Samples, less: float) -> Samples:
    """The same as automatic masks of which only the first output is kept, and each is worse by `less`."""
    count = len(samples)
    nothing = np.full((count, 3), np.nan)
    nearest = nothing.copy()
    nearest[:, 0] = samples.iou_nearest_NM[:, 0] - less
    return replace(
        samples,
        central_N=np.zeros(count, bool),
        automatic_N=np.ones(count, bool),
        iou_NM=nothing,
        iou_nearest_NM=nearest,
        iou_dense_N=nothing[:, 0],
        iou_larger_N=nothing[:, 0],
    )
