"""Arrow schemas of the tables. Every field carries its meaning, unit and range as metadata."""

from __future__ import annotations

import pyarrow as pa


def _field(name: str, kind: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


_MODEL = _field("model", pa.string(), "model that made the row, name@version; hive partition key")
_ATTEMPT = _field("attempt", pa.string(), "attempt whose files hold this image's masks")
_TIME = pa.timestamp("us", tz="UTC")

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
        _field("n_masks", pa.int32(), "masks kept for this image"),
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
        _field("uncertainty", pa.float32(), "what masks are ranked by, 0..1; see uncertainty_source"),
        _field("uncertainty_source", pa.string(), "how uncertainty was made: sam_score = 1 - sam_score"),
        _ATTEMPT,
    ]
)

MODELS = pa.schema(
    [
        _field("model", pa.string(), "name@version; hive partition key"),
        _field("name", pa.string(), "registry name, or the checkpoint's file name"),
        _field("version", pa.string(), "first 12 hex digits of the SHA-256 of the weights file"),
        _field("package", pa.string(), "segment-anything or sam2"),
        _field("source", pa.string(), "where the weights came from (credentials removed)"),
        _field("sha256", pa.string(), "SHA-256 of the weights file"),
        _field("parameters", pa.int64(), "number of parameters"),
        _field("image_size", pa.int32(), "side of the model's square input, pixels"),
        _field("created_at", _TIME, "when the row was written, UTC"),
    ]
)

TABLES: dict[str, pa.Schema] = {"images": IMAGES, "masks": MASKS, "models": MODELS}
