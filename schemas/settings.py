"""Typed settings. Checked when made; an error says what to write instead."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_LEAST_TILE = 64  # pixels


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateSettings(_Settings):
    """Automatic mask generation, under the names segment-anything gave them.

    Everything that changes which masks come out is here, so that two runs with equal settings and
    one model make equal masks; `canonical` is what the `images` table remembers.
    """

    points_per_side: int = Field(32, ge=1, le=256, description="grid of point prompts, per side")
    points: Literal["grid", "adaptive"] = Field(
        "grid",
        description="prompt the whole grid, or only points of it that may have a mask, going by the answers so far",
    )
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
        0,
        ge=0,
        description="images with a longer side are cut into overlapping tiles, pixels; 0 = never, else at least 64",
    )
    tile_overlap: float = Field(0.25, ge=0, lt=0.5, description="overlap of neighbouring tiles, of tile_size")

    @field_validator("tile_size")
    @classmethod
    def _bound_tiles(cls, tile_size: int) -> int:
        if 0 < tile_size < _LEAST_TILE:
            raise ValueError(
                f"write 0 for no tiles, or {_LEAST_TILE} or more: each tile is a whole run of the model"
            )
        return tile_size

    def canonical(self) -> str:
        """JSON with sorted keys: equal settings give equal text.

        `points` is left out while it is what it was before it could be chosen, so that what older
        stores hold counts as done.
        """
        left_out = {"points"} if self.points == "grid" else set()
        return json.dumps(self.model_dump(exclude=left_out), sort_keys=True)


Strategy = Literal["uncertainty", "entropy", "map", "coreset", "badge", "random"]


class AcquisitionSettings(_Settings):
    """Which masks people are asked about."""

    strategy: Strategy = Field(
        "uncertainty",
        description="the most of uncertainty (1 - predicted IoU), of the mask's entropy or of its map's mean; coreset = what covers "
        "the rest best, badge = uncertain and spread (both among the most uncertain); or random",
    )
    random_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="of all masks asked about, the share drawn from the accepted ones, each as likely: it tells how many are wrong",
    )
    per_image: int = Field(30, ge=1, description="masks of one image in one push, at most")
    per_stratum: float = Field(
        1.0, gt=0, le=1, description="share of one push from one stratum (folder of images), at most"
    )
    duplicate_similarity: float = Field(
        0.998,
        gt=0,
        le=1,
        description="cosine of two masks' embeddings from which one of them is not asked about; 1 = only equal ones",
    )
    seed: int = Field(0, description="of all draws; the same seed and store give the same masks")


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


class TriageSettings(_Settings):
    """What is worth doing with a mask, in seconds of a person's time: where triage begins, until answers say better."""

    good_iou: float = Field(
        0.7, gt=0, lt=1, description="IoU with what a person would draw from which a mask is good"
    )
    error_s: float = Field(
        30.0, gt=0, description="what a mask costs that is accepted and not good, seconds of a person"
    )
    look_s: float = Field(3.0, gt=0, description="a person's look at a mask, seconds")
    fix_s: float = Field(15.0, ge=0, description="and mending one that is not good, seconds on top")
    machine_rate: float = Field(
        0.02,
        ge=0,
        description="what a second of the machine costs, seconds of a person (prices by the hour divided)",
    )
    larger_s: float = Field(
        1.0,
        ge=0,
        description="the larger model for one mask, seconds of the machine; measured once it was used",
    )
    prompt_s: float = Field(0.5, ge=0, description="a better prompt for one mask, likewise")
    gap_trust: float = Field(
        0.8, ge=0, le=1, description="share of a promised gain that is expected to come true"
    )
    spread: float = Field(
        0.15, gt=0, description="how far a mask's IoU lies from predicted_iou, a standard deviation"
    )


class FinetuneSettings(_Settings):
    """Uncertainty-aware fine-tuning (SUM, Liu et al., NeurIPS 2024); what differs from the paper's values says why."""

    train: Literal["decoder", "all", "adapters"] = Field(
        "decoder",
        description="what learns: prompt encoder and mask decoder (few labels), everything (as in the paper), or low-rank "
        "adapters everywhere",
    )
    steps: int = Field(300, ge=1, description="updates, at most (paper: 6000)")
    images: int = Field(4, ge=1, description="images of an update, over all processes (paper: 40)")
    masks: int = Field(8, ge=1, description="masks of an image in an update, at most (paper: 30)")
    rounds: int = Field(
        7, ge=1, description="rounds of prompts: one to begin, corrections, one without a new prompt"
    )
    rate: float = Field(1e-4, gt=0, description="learning rate of AdamW (paper: 1e-5, for everything)")
    decay: float = Field(0.01, ge=0, description="weight decay")
    layer_decay: float = Field(
        0.8, gt=0, le=1, description="the rate falls by this factor with each encoder block below the last"
    )
    rank: int = Field(8, ge=1, description="rank of the adapters")
    human_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the images of an update that people labelled (paper: half, or two thirds)",
    )
    certain: float = Field(
        0.6, ge=0, le=1, description="certainty above which a pixel counts in the dice loss"
    )
    uncertainty_loss: bool = Field(True, description="weigh the losses of pseudo-labels by certainty")
    uncertainty_sampling: bool = Field(True, description="draw the points of pseudo-labels by certainty")
    distillation: float = Field(
        4.0,
        ge=0,
        description="weight of answering clicks anywhere as before, on images that people did not label; 0: free to forget",
    )
    task_prompt: Literal["first", "every", "none"] = Field(
        "first", description="in which rounds the task of a human mask is told"
    )
    check_every: int = Field(50, ge=1, description="updates between looks at the held-out groups")
    patience: int = Field(
        4, ge=1, description="looks without gain in the second half of the updates after which it ends early"
    )
    seed: int = Field(0, description="of all draws")
