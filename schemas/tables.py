"""Arrow schemas of the tables. Every field carries its meaning, unit and range as metadata."""

from __future__ import annotations

import pyarrow as pa

from schemas.fields import ATTEMPT as _ATTEMPT
from schemas.fields import MODEL as _MODEL
from schemas.fields import TIME as _TIME
from schemas.fields import documented as _field
from schemas.model_tables import MODELS, PROMOTIONS
from schemas.review_tables import LABELS, REVIEWS
from schemas.round_tables import DECISIONS, ROUNDS
from schemas.token_tables import TOKENS

IMAGES = pa.schema(
    [
        _field("image_id", pa.string(), "hash of the file's bytes, 32 hex digits", nullable=True),
        _field("uri", pa.string(), "fsspec URL of the image"),
        _field("fingerprint", pa.string(), "changes when the file at uri changes (size and etag or mtime)"),
        _field("file_bytes", pa.int64(), "size of the file, bytes", nullable=True),
        _field("width", pa.int32(), "pixels, after EXIF orientation", nullable=True),
        _field("height", pa.int32(), "pixels, after EXIF orientation", nullable=True),
        _field(
            "mode",
            pa.string(),
            "pixel mode of the file as decoded by Pillow (RGB, L, P, CMYK, I;16 …)",
            nullable=True,
        ),
        _field(
            "n_masks",
            pa.int32(),
            "rows of masks that this image has, those that others hold in the stead of included",
        ),
        _field(
            "error_kind",
            pa.string(),
            "NULL, or why there are no masks: empty, unreadable, truncated, too_large, unsupported, missing, unreachable",
            nullable=True,
        ),
        _field("error", pa.string(), "NULL, or the reason in words", nullable=True),
        _MODEL,
        _field("settings", pa.string(), "canonical JSON of the generator settings"),
        _ATTEMPT,
        _field(
            "committed_at",
            _TIME,
            "when the row was committed, UTC; of two commits of one image and model the newer wins",
        ),
    ]
)

MASKS = pa.schema(
    [
        _field("mask_id", pa.string(), "hash of image_id, model, prompt and output index, 32 hex digits"),
        _field("image_id", pa.string(), "image the mask belongs to"),
        _MODEL,
        _field("point_x", pa.float32(), "x of the point prompt, image pixels"),
        _field("point_y", pa.float32(), "y of the point prompt, image pixels"),
        _field("output_index", pa.int8(), "which of the model's outputs, 0..2"),
        _field("crop_x0", pa.int32(), "left of the crop the mask was made in, image pixels"),
        _field("crop_y0", pa.int32(), "top of the crop, image pixels"),
        _field("crop_x1", pa.int32(), "right of the crop (exclusive), image pixels"),
        _field("crop_y1", pa.int32(), "bottom of the crop (exclusive), image pixels"),
        _field("x0", pa.int32(), "left of the mask's box, image pixels"),
        _field("y0", pa.int32(), "top of the mask's box, image pixels"),
        _field("x1", pa.int32(), "right of the mask's box (exclusive), image pixels"),
        _field("y1", pa.int32(), "bottom of the mask's box (exclusive), image pixels"),
        _field("area", pa.int64(), "pixels in the mask"),
        _field("height", pa.int32(), "height of the image the RLE is for, pixels"),
        _field("width", pa.int32(), "width of the image the RLE is for, pixels"),
        _field("rle", pa.string(), "COCO compressed run lengths (counts), column-major, for height x width"),
        _field("sam_score", pa.float32(), "the model's own IoU estimate, about 0..1, uncalibrated"),
        _field("stability", pa.float32(), "IoU of the mask cut at threshold +/- offset, 0..1"),
        _field(
            "entropy",
            pa.float32(),
            "mean pixel entropy of the mask's probabilities inside its box, bits, 0..1",
        ),
        _field(
            "model_gap",
            pa.float32(),
            "IoU that the larger model is expected to gain over this mask, -1..1; NULL without such a head",
            nullable=True,
        ),
        _field(
            "prompt_gap",
            pa.float32(),
            "IoU that a dense prompt (8 points) is expected to gain over this mask, -1..1; NULL without heads",
            nullable=True,
        ),
        _field(
            "task_gap",
            pa.float32(),
            "IoU that the best of the prompt's three masks is expected to gain over this one, -1..1; NULL without heads",
            nullable=True,
        ),
        _field(
            "predicted_iou",
            pa.float32(),
            "calibrated IoU of the mask with the object it matches best, 0..1; NULL without heads",
            nullable=True,
        ),
        _field(
            "heads",
            pa.string(),
            "head set that made the gaps, first 12 hex digits of its SHA-256; NULL without heads",
            nullable=True,
        ),
        _field(
            "map_mean",
            pa.float32(),
            "mean of the uncertainty map over the mask and what the refiner makes of it, 0..1; NULL without a map",
            nullable=True,
        ),
        _field(
            "map_boundary",
            pa.float32(),
            "mean of the map one cell to either side of the mask's edge, 0..1; NULL without a map",
            nullable=True,
        ),
        _field(
            "map_uncertain",
            pa.float32(),
            "share of the mask and what the refiner makes of it where the map is above 0.4; NULL without a map",
            nullable=True,
        ),
        _field(
            "map_certain_area",
            pa.float32(),
            "pixels of the mask where the map is at most 0.4; NULL without a map",
            nullable=True,
        ),
        _field("map_source", pa.string(), "refiner, or self (weak); NULL without a map", nullable=True),
        _field("uncertainty", pa.float32(), "what masks are ranked by, 0..1; see uncertainty_source"),
        _field(
            "uncertainty_source",
            pa.string(),
            "how uncertainty was made: predicted_iou = 1 - predicted_iou; sam_score = 1 - sam_score, without heads",
        ),
        _field(
            "parent_mask_id",
            pa.string(),
            "mask that this one was made to mend; NULL for one of the grid",
            nullable=True,
        ),
        _field(
            "repair",
            pa.string(),
            "how: larger model or better prompt, with area 0 where nothing came of it; NULL for one of the grid",
            nullable=True,
        ),
        _field(
            "decoded_by",
            pa.string(),
            "model that drew it where that is another than `model`, name@version; its scores are by that one's heads",
            nullable=True,
        ),
        _field(
            "replaced_by",
            pa.string(),
            "mask that holds in its stead: the one that mended it, or, of one that did not, its parent; NULL for masks that hold",
            nullable=True,
        ),
        _ATTEMPT,
    ]
)

MENDED = ("parent_mask_id", "repair", "decoded_by", "replaced_by")
"""Columns of `masks` that tell what was mended; NULL until something is."""

MAPS = pa.schema(
    [
        _field("mask_id", pa.string(), "mask that the map is of"),
        _field("image_id", pa.string(), "image the mask belongs to"),
        _MODEL,
        _field("x0", pa.float32(), "left edge of the map, image pixels; what lies outside counts as certain"),
        _field("y0", pa.float32(), "top edge of the map, image pixels"),
        _field("x1", pa.float32(), "right edge of the map, image pixels"),
        _field("y1", pa.float32(), "bottom edge of the map, image pixels"),
        _field("rows", pa.int32(), "rows of cells; a cell is one of the model's mask grid"),
        _field("columns", pa.int32(), "columns of cells"),
        _field(
            "values", pa.binary(), "uncertainty of each cell, row by row, a byte each: 0 certain, 255 unsure"
        ),
        _field("map_source", pa.string(), "refiner, or self = the model itself, a weak map"),
        _ATTEMPT,
    ]
)

EMBEDDINGS = pa.schema(
    [
        _field("mask_id", pa.string(), "mask that the embedding is of"),
        _field("image_id", pa.string(), "image the mask belongs to"),
        _MODEL,
        _field(
            "values",
            pa.binary(),
            "the model's image features averaged over the mask, of length 1, a signed byte each: 127 stands for the largest",
        ),
        _ATTEMPT,
    ]
)

TABLES: dict[str, pa.Schema] = {
    "images": IMAGES,
    "masks": MASKS,
    "maps": MAPS,
    "embeddings": EMBEDDINGS,
    "tokens": TOKENS,
    "models": MODELS,
    "promotions": PROMOTIONS,
    "reviews": REVIEWS,
    "labels": LABELS,
    "decisions": DECISIONS,
    "rounds": ROUNDS,
}
