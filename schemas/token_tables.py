"""Arrow schema of what heads are fitted to: the decoder's tokens beside what came of them."""

from __future__ import annotations

import pyarrow as pa

from schemas.fields import ATTEMPT, MODEL, documented

_OUTPUTS = pa.list_(pa.float32(), 3)

TOKENS = pa.schema(
    [
        documented("sample_id", pa.string(), "hash of image, object and point, 32 hex digits"),
        documented("image_id", pa.string(), "image the object is in"),
        documented("data", pa.string(), "labelled set the image was read from"),
        documented("image", pa.string(), "name of the image in its set"),
        documented("group", pa.string(), "images of one group are never split"),
        documented("task", pa.string(), "what the object is: salient, entity or part; empty for none"),
        documented("object", pa.int32(), "which of the image's masks is meant; -1 for none in particular"),
        documented("object_area", pa.int64(), "pixels of that mask; 0 for none"),
        documented(
            "prompt",
            pa.string(),
            "how the point was drawn: central, random, or automatic = of the grid, its kept masks",
        ),
        documented("point_x", pa.float32(), "x of the point prompt, image pixels"),
        documented("point_y", pa.float32(), "y of the point prompt, image pixels"),
        documented("iou_token", pa.list_(pa.float32()), "IoU token after the decoder, rounded to fp16"),
        documented(
            "mask_tokens",
            pa.list_(pa.float32()),
            "the four mask tokens after the decoder, one after another, rounded to fp16",
        ),
        documented(
            "features",
            pa.list_(pa.float32()),
            "features of the three masks, one after another; NaN for masks that were not kept",
        ),
        documented("sam_score", _OUTPUTS, "the model's own IoU estimate of its three masks, about 0..1"),
        documented(
            "entropy", _OUTPUTS, "mean pixel entropy inside the box of each mask, bits, 0..1; NaN if not kept"
        ),
        documented(
            "iou", _OUTPUTS, "true IoU of the three masks with the object that is meant, 0..1; NaN for none"
        ),
        documented(
            "iou_nearest",
            _OUTPUTS,
            "true IoU of each mask with the object under the point that it matches best; NaN for masks that were not kept",
        ),
        documented(
            "iou_dense",
            pa.float32(),
            "true IoU of what the model picks with a dense prompt (8 points); NaN for none",
        ),
        documented("iou_larger", pa.float32(), "true IoU of what the larger model picks", nullable=True),
        documented(
            "h_theta", pa.float32(), "entropy over model sizes, bits; NULL unless asked for", nullable=True
        ),
        documented("h_xp", pa.float32(), "entropy over prompts, bits; NULL unless asked for", nullable=True),
        documented(
            "h_a", pa.float32(), "entropy over the three masks, bits; NULL unless asked for", nullable=True
        ),
        documented(
            "h_y", pa.float32(), "entropy over all of these, bits; NULL unless asked for", nullable=True
        ),
        MODEL,
        ATTEMPT,
    ]
)
