"""From the decoder's outputs to the masks of one view: the filters, at the least resolution that decides.

Shape suffixes: P prompts, M outputs of each, N masks, h w mask grid, 2 x y, 4 box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops.boxes import batched_nms

from engine.generate.enlarge import Enlargement
from engine.generate.records import MASK_ROW
from engine.generate.views import View
from engine.masks.geometry import touches_edge
from engine.masks.overlap import coarsen
from engine.models.segmenter import Segmenter
from schemas.records import Siblings
from schemas.settings import GenerateSettings


@dataclass(frozen=True)
class Outputs:
    """The decoder's masks, predicted IoU and tokens for P prompts of one view."""

    points_P2: np.ndarray
    logits_PMhw: torch.Tensor
    iou_PM: torch.Tensor
    iou_token_PC: torch.Tensor
    mask_tokens_P4C: torch.Tensor


@dataclass(frozen=True)
class Candidates:
    """Masks of one view that passed the filters: rows (boxes in the image frame) and logits on the grid.

    `siblings` is what they are scored by later, where somebody is to score them; `prompt_N` which prompt each is from.
    """

    rows_N: np.ndarray
    logits_Nhw: torch.Tensor
    prompt_N: np.ndarray
    siblings: Siblings | None = None


def filter_outputs(
    segmenter: Segmenter,
    enlargement: Enlargement,
    view: View,
    outputs: Outputs,
    settings: GenerateSettings,
    *,
    for_scorer: bool = False,
) -> Candidates:
    """Drop outputs by predicted IoU, then by stability, then those that a crop's edge cut.

    The rules are the packages'. An output without any pixel above the threshold is dropped too.

    Args:
        segmenter: that decoded them.
        enlargement: for the size of `view`.
        view: that was prompted.
        outputs: what the view's prompts, in its pixels, were decoded to.
        settings: the thresholds.
        for_scorer: keep what a scorer looks at, too.
    """
    scores_N, logits_Nhw = outputs.iou_PM.flatten(), outputs.logits_PMhw.flatten(0, 1)
    order_N = torch.arange(len(scores_N), device=scores_N.device)
    if settings.pred_iou_thresh:
        order_N = (scores_N > settings.pred_iou_thresh).nonzero()[:, 0]
        scores_N, logits_Nhw = scores_N[order_N], logits_Nhw[order_N]

    measures = enlargement.measure(logits_Nhw, segmenter.mask_threshold, settings.stability_score_offset)
    good_N = measures.area_N > 0
    if settings.stability_score_thresh:
        good_N &= measures.stability_N >= settings.stability_score_thresh
    kept_N = good_N.nonzero()[:, 0]
    order, scores, stability, area, boxes_N4 = (
        tensor[kept_N].cpu().numpy()
        for tensor in (order_N, scores_N, measures.stability_N, measures.area_N, measures.boxes_N4)
    )
    prompt, output = np.divmod(order, outputs.iou_PM.shape[1])
    corner_2 = np.array(view.crop[:2])
    rows_N = np.zeros(len(order), MASK_ROW)
    rows_N["point"] = outputs.points_P2[prompt] + corner_2
    rows_N["output_index"] = output
    rows_N["crop"] = view.crop
    rows_N["box"] = boxes_N4 + np.tile(corner_2, 2)
    rows_N["area"] = area
    rows_N["sam_score"] = scores
    rows_N["stability"] = stability

    # The packages' boxes end at the last pixel, not behind it.
    cut_N = touches_edge(_inclusive(rows_N), np.array(view.crop), np.array(view.tile))
    whole_N = torch.from_numpy(np.flatnonzero(~cut_N)).to(kept_N.device)
    siblings = None
    if for_scorer:
        prompt_N = order_N[kept_N[whole_N]] // outputs.iou_PM.shape[1]
        siblings = _find_siblings(segmenter, view, outputs, prompt_N)
    return Candidates(rows_N[~cut_N], logits_Nhw[kept_N[whole_N]], prompt[~cut_N], siblings)


def _find_siblings(segmenter: Segmenter, view: View, outputs: Outputs, prompt_N: torch.Tensor) -> Siblings:
    """What the scorer is told of each mask's prompt; prompts without any mask left are not looked at."""
    used_U, place_N = prompt_N.unique(return_inverse=True)
    extent = segmenter.mask_extent(view.size)
    return Siblings(
        place_N,
        outputs.iou_token_PC[used_U],
        outputs.mask_tokens_P4C[used_U],
        outputs.iou_PM[used_U],
        coarsen(outputs.logits_PMhw[used_U], segmenter.mask_threshold, extent),
    )


def suppress(rows_N: np.ndarray, scores_N: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Positions that are left when of two boxes that overlap more than this the lower score goes, best first."""
    boxes_N4 = _inclusive(rows_N)
    # Nothing is left so of a box of one pixel, which then overlaps with none: these are compared whole, apart.
    dot_N = (boxes_N4[:, 2:] <= boxes_N4[:, :2]).all(axis=1)
    boxes_N4[dot_N] = rows_N["box"][dot_N]
    scores = torch.from_numpy(scores_N.astype(np.float32))
    kinds = torch.from_numpy(dot_N).long()
    return batched_nms(torch.from_numpy(boxes_N4).float(), scores, kinds, iou_threshold).numpy()


def _inclusive(rows_N: np.ndarray) -> np.ndarray:
    """Boxes that end at their last pixel, as the packages compare them."""
    return rows_N["box"] - np.array([0, 0, 1, 1], np.int32)
