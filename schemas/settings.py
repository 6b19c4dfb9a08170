"""Typed settings. Checked when made; an error says what to write instead."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateSettings(_Settings):
    """Automatic mask generation, under the names segment-anything gave them.

    Everything that changes which masks come out is here, so that two runs with equal settings and
    one model make equal masks; `canonical` is what the `images` table remembers.
    """

    points_per_side: int = Field(32, ge=1, le=256, description="grid of point prompts, per side")
    pred_iou_thresh: float | None = Field(
        None, ge=0, le=1, description="drop masks the model itself scores lower; null = what suits the model"
    )
    stability_score_thresh: float | None = Field(
        None, ge=0, le=1, description="drop masks that change when the cut moves; null = what suits the model"
    )
    stability_score_offset: float = Field(1.0, gt=0, description="how far the cut moves, logits")
    box_nms_thresh: float = Field(0.7, ge=0, le=1, description="box IoU above which the lower score goes")
    crop_n_layers: int = Field(
        0, ge=0, le=4, description="layers of overlapping crops besides the whole image"
    )
    crop_nms_thresh: float = Field(0.7, ge=0, le=1, description="box IoU between crops above which one goes")
    crop_overlap_ratio: float = Field(
        512 / 1500, ge=0, lt=1, description="overlap of crops, of the shorter side"
    )
    crop_n_points_downscale_factor: int = Field(
        1, ge=1, description="points per side are divided by this per layer"
    )
    min_mask_region_area: int = Field(
        0, ge=0, description="holes and islands smaller than this are removed, pixels"
    )
    tile_size: int = Field(
        0, ge=0, description="images with a longer side are cut into overlapping tiles, pixels; 0 = never"
    )
    tile_overlap: float = Field(0.25, ge=0, lt=0.5, description="overlap of neighbouring tiles, of tile_size")

    def canonical(self) -> str:
        """JSON with sorted keys: equal settings give equal text."""
        return json.dumps(self.model_dump(), sort_keys=True)


class PoolSettings(_Settings):
    """Which files are images, and how large one may be."""

    include: tuple[str, ...] = Field(
        (), description="glob patterns on the path below the pool; empty = every image type"
    )
    exclude: tuple[str, ...] = Field((), description="glob patterns to leave out")
    max_pixels: int = Field(
        200_000_000, ge=1, description="larger images become a row with error_kind too_large"
    )
    max_file_bytes: int = Field(
        2_000_000_000, ge=1, description="larger files become a row with error_kind too_large"
    )
