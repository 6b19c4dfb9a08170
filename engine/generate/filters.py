"""From the decoder's outputs to the masks of one view: the filters, at the least resolution that decides.

Shape suffixes: P prompts, M outputs of each, N masks, h w mask grid, 2 x y, 4 box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops.boxes import batched_nms

from engine.generate.enlarge import Enlargement
from engine.generate.records import MAP_STATISTICS, MASK_ROW, SCORES, MaskMaps, Scorer
from engine.generate.views import View
from engine.masks.entropy import mean_entropy
from engine.masks.geometry import touches_edge
from engine.masks.map_crop import MapCrop
from engine.masks.overlap import compare_outputs
from engine.models.segmenter import Segmenter
from schemas.records import MaskEvidence, Siblings
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


MapView = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], MaskMaps]
"""`Mapper.map_masks` of one view: logits, boxes and points in."""


@dataclass(frozen=True)
class Drawn:
    """Masks at full resolution: rows, the pixels inside each row's box, and their maps where somebody drew any."""

    rows_N: np.ndarray
    pixels: list[np.ndarray]
    maps: list[MapCrop] | None = None

    def pick(self, index_N: np.ndarray) -> Drawn:
        """The masks at these positions, in this order."""
        index = index_N.tolist()
        maps = None if self.maps is None else [self.maps[i] for i in index]
        return Drawn(self.rows_N[index_N], [self.pixels[i] for i in index], maps)

    @staticmethod
    def join(parts: Sequence[Drawn]) -> Drawn:
        """Those of several views, one after another."""
        maps = [crop for part in parts for crop in part.maps or ()]
        return Drawn(
            np.concatenate([part.rows_N for part in parts]),
            [pixels for part in parts for pixels in part.pixels],
            maps if all(part.maps is not None for part in parts) else None,
        )


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
    overlap_U33, coverage_U3 = compare_outputs(
        outputs.logits_PMhw[used_U], segmenter.mask_threshold, segmenter.mask_extent(view.size)
    )
    return Siblings(
        outputs.iou_token_PC[prompt_N],
        outputs.mask_tokens_P4C[prompt_N],
        outputs.iou_PM[prompt_N],
        overlap_U33[place_N],
        coverage_U3[place_N],
    )


def draw_view(
    segmenter: Segmenter,
    enlargement: Enlargement,
    view: View,
    parts: Sequence[Candidates],
    settings: GenerateSettings,
    scorer: Scorer | None = None,
    map_view: MapView | None = None,
) -> Drawn:
    """Suppress duplicates within a view, then draw what is left; see `draw_masks`."""
    rows_N = np.concatenate([part.rows_N for part in parts])
    kept_N = suppress(rows_N, rows_N["sam_score"], settings.box_nms_thresh)
    logits_Nhw = torch.cat([part.logits_Nhw for part in parts])
    place_N = torch.from_numpy(kept_N).to(logits_Nhw.device)
    siblings = [part.siblings for part in parts if part.siblings is not None]
    picked = Siblings.join(siblings).pick(place_N) if siblings else None
    return draw_masks(
        segmenter, enlargement, view, rows_N[kept_N], logits_Nhw[place_N], picked, scorer, map_view
    )


def draw_masks(
    segmenter: Segmenter,
    enlargement: Enlargement,
    view: View,
    rows_N: np.ndarray,
    logits_Nhw: torch.Tensor,
    siblings: Siblings | None,
    scorer: Scorer | None = None,
    map_view: MapView | None = None,
) -> Drawn:
    """Draw masks of one view at full resolution, measure their entropy, let them be mapped and scored.

    Args:
        rows_N: array of `MASK_ROW`; entropy, scores and statistics are filled in.
        logits_Nhw: of each, on the grid.
        siblings: of each; needed where there is a scorer.
    """
    boxes_N4 = torch.from_numpy(rows_N["box"] - np.tile(view.crop[:2], 2)).to(logits_Nhw.device)
    pixels = enlargement.draw(logits_Nhw, segmenter.mask_threshold, boxes_N4)
    (height, width), (rows, columns) = view.size, segmenter.mask_extent(view.size)
    cells_4 = torch.tensor([columns / width, rows / height] * 2, device=logits_Nhw.device)
    entropy_N = mean_entropy(logits_Nhw, boxes_N4 * cells_4)
    rows_N["entropy"] = entropy_N.cpu().numpy()
    for name in (*SCORES, *MAP_STATISTICS):
        rows_N[name] = np.nan
    maps = None
    if map_view is not None:
        points_N2 = torch.from_numpy(rows_N["point"] - np.array(view.crop[:2], np.float32))
        drawn = map_view(logits_Nhw, boxes_N4, points_N2)
        maps = [crop.shift(*view.crop[:2]) for crop in drawn.crops]
        for name, value_N in drawn.statistics.items():
            rows_N[name] = value_N
        # Counted in cells of the grid, it may come out a little larger than the mask.
        rows_N["map_certain_area"] = np.minimum(rows_N["map_certain_area"], rows_N["area"])
    if scorer is not None and siblings is not None:
        evidence = gather_evidence(siblings, rows_N, view.size, entropy_N)
        scores = scorer.score_masks(evidence)
        for name, score_N in zip(scores, torch.stack(list(scores.values())).cpu().numpy(), strict=True):
            rows_N[name] = score_N
    return Drawn(rows_N, pixels, maps)


def gather_evidence(
    siblings: Siblings, rows_N: np.ndarray, size: tuple[int, int], entropy_N: torch.Tensor
) -> MaskEvidence:
    """What N masks of one view are scored by, on the device of `entropy_N`.

    Args:
        siblings: of each mask.
        rows_N: array of `MASK_ROW`.
        size: (height, width) of the view, pixels.
        entropy_N: mean pixel entropy of each, bits.
    """
    x0, y0, x1, y1 = rows_N["box"].T.astype(np.float32)
    box_N = np.maximum((x1 - x0) * (y1 - y0), 1)
    measures = np.stack([rows_N["stability"], rows_N["area"] / (size[0] * size[1]), rows_N["area"] / box_N])
    stability_N, area_N, fill_N = torch.from_numpy(measures.astype(np.float32)).to(entropy_N.device)
    output_N = torch.from_numpy(rows_N["output_index"].astype(np.int64)).to(entropy_N.device)
    return MaskEvidence(siblings, output_N, stability_N, entropy_N, area_N, fill_N)


def suppress(rows_N: np.ndarray, scores_N: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Positions that are left when of two boxes that overlap more than this the lower score goes, best first."""
    boxes_N4 = torch.from_numpy(_inclusive(rows_N)).float()
    scores = torch.from_numpy(scores_N.astype(np.float32))
    return batched_nms(boxes_N4, scores, torch.zeros(len(rows_N)), iou_threshold).numpy()


def _inclusive(rows_N: np.ndarray) -> np.ndarray:
    """Boxes that end at their last pixel, as the packages compare them."""
    return rows_N["box"] - np.array([0, 0, 1, 1], np.int32)
