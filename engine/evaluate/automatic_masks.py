"""How right the scores of automatic masks are: those that labelling keeps, on labelled objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engine.evaluate.figures import correlate, round_figure
from engine.learn.token_store import Samples
from engine.uncertainty.calibration import measure_reliability
from engine.uncertainty.features import FEATURES
from engine.uncertainty.heads import HeadSet


def judge_automatic(samples: Samples, heads: HeadSet) -> dict[str, Any]:
    """Correlation of each score with the true IoU, and the calibration of `predicted_iou`, over automatic masks.

    Args:
        samples: with automatic masks; others are not looked at.
        heads: on the CPU.

    Returns:
        `correlation` {sam_score, stability, entropy, predicted_iou: r}, `calibration_error`, `calibration`, `n` masks,
        and `sets` {data: {n, sam_score, predicted_iou}} with the correlations in each set by itself.
    """
    place = np.nonzero(samples.automatic_N[:, None] & np.isfinite(samples.iou_nearest_NM))
    inputs_XI, true_X = samples.inputs_NMI[place], samples.iou_nearest_NM[place].astype(np.float64)
    raw_X = heads.read_samples(torch.from_numpy(inputs_XI))[heads.names.index("iou")]
    quality = {
        "sam_score": samples.sam_score_NM[place].astype(np.float64),
        "stability": inputs_XI[:, FEATURES.index("stability") - len(FEATURES)].astype(np.float64),
        "entropy": -samples.entropy_NM[place].astype(np.float64),
        "predicted_iou": heads.calibrate(raw_X).numpy().astype(np.float64),
    }
    reliability = measure_reliability(quality["predicted_iou"], true_X)
    data_X = samples.data_N[place[0]]
    return {
        "correlation": {name: round_figure(correlate(value_X, true_X)) for name, value_X in quality.items()},
        "calibration_error": round_figure(reliability.error),
        "calibration": {
            "predicted": reliability.predicted,
            "true": reliability.true,
            "count": reliability.count,
        },
        "n": len(true_X),
        "sets": {
            str(name): {
                "n": int((data_X == name).sum()),
                **{
                    score: round_figure(correlate(quality[score][data_X == name], true_X[data_X == name]))
                    for score in ("sam_score", "predicted_iou")
                },
            }
            for name in np.unique(data_X)
        },
    }
