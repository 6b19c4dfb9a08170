"""Images as a frozen encoder sees them: embedded once, kept while there is room, with their frames and targets.

Shape suffixes: N masks, h w mask grid, H W image, 2 x y, 4 box.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch

from engine.models.segmenter import Segmenter
from schemas.records import Embedding

T = TypeVar("T")


class RecentlyUsed(Generic[T]):
    """Results by key, the least recently used ones dropped when they take too many bytes."""

    def __init__(self, make: Callable[[int], T], measure: Callable[[T], int], most_bytes: int) -> None:
        self._make, self._measure, self._room = make, measure, most_bytes
        self._kept: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, key: int) -> T:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = self._make(key)
        self._room -= self._measure(made)
        while self._room < 0 and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._room += self._measure(dropped)
        return made


def halve(embedding: Embedding) -> Embedding:
    """An embedding as fp16 on the CPU: half the memory, and finer than bf16."""
    return Embedding(
        embedding.features_BCHW.half().cpu(),
        embedding.image_sizes,
        tuple(level.half().cpu() for level in embedding.high_res),
    )


def count_bytes(embedding: Embedding) -> int:
    """Memory that an embedding takes."""
    return sum(x.numel() * x.element_size() for x in (embedding.features_BCHW, *embedding.high_res))


def input_scale(segmenter: Segmenter, size: tuple[int, int]) -> np.ndarray:
    """Pixels of the model's input to a pixel of an image of this (height, width), scale_2 for x and y."""
    rows, columns = segmenter.mask_extent(size)
    cell = segmenter.image_size / segmenter.grid_size
    return np.array([columns * cell / size[1], rows * cell / size[0]], np.float32)


def shrink_masks(segmenter: Segmenter, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Share of each cell of the mask grid that each mask covers, float32 Nhw, 0..1; padding is 0.

    Args:
        masks: bool HW, all of one image.
    """
    rows, columns = segmenter.mask_extent(masks[0].shape)
    height, width = max(1, round(rows)), max(1, round(columns))
    side = segmenter.grid_size
    shrunk = np.zeros((len(masks), side, side), np.float32)
    for grid_hw, mask_HW in zip(shrunk, masks, strict=True):
        smaller = height <= mask_HW.shape[0] and width <= mask_HW.shape[1]
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        grid_hw[:height, :width] = cv2.resize(mask_HW.astype(np.float32), (width, height), interpolation=how)
    return shrunk


def to_model(embedding: Embedding, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """An embedding of one image as `PromptedModel.decode` takes it, fp32."""
    return embedding.features_BCHW.to(device).float(), [
        level.to(device).float() for level in embedding.high_res
    ]
