"""What the generator hands out: the masks of one image, and their rows in the `masks` table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from schemas.records import MaskEvidence

if TYPE_CHECKING:
    import pyarrow as pa
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
    ]
)
SCORES = ("model_gap", "prompt_gap", "task_gap", "predicted_iou")
"""What a `Scorer` may say of a mask; NaN where nobody did."""


class Scorer(Protocol):
    """Says in the pass that makes the masks how good they are and what would make them better."""

    @property
    def version(self) -> str:
        """What is recorded beside its scores."""

    def score_masks(self, evidence: MaskEvidence) -> dict[str, torch.Tensor]:
        """Some or all of `SCORES` for N masks, on the evidence's device."""


@dataclass(frozen=True)
class ImageMasks:
    """All masks of one image, best first.

    Attributes:
        height, width: of the image, pixels.
        rows_N: array of `MASK_ROW`.
        rles: COCO compressed counts of each mask for `height` x `width`.
    """

    height: int
    width: int
    rows_N: np.ndarray
    rles: list[str]

    def __len__(self) -> int:
        return len(self.rles)


def mask_id(
    image_id: str, model: str, crop: tuple[int, ...], point: tuple[float, ...], output_index: int
) -> str:
    """Identity of a mask: the same image, model, prompt and output give the same 32 hex digits.

    Args:
        image_id: hash of the image.
        model: name@version.
        crop: x0 y0 x1 y1 of the crop that was prompted, image pixels.
        point: x y of the prompt, image pixels; fp32 numbers.
        output_index: which of the model's outputs.
    """
    x, y = (float(np.float32(value)).hex() for value in point)
    text = "\n".join([image_id, model, *(str(int(edge)) for edge in crop), x, y, str(int(output_index))])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def mask_table(masks: ImageMasks, image_id: str, model: str, heads: str | None = None) -> pa.Table:
    """Rows of the `masks` table.

    `uncertainty` is 1 - predicted_iou; where there is none, 1 - sam_score, clipped to 0..1.

    Args:
        masks: of one image.
        image_id: hash of the image.
        model: name@version that made them.
        heads: version of the head set that scored them, if one did.

    Returns:
        A table with the schema `schemas.tables.MASKS` but for `model` and `attempt`, which the commit adds.
    """
    import pyarrow as pa

    from schemas.tables import MASKS

    rows, n = masks.rows_N, len(masks)
    scored_N = ~np.isnan(rows["predicted_iou"])
    points, crops, outputs = rows["point"].tolist(), rows["crop"].tolist(), rows["output_index"].tolist()
    columns = {
        "mask_id": [
            mask_id(image_id, model, crop, point, output)
            for crop, point, output in zip(crops, points, outputs, strict=True)
        ],
        "image_id": [image_id] * n,
        "point_x": rows["point"][:, 0],
        "point_y": rows["point"][:, 1],
        "output_index": rows["output_index"],
        "height": np.full(n, masks.height, np.int32),
        "width": np.full(n, masks.width, np.int32),
        "rle": masks.rles,
        "heads": [heads] * n,
        "uncertainty": np.clip(1 - np.where(scored_N, rows["predicted_iou"], rows["sam_score"]), 0, 1),
        "uncertainty_source": np.where(scored_N, "predicted_iou", "sam_score").tolist(),
    }
    for place, edge in enumerate(("x0", "y0", "x1", "y1")):
        columns[edge] = rows["box"][:, place]
        columns[f"crop_{edge}"] = rows["crop"][:, place]
    for name in ("area", "sam_score", "stability", "entropy"):
        columns[name] = rows[name]
    for name in SCORES:
        columns[name] = pa.array(rows[name], from_pandas=True)  # NaN is NULL
    schema = pa.schema([field for field in MASKS if field.name not in ("model", "attempt")])
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
