"""What a refiner learns from: masks of the model beside the human masks that they are attempts at.

One point of each human mask, the output that matches it best (SUM, Liu et al., NeurIPS 2024, appendix). A mask
that is no attempt at the human one (IoU below 0.7) teaches nothing and is left out.

Shape suffixes: N pairs, h w mask grid, 2 x y, 4 box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.learn.data import LabelledImage
from engine.learn.embedded import count_bytes, halve, shrink_masks
from engine.learn.losses import mask_iou
from engine.learn.point_prompts import central_point
from engine.masks.geometry import mask_boxes
from engine.models.segmenter import Segmenter
from engine.uncertainty.maps import frame_maps
from schemas.records import Embedding, Prompts

LEAST_IOU = 0.7


@dataclass(frozen=True)
class Pairs:
    """Masks of the model and the human masks they are of, for one image; image pixels.

    Attributes:
        frames_N4: the cells that the map of each covers (`frame_maps`).
    """

    embedding: Embedding
    logits_Nhw: torch.Tensor
    points_N2: np.ndarray
    boxes_N4: np.ndarray
    frames_N4: np.ndarray
    target_Nhw: np.ndarray

    def __len__(self) -> int:
        return len(self.target_Nhw)

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return count_bytes(self.embedding) + 2 * self.logits_Nhw.numel() + self.target_Nhw.nbytes

    def near(self, some_N: np.ndarray) -> torch.Tensor:
        """The cells that the maps of some of them cover, bool N1hw."""
        near_N1hw = torch.zeros(len(some_N), 1, *self.target_Nhw.shape[1:], dtype=torch.bool)
        for near_1hw, (x0, y0, x1, y1) in zip(near_N1hw, self.frames_N4[some_N].tolist(), strict=True):
            near_1hw[:, y0:y1, x0:x1] = True
        return near_N1hw


def make_pairs(
    segmenter: Segmenter, image: LabelledImage, *, objects: int = 20, points: int = 2, seed: int = 0
) -> Pairs:
    """The pairs of one image; what is drawn depends on the seed and the image's name alone.

    Args:
        segmenter: whose masks they are.
        image: its human masks.
        objects: so many of them at most, evenly drawn.
        points: asked for each of them: the central one, then random ones.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 3, *image.name.encode()])
    there = [i for i, mask in enumerate(image.masks) if mask.area]
    chosen = sorted(rng.permutation(there)[:objects].tolist())
    embedding = segmenter.embed([image.load()])
    size = embedding.image_sizes[0]
    asked, targets = [], []
    for i in chosen:
        truth_HW = image.masks[i].decode()
        rows, columns = np.nonzero(truth_HW)
        drawn = rng.integers(len(rows), size=points - 1)
        asked += [central_point(truth_HW), *np.stack([columns[drawn], rows[drawn]], 1).astype(np.float32)]
        targets += [truth_HW] * points
    side = segmenter.grid_size
    if not asked:
        return _no_pairs(halve(embedding), side)
    points_N2, target_Nhw = np.stack(asked), shrink_masks(segmenter, targets)
    prompts = Prompts(
        torch.zeros(len(points_N2), dtype=torch.int64),
        torch.from_numpy(points_N2)[:, None],
        torch.ones(len(points_N2), 1, dtype=torch.int64),
    )
    logits_NMhw = segmenter.decode(embedding, prompts).logits_NMhw.cpu()
    target_NMhw = torch.from_numpy(target_Nhw)[:, None].expand_as(logits_NMhw)
    iou_N, best_N = mask_iou(logits_NMhw - segmenter.mask_threshold, target_NMhw).max(1)
    kept_N = (iou_N >= LEAST_IOU).nonzero()[:, 0]
    if not len(kept_N):
        return _no_pairs(halve(embedding), side)
    logits_Nhw = logits_NMhw[kept_N, best_N[kept_N]]
    rows_n, columns_n = segmenter.mask_extent(size)
    cell_4 = np.tile([size[1] / columns_n, size[0] / rows_n], 2)
    boxes_N4 = mask_boxes((logits_Nhw > segmenter.mask_threshold).numpy()) * cell_4
    kept = kept_N.numpy()
    return Pairs(
        halve(embedding),
        logits_Nhw.half(),
        points_N2[kept],
        boxes_N4.astype(np.float32),
        frame_maps(boxes_N4, (rows_n, columns_n), size),
        target_Nhw[kept],
    )


def _no_pairs(embedding: Embedding, side: int) -> Pairs:
    nothing = np.zeros((0, side, side), np.float32)
    return Pairs(
        embedding,
        torch.zeros(0, side, side, dtype=torch.float16),
        np.zeros((0, 2), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((0, 4), int),
        nothing,
    )
