"""What the generator hands out: the masks of one image; and who may add scores and maps while it makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.masks.map_crop import MapCrop
from schemas.records import Embedding, MaskEvidence

if TYPE_CHECKING:
    import torch

# One mask but for its pixels: image frame, pixels, exclusive ends, names as in the `masks` table.
MASK_ROW = np.dtype(
    [
        ("point", np.float32, 2),
        ("output_index", np.int8),
        ("crop", np.int32, 4),
        ("box", np.int32, 4),
        ("area", np.int64),
        ("sam_score", np.float32),
        ("stability", np.float32),
        ("entropy", np.float32),
        ("model_gap", np.float32),
        ("prompt_gap", np.float32),
        ("task_gap", np.float32),
        ("predicted_iou", np.float32),
        ("map_mean", np.float32),
        ("map_boundary", np.float32),
        ("map_uncertain", np.float32),
        ("map_certain_area", np.float32),
    ]
)
SCORES = ("model_gap", "prompt_gap", "task_gap", "predicted_iou")
"""What a `Scorer` may say of a mask; NaN where nobody did."""
MAP_STATISTICS = ("map_mean", "map_boundary", "map_uncertain", "map_certain_area")
"""What a `Mapper` says of a mask besides its map; NaN where nobody did."""


class Scorer(Protocol):
    """Says in the pass that makes the masks how good they are and what would make them better."""

    @property
    def version(self) -> str:
        """What is recorded beside its scores."""

    def score_masks(self, evidence: MaskEvidence) -> dict[str, torch.Tensor]:
        """Some or all of `SCORES` for N masks, on the evidence's device."""


@dataclass(frozen=True)
class MaskMaps:
    """Uncertainty around each of N masks, frames in pixels of what the model was shown, and its `MAP_STATISTICS`."""

    crops: list[MapCrop]
    statistics: dict[str, np.ndarray]


class Mapper(Protocol):
    """Says in the pass that makes the masks where they are unsure."""

    @property
    def source(self) -> str:
        """Who drew the maps: `refiner` or `self`."""

    @property
    def version(self) -> str:
        """What is recorded of it in the settings."""

    def map_masks(
        self,
        embedding: Embedding,
        index: int,
        logits_Nhw: torch.Tensor,
        boxes_N4: torch.Tensor,
        points_N2: torch.Tensor,
    ) -> MaskMaps:
        """Maps of N masks of image `index`; boxes and points in its pixels."""


@dataclass(frozen=True)
class ImageMasks:
    """All masks of one image, best first.

    Attributes:
        height, width: of the image, pixels.
        rows_N: array of `MASK_ROW`.
        rles: COCO compressed counts of each mask for `height` x `width`.
        maps: uncertainty around each mask, frames in image pixels; None where nobody drew any.
        embedding_NC: image features averaged over each mask, int8 (see `engine.generate.pooling`); of one that was joined
            from several tiles its largest part's; None for masks that no model made.
    """

    height: int
    width: int
    rows_N: np.ndarray
    rles: list[str]
    maps: list[MapCrop] | None = None
    embedding_NC: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rles)
