"""Automatic masks of labelled images as samples: what labelling keeps, and how right it is.

Suppression keeps the best scored of masks that are alike, so scores say less of what is kept than of single
prompts; what is to score automatic masks must have seen some.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engine.generate.generator import generate_masks
from engine.generate.records import ImageMasks
from engine.learn.data import LabelledImage
from engine.masks.rle import encode_masks, mask_iou
from engine.models.segmenter import Segmenter
from engine.store.people import SAME_OBJECT
from engine.uncertainty.features import FEATURES, describe_masks
from schemas.records import MaskEvidence
from schemas.settings import GenerateSettings

AUTOMATIC = "automatic"
"""How these rows of the `tokens` table name their prompt."""
_ROUNDED = 1e-3  # scores are kept as fp16


def make_automatic_rows(
    segmenter: Segmenter, image: LabelledImage, pixels_HW3: np.ndarray, most: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of the `tokens` table: one for each point of the grid that gave a mask on a labelled object, or one like those that people
    took away.

    Only masks that were kept have features and a true IoU (`iou_nearest`); the prompt's other outputs have NaN there,
    and what presumes that an object was meant is NaN throughout.

    Args:
        segmenter: makes the masks, with the settings that suit it.
        image: its human masks.
        pixels_HW3: its pixels.
        most: so many rows at most, evenly drawn.
        seed: of the draw; it depends on it and on the image's name alone.
    """
    recorder = _Recorder()
    [masks] = generate_masks(segmenter, [pixels_HW3], GenerateSettings(), scorer=recorder)
    iou_N = match_masks(masks, image)
    if not np.isfinite(iou_N).any():
        return []
    views = zip(*recorder.views, strict=True)
    features_NF, iou_token_NC, tokens_N4C, scores_N3 = (np.concatenate(of) for of in views)
    order_N = masks.rows_N["predicted_iou"].astype(int)
    # What was joined from several tiles is no output of the model: its score is none of theirs.
    score_N = scores_N3[order_N, masks.rows_N["output_index"]]
    iou_N[np.abs(score_N - masks.rows_N["sam_score"]) > _ROUNDED] = np.nan
    rows: dict[tuple[float, float], dict[str, Any]] = {}
    for place in np.flatnonzero(np.isfinite(iou_N)).tolist():
        of, n = masks.rows_N[place], order_N[place]
        x, y = of["point"].tolist()
        row = rows.setdefault(
            (x, y),
            {
                "image": image.name,
                "group": image.group,
                "task": "",
                "object": -1,
                "object_area": 0,
                "prompt": AUTOMATIC,
                "point_x": x,
                "point_y": y,
                "iou_token": iou_token_NC[n],
                "mask_tokens": tokens_N4C[n],
                "features": np.full(3 * len(FEATURES), np.nan, np.float32),
                "sam_score": scores_N3[n],
                "entropy": np.full(3, np.nan),
                "iou": np.full(3, np.nan),
                "iou_nearest": np.full(3, np.nan),
                "iou_dense": np.nan,
                "iou_larger": None,
            },
        )
        output = int(of["output_index"])
        row["features"][output * len(FEATURES) : (output + 1) * len(FEATURES)] = features_NF[n]
        row["entropy"][output], row["iou_nearest"][output] = of["entropy"], iou_N[place]
    rng = np.random.default_rng([seed, 6, *image.name.encode()])
    made = list(rows.values())
    return [made[i] for i in sorted(rng.permutation(len(made))[:most].tolist())]


def match_masks(masks: ImageMasks, image: LabelledImage) -> np.ndarray:
    """True IoU of each automatic mask with the object under its point that it fits best, 0..1.

    0 where its point lies on none, and people took away a mask like it (IoU above `SAME_OBJECT`); else NaN there: nobody knows whether
    such a mask is right.
    """
    truths_THW = np.stack([mask.decode() for mask in image.masks])
    rles = encode_masks(truths_THW)
    iou_NT = mask_iou(masks.rles, rles, masks.height, masks.width)
    x_N, y_N = masks.rows_N["point"].astype(int).T
    under_NT = truths_THW[:, np.clip(y_N, 0, masks.height - 1), np.clip(x_N, 0, masks.width - 1)].T
    found_N = under_NT.any(1)
    result_N = np.full(len(masks), np.nan)
    if image.rejected:
        like_N = mask_iou(masks.rles, image.rejected, masks.height, masks.width).max(1)
        result_N[(like_N > SAME_OBJECT) & (iou_NT.max(1) <= SAME_OBJECT)] = 0
    if found_N.any():
        result_N[found_N] = np.where(under_NT, iou_NT, 0)[found_N].max(1)
    return result_N


class _Recorder:
    """Keeps, view after view, what masks could be scored by; for a score each gets its place in it."""

    version = ""

    def __init__(self) -> None:
        self.views: list[list[np.ndarray]] = []

    def score_masks(self, evidence: MaskEvidence) -> dict[str, torch.Tensor]:
        first, siblings = sum(len(view[0]) for view in self.views), evidence.siblings
        tokens = (siblings.iou_token_PC, siblings.mask_tokens_P4C, siblings.iou_P3)
        self.views.append(
            [
                describe_masks(evidence).cpu().numpy(),
                *(values[siblings.prompt_N].half().float().flatten(1).cpu().numpy() for values in tokens),
            ]
        )
        place_N = torch.arange(first, first + len(evidence.output_N)).float()
        return {"predicted_iou": place_N}
