"""A batch of views to learn from: their pixels, their masks on the grid, and the first prompts of each mask.

Shape suffixes: B views, S side, M masks of all views, P points (8), h w mask grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch

from engine.learn.augment import View, draw_box, draw_points

POINTS = 8
CELL = 4  # pixels of the input to a cell of the grid, in both packages


@dataclass(frozen=True)
class Examples:
    """Masks of one view follow each other.

    Attributes:
        pixels_BSS3: uint8 RGB.
        valid_B1SS: 1 where a view is not padding.
        share_M1hw: how much of a cell the mask covers, 0..255.
        points_MP2: pixels inside the mask, xy in pixels of the view; the first may be asked alone.
        boxes_M4: jittered boxes, xyxy.
        view_M: which view a mask is of.
        weight_M: of a mask in the loss; each view's add up to 1 / B.
    """

    pixels_BSS3: torch.Tensor
    valid_B1SS: torch.Tensor
    share_M1hw: torch.Tensor
    points_MP2: torch.Tensor
    boxes_M4: torch.Tensor
    view_M: torch.Tensor
    weight_M: torch.Tensor

    def to(self, device: torch.device | str) -> Examples:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _NAMES})

    def pin_memory(self) -> Examples:
        """The same in memory that a GPU reads by itself."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _NAMES})


_NAMES = [field.name for field in fields(Examples)]


def draw_examples(rng: np.random.Generator, views: Sequence[View]) -> Examples:
    """Views with the prompts of all their masks."""
    masks = [mask for view in views for mask in view.masks_MSS]
    side = len(views[0].pixels)
    valid_B1SS = np.zeros((len(views), 1, side, side), np.uint8)
    for place, view in enumerate(views):
        valid_B1SS[place, :, : view.valid_hw[0], : view.valid_hw[1]] = 1
    grid = (side // CELL, side // CELL)
    share_M1hw = np.stack(
        [cv2.resize(mask.astype(np.uint8) * 255, grid, interpolation=cv2.INTER_AREA)[None] for mask in masks]
    )
    view_M = np.repeat(np.arange(len(views)), [len(view.masks_MSS) for view in views])
    weight_M = 1 / (len(views) * np.bincount(view_M, minlength=len(views))[view_M])
    arrays = (
        np.stack([view.pixels for view in views]),
        valid_B1SS,
        share_M1hw,
        np.stack([draw_points(rng, mask, POINTS) for mask in masks]),
        np.stack([draw_box(rng, mask) for mask in masks]),
        view_M,
        weight_M.astype(np.float32),
    )
    return Examples(*(torch.from_numpy(values) for values in arrays))
