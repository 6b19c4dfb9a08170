"""Where in a mask the model is unsure: how likely each cell is on the wrong side, as the model and a refiner see it.

SUM (Liu et al., "Uncertainty-aware Fine-tuning of Segmentation Foundation Models", NeurIPS 2024, section 3
and appendix): a refiner R is given the mask's logits, its box and its point, and draws the mask again; certainty
c = 1 - u. R costs one more decode on the embedding that is there. There u = |σ(logits) - σ(R's logits)|, by which a cell
that both call a coin's toss is certain; how `doubt` differs, and what that is worth, is in docs/finetuning.md.

Shape suffixes: N masks, h w mask grid, 2 x y, 4 box x0 y0 x1 y1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from engine.generate.records import MAP_STATISTICS, MaskMaps
from engine.masks.map_crop import MapCrop
from engine.models.segmenter import Segmenter
from schemas.records import Embedding, Prompts

UNCERTAIN = 0.4
"""u above which a pixel counts as uncertain: certainty 0.6, the paper's cut."""
_MARGIN, _LEAST_MARGIN = 0.25, 2  # of the box's sides; cells
_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class Refiner:
    """A model that redraws masks of one model version, and the uncertainty that follows.

    Attributes:
        segmenter: the model with the refiner's prompt encoder and mask decoder, or the model itself.
        source: `refiner`, or `self` where the model is asked itself: a weak map, for when nothing is labelled yet.
        version: first 12 hex digits of the SHA-256 of the refiner's file; empty without one.
    """

    segmenter: Segmenter
    source: str
    version: str = ""

    @torch.inference_mode()
    def redraw(
        self,
        embedding: Embedding,
        index: int,
        logits_Nhw: torch.Tensor,
        boxes_N4: torch.Tensor,
        points_N2: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of the masks drawn again, logits_Nhw.

        Args:
            embedding: holds the masks' image.
            index: which of its images that is.
            logits_Nhw: of the masks, on the grid.
            boxes_N4, points_N2: of the masks and of the prompts they are from, image pixels (ends exclusive).
        """
        parts = [torch.empty_like(logits_Nhw[:0])]
        for start in range(0, len(logits_Nhw), _PROMPTS_AT_ONCE):
            part = slice(start, start + _PROMPTS_AT_ONCE)
            count = len(logits_Nhw[part])
            prompts = Prompts(
                image_index_N=torch.full((count,), index, dtype=torch.int64),
                points_NP2=points_N2[part, None].float(),
                labels_NP=torch.ones(count, 1, dtype=torch.int64),
                boxes_N4=boxes_N4[part].float(),
                masks_N1hw=logits_Nhw[part, None],
            )
            parts.append(self.segmenter.decode(embedding, prompts, multimask=False).logits_NMhw[:, 0])
        return torch.cat(parts)

    @torch.inference_mode()
    def map_masks(
        self,
        embedding: Embedding,
        index: int,
        logits_Nhw: torch.Tensor,
        boxes_N4: torch.Tensor,
        points_N2: torch.Tensor,
    ) -> MaskMaps:
        """Uncertainty around each mask, and its statistics; arguments as in `redraw`, boxes as integers."""
        size = embedding.image_sizes[index]
        redrawn_Nhw = self.redraw(embedding, index, logits_Nhw, boxes_N4, points_N2)
        threshold = self.segmenter.mask_threshold
        maps_Nhw = doubt(logits_Nhw, redrawn_Nhw, threshold)
        extent = self.segmenter.mask_extent(size)
        statistics = measure_maps(maps_Nhw, logits_Nhw > threshold, redrawn_Nhw > threshold, extent, size)
        values_Nhw = (maps_Nhw * 255).round().to(torch.uint8).cpu().numpy()
        crops = crop_maps(values_Nhw, boxes_N4.cpu().numpy(), extent, size)
        return MaskMaps(crops, dict(zip(MAP_STATISTICS, statistics.cpu().numpy(), strict=True)))


def doubt(logits_Nhw: torch.Tensor, redrawn_Nhw: torch.Tensor, threshold: float) -> torch.Tensor:
    """u of each cell: the probability that it is on the wrong side of the mask's edge, 0..1, by the mean of both logits.

    Args:
        logits_Nhw, redrawn_Nhw: of the masks, and of the same drawn again.
        threshold: logit of a mask's edge.
    """
    inside_Nhw = ((logits_Nhw + redrawn_Nhw) / 2 - threshold).sigmoid()
    return torch.where(logits_Nhw > threshold, 1 - inside_Nhw, inside_Nhw)


def measure_maps(
    maps_Nhw: torch.Tensor,
    mask_Nhw: torch.Tensor,
    redrawn_Nhw: torch.Tensor,
    extent: tuple[float, float],
    size: tuple[int, int],
) -> torch.Tensor:
    """Statistics of maps in the order of `MAP_STATISTICS`, value_KN, fp32, on their device.

    Args:
        maps_Nhw: uncertainty, 0..1.
        mask_Nhw, redrawn_Nhw: bool, the masks and the refiner's.
        extent: rows and columns of the grid that the image covers.
        size: (height, width) of the image, pixels.
    """
    rows, columns = (
        max(1, min(round(cells), side)) for cells, side in zip(extent, maps_Nhw.shape[1:], strict=True)
    )
    maps_Nhw, mask_Nhw, redrawn_Nhw = (x[:, :rows, :columns] for x in (maps_Nhw, mask_Nhw, redrawn_Nhw))
    claimed_Nhw = mask_Nhw | redrawn_Nhw
    grown_Nhw, shrunk_Nhw = _dilate(mask_Nhw), ~_dilate(~mask_Nhw)
    unsure_Nhw = maps_Nhw > UNCERTAIN
    cell_area = size[0] / extent[0] * size[1] / extent[1]
    return torch.stack(
        [
            _mean(maps_Nhw, claimed_Nhw),
            _mean(maps_Nhw, grown_Nhw & ~shrunk_Nhw),
            _mean(unsure_Nhw.float(), claimed_Nhw),
            (mask_Nhw & ~unsure_Nhw).flatten(1).sum(1).float() * cell_area,
        ]
    )


def crop_maps(
    values_Nhw: np.ndarray, boxes_N4: np.ndarray, extent: tuple[float, float], size: tuple[int, int]
) -> list[MapCrop]:
    """Each map's part around its mask's box, see `frame_maps`.

    Args:
        values_Nhw: maps on the grid, uint8 where they are to be kept.
        boxes_N4: of the masks, image pixels.
        extent, size: as for `measure_maps`.
    """
    cell_2 = np.array([size[1] / extent[1], size[0] / extent[0]])  # pixels of a cell, x y
    crops = []
    for values_hw, cells_4 in zip(values_Nhw, frame_maps(boxes_N4, extent, size), strict=True):
        x0, y0, x1, y1 = cells_4.tolist()
        frame = tuple((cells_4 * np.tile(cell_2, 2)).tolist())
        crops.append(MapCrop(frame, values_hw[y0:y1, x0:x1].copy()))
    return crops


def frame_maps(boxes_N4: np.ndarray, extent: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Which cells of the grid each map covers: its mask's box with a margin of a quarter of it, int N4.

    Args:
        boxes_N4, extent, size: as for `crop_maps`.
    """
    cell_2 = np.array([size[1] / extent[1], size[0] / extent[0]])
    ends_2 = np.ceil(np.array([extent[1], extent[0]]) - 1e-6)
    starts_N2, stops_N2 = boxes_N4[:, :2] / cell_2, boxes_N4[:, 2:] / cell_2
    margins_N2 = np.maximum(_MARGIN * (stops_N2 - starts_N2), _LEAST_MARGIN)
    first_N2 = np.clip(np.floor(starts_N2 - margins_N2), 0, ends_2 - 1)
    last_N2 = np.clip(np.ceil(stops_N2 + margins_N2), 1, ends_2)
    return np.concatenate([first_N2, last_N2], 1).astype(int)


def _dilate(mask_Nhw: torch.Tensor) -> torch.Tensor:
    """Grown by one cell in every direction; what is outside the image grows nothing."""
    return functional.max_pool2d(mask_Nhw[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def _mean(values_Nhw: torch.Tensor, where_Nhw: torch.Tensor) -> torch.Tensor:
    """Mean where it is asked for; 0 where that is nowhere."""
    return (values_Nhw * where_Nhw).flatten(1).sum(1) / where_Nhw.flatten(1).sum(1).clamp(min=1)
