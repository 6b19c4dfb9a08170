"""Arrow schemas of what is known of models: where they come from, and which of them is in use."""

from __future__ import annotations

import pyarrow as pa

from schemas.fields import TIME, documented

MODELS = pa.schema(
    [
        documented("model", pa.string(), "name@version; hive partition key"),
        documented("name", pa.string(), "registry name, or the checkpoint's file name"),
        documented("version", pa.string(), "first 12 hex digits of the SHA-256 of the weights file"),
        documented("package", pa.string(), "segment-anything or sam2"),
        documented("source", pa.string(), "where the weights came from (credentials removed)"),
        documented("sha256", pa.string(), "SHA-256 of the weights file"),
        documented("parameters", pa.int64(), "number of parameters"),
        documented("image_size", pa.int32(), "side of the model's square input, pixels"),
        documented(
            "parent", pa.string(), "model it was fine-tuned from; NULL for one that was not", nullable=True
        ),
        documented(
            "data",
            pa.string(),
            "JSON: what it was fine-tuned on; answered_until = pulled_at of the newest answer that was there when it began",
            nullable=True,
        ),
        documented("settings", pa.string(), "JSON: how it was fine-tuned", nullable=True),
        documented("metrics", pa.string(), "JSON: how the fine-tuning went", nullable=True),
        documented("created_at", TIME, "when the row was written, UTC"),
    ]
)

PROMOTIONS = pa.schema(
    [
        documented("model", pa.string(), "model that was judged, name@version; hive partition key"),
        documented("name", pa.string(), "what all its versions are called"),
        documented("action", pa.string(), "promoted, refused, or restored = put back by a rollback"),
        documented("source", pa.string(), "where its weights are"),
        documented("previous", pa.string(), "model that was in use before, name@version"),
        documented("previous_source", pa.string(), "where the weights of that are"),
        documented("reason", pa.string(), "why, in words"),
        documented(
            "numbers",
            pa.string(),
            "JSON: differences by task with their intervals, and of what data",
            nullable=True,
        ),
        documented("decided_at", TIME, "UTC; of promoted and restored rows of one name the newest is in use"),
    ]
)
"""One row a decision; a promotion is this one row, so it happens whole or not at all."""
