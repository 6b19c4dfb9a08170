"""Masks of one view that are kept, at full resolution: pixels, entropy, embedding, scores and maps.

Shape suffixes: N masks, h w mask grid, C channels, e side of the encoder's grid, 2 x y, 4 box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.generate.enlarge import Enlargement
from engine.generate.filters import Candidates, suppress
from engine.generate.pooling import embed_masks
from engine.generate.records import MAP_STATISTICS, SCORES, MaskMaps, Scorer
from engine.generate.views import View
from engine.masks.entropy import mean_entropy
from engine.masks.map_crop import MapCrop
from engine.models.segmenter import Segmenter
from schemas.records import MaskEvidence, Siblings
from schemas.settings import GenerateSettings

MapView = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], MaskMaps]
"""`Mapper.map_masks` of one view: logits, boxes and points in."""


@dataclass(frozen=True)
class Drawn:
    """Masks at full resolution: rows, the pixels inside each row's box, embeddings, and maps where somebody drew any."""

    rows_N: np.ndarray
    pixels: list[np.ndarray]
    embedding_NC: np.ndarray
    maps: list[MapCrop] | None = None

    def pick(self, index_N: np.ndarray) -> Drawn:
        """The masks at these positions, in this order."""
        index = index_N.tolist()
        maps = None if self.maps is None else [self.maps[i] for i in index]
        pixels = [self.pixels[i] for i in index]
        return Drawn(self.rows_N[index_N], pixels, self.embedding_NC[index_N], maps)

    @staticmethod
    def join(parts: Sequence[Drawn]) -> Drawn:
        """Those of several views, one after another."""
        maps = [crop for part in parts for crop in part.maps or ()]
        return Drawn(
            np.concatenate([part.rows_N for part in parts]),
            [pixels for part in parts for pixels in part.pixels],
            np.concatenate([part.embedding_NC for part in parts]),
            maps if all(part.maps is not None for part in parts) else None,
        )


def draw_view(
    segmenter: Segmenter,
    enlargement: Enlargement,
    view: View,
    features_Cee: torch.Tensor,
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
        segmenter,
        enlargement,
        view,
        features_Cee,
        rows_N[kept_N],
        logits_Nhw[place_N],
        picked,
        scorer,
        map_view,
    )


def draw_masks(
    segmenter: Segmenter,
    enlargement: Enlargement,
    view: View,
    features_Cee: torch.Tensor,
    rows_N: np.ndarray,
    logits_Nhw: torch.Tensor,
    siblings: Siblings | None,
    scorer: Scorer | None = None,
    map_view: MapView | None = None,
) -> Drawn:
    """Draw masks of one view at full resolution, measure their entropy, pool their features, let them be mapped and scored.

    Args:
        features_Cee: the image encoder's, of the view.
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
    embedding_NC = embed_masks(features_Cee, logits_Nhw, segmenter.mask_threshold)
    return Drawn(rows_N, pixels, embedding_NC, maps)


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
