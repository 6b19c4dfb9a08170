"""Mending masks by machine: the same prompt for a larger model, or a better prompt for the same one.

The two remedies are those that UncertainSAM's gaps speak of (Kaiser et al., ICML 2025): what a larger model, and what a dense
prompt, would gain. What comes of it is scored as every mask is, and people are asked only about what is still unsure.

Shape suffixes: N masks, P points, h w mask grid, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch

from engine.generate.drawing import Drawn, draw_masks
from engine.generate.enlarge import Enlargement
from engine.generate.filters import Candidates, Outputs, filter_outputs
from engine.generate.records import ImageMasks
from engine.generate.views import Box, View
from engine.masks.map_crop import MapCrop
from engine.masks.rle import decode_rle, encode_crops, mask_iou
from engine.models.segmenter import Segmenter
from engine.triage.prompts import dense_points, grid_mask
from engine.uncertainty.heads import HeadSet
from engine.uncertainty.maps import Refiner
from schemas.errors import ConfigError
from schemas.records import Embedding, Prompts
from schemas.settings import GenerateSettings

LEAST_PARENT_IOU = 0.3
"""IoU with its parent below which a mask is of something else: mending may change much, but not what is meant."""
_EVERYTHING = GenerateSettings(pred_iou_thresh=0, stability_score_thresh=0)
_PROMPTS_AT_ONCE = 32
_ROOM = 32  # pixels from a mask to an edge that may cut it; masks within 20 of one count as cut


@dataclass(frozen=True)
class Parent:
    """A mask that is to be mended; frames as in the table `masks`, image pixels."""

    point: tuple[float, float]
    crop: Box
    box: Box
    rle: str
    uncertainty_map: MapCrop | None


@dataclass(frozen=True)
class Mender:
    """A model that mends masks, with the heads that score what it draws and the refiner that maps it."""

    segmenter: Segmenter
    heads: HeadSet
    refiner: Refiner | None

    @torch.inference_mode()
    def mend(
        self, pixels_HW3: np.ndarray, parents: Sequence[Parent], *, dense: bool
    ) -> tuple[list[int], ImageMasks]:
        """Draw masks of one image anew.

        Of the three outputs of each prompt the one with the highest predicted IoU counts, those that are of the parent's
        object first.

        Args:
            pixels_HW3: uint8 RGB, the whole image.
            parents: masks of it. Each is drawn in the crop that it was made in; where it comes close to an edge of that, as
                one joined over seams does, in a larger one around it, for a mask that an edge cuts never counts.
            dense: ask with many points in the certain part of the parent, its box and the parent itself; else with the
                parent's own point.

        Returns:
            For each mask that came of it the place of its parent, and the masks, in that order. A parent whose prompt gave
            not a pixel is left out.

        Raises:
            ConfigError: the device has too little memory.
        """
        try:
            return self._mend(pixels_HW3, parents, dense)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The device ran out of memory with {self.segmenter.model_id}. Use a smaller --larger model (or none), or --device cpu."
            ) from error

    def _mend(
        self, pixels_HW3: np.ndarray, parents: Sequence[Parent], dense: bool
    ) -> tuple[list[int], ImageMasks]:
        height, width = pixels_HW3.shape[:2]
        crops = [_crop_around(parent, height, width) for parent in parents]
        order = sorted(range(len(parents)), key=lambda place: crops[place])
        places: list[int] = []
        drawn: list[Drawn] = []
        for crop, of in groupby(order, key=lambda place: crops[place]):
            view = View(0, (0, 0, width, height), crop, np.zeros((0, 2)))
            embedding = self.segmenter.embed([pixels_HW3[crop[1] : crop[3], crop[0] : crop[2]]])
            enlargement = Enlargement(self.segmenter, view.size)
            group = list(of)
            for start in range(0, len(group), _PROMPTS_AT_ONCE):
                part = group[start : start + _PROMPTS_AT_ONCE]
                asked = [parents[place] for place in part]
                chosen, masks = self._mend_view(embedding, enlargement, view, asked, (height, width), dense)
                places += [part[place] for place in chosen]
                drawn.append(masks)
        joined = Drawn.join(drawn)
        rles = encode_crops(joined.pixels, joined.rows_N["box"][:, :2], height, width)
        return places, ImageMasks(height, width, joined.rows_N, rles, joined.maps, joined.embedding_NC)

    def _mend_view(
        self,
        embedding: Embedding,
        enlargement: Enlargement,
        view: View,
        parents: Sequence[Parent],
        size: tuple[int, int],
        dense: bool,
    ) -> tuple[list[int], Drawn]:
        corner_2 = np.array(view.crop[:2], np.float32)
        points_N2 = np.array([parent.point for parent in parents], np.float32) - corner_2
        prompts = self._prompts(view, parents, points_N2, size, dense)
        decoded = self.segmenter.decode(embedding, prompts)
        outputs = Outputs(
            points_N2, decoded.logits_NMhw, decoded.iou_NM, decoded.iou_token_NC, decoded.mask_tokens_N4C
        )
        candidates = filter_outputs(self.segmenter, enlargement, view, outputs, _EVERYTHING, for_scorer=True)
        scored = draw_masks(
            self.segmenter,
            enlargement,
            view,
            embedding.features_BCHW[0],
            candidates.rows_N.copy(),
            candidates.logits_Nhw,
            candidates.siblings,
            self.heads,
        )
        best = _pick(candidates, scored, parents, size)
        place_N = torch.tensor(best, dtype=torch.int64, device=candidates.logits_Nhw.device)
        siblings = candidates.siblings.pick(place_N) if candidates.siblings else None
        masks = draw_masks(
            self.segmenter,
            enlargement,
            view,
            embedding.features_BCHW[0],
            candidates.rows_N[best],
            candidates.logits_Nhw[place_N],
            siblings,
            self.heads,
            partial(self.refiner.map_masks, embedding, 0) if self.refiner else None,
        )
        return candidates.prompt_N[best].tolist(), masks

    def _prompts(
        self,
        view: View,
        parents: Sequence[Parent],
        points_N2: np.ndarray,
        size: tuple[int, int],
        dense: bool,
    ) -> Prompts:
        n = len(parents)
        index_N = torch.zeros(n, dtype=torch.int64)
        if not dense:
            return Prompts(index_N, torch.from_numpy(points_N2[:, None]), torch.ones(n, 1, dtype=torch.int64))
        x0, y0, x1, y1 = view.crop
        points, masks = [], []
        for parent in parents:
            mask_HW = decode_rle([parent.rle], *size)[0]
            points.append(dense_points(mask_HW, parent.box, parent.uncertainty_map) - (x0, y0))
            masks.append(grid_mask(mask_HW[y0:y1, x0:x1], self.segmenter))
        points_NP2 = torch.from_numpy(np.stack(points).astype(np.float32))
        boxes = np.array([parent.box for parent in parents], np.float32) - np.tile((x0, y0), 2)
        return Prompts(
            index_N,
            points_NP2,
            torch.ones(points_NP2.shape[:2], dtype=torch.int64),
            torch.from_numpy(boxes.astype(np.float32)),
            torch.from_numpy(np.stack(masks)[:, None]),
        )


def _crop_around(parent: Parent, height: int, width: int) -> Box:
    """What the model is shown: the mask's crop, or where the mask comes close to its edge more, in steps of a quarter of it."""
    image = (0, 0, width, height)
    edges = []
    for place in range(4):
        sign = -1 if place < 2 else 1  # outwards
        side = parent.crop[place % 2 + 2] - parent.crop[place % 2]
        step = max(-(-side // 4), 1)
        near = sign * (parent.crop[place] - parent.box[place])  # from the mask outwards to the crop's edge
        room = max(_ROOM, step // 2)
        steps = -(-(room - near) // step) if near < _ROOM else 0
        edge = parent.crop[place] + sign * steps * step
        edges.append(max(edge, image[place]) if place < 2 else min(edge, image[place]))
    return edges[0], edges[1], edges[2], edges[3]


def _pick(
    candidates: Candidates, scored: Drawn, parents: Sequence[Parent], size: tuple[int, int]
) -> list[int]:
    """Of each parent's candidates the best, those of its object first; positions in the order of the parents."""
    rles = encode_crops(scored.pixels, scored.rows_N["box"][:, :2], *size)
    best = []
    for prompt in np.unique(candidates.prompt_N).tolist():
        places = np.flatnonzero(candidates.prompt_N == prompt).tolist()
        iou_N = mask_iou([rles[place] for place in places], [parents[prompt].rle], *size)[:, 0]
        score_N = np.nan_to_num(scored.rows_N["predicted_iou"][places], nan=-1.0)
        best.append(max(zip((iou_N >= LEAST_PARENT_IOU).tolist(), score_N.tolist(), places, strict=True))[2])
    return best
