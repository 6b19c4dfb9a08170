"""What the generator hands out: the masks of one image, and their rows in the `masks` table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

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
    ]
)


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


def mask_table(masks: ImageMasks, image_id: str, model: str) -> pa.Table:
    """Rows of the `masks` table.

    `uncertainty` is 1 - sam_score, clipped to 0..1.

    Args:
        masks: of one image.
        image_id: hash of the image.
        model: name@version that made them.

    Returns:
        A table with the schema `schemas.tables.MASKS` but for `model` and `attempt`, which the commit adds.
    """
    import pyarrow as pa

    from schemas.tables import MASKS

    rows, n = masks.rows_N, len(masks)
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
        "uncertainty": np.clip(1 - rows["sam_score"], 0, 1),
        "uncertainty_source": ["sam_score"] * n,
    }
    for place, edge in enumerate(("x0", "y0", "x1", "y1")):
        columns[edge] = rows["box"][:, place]
        columns[f"crop_{edge}"] = rows["crop"][:, place]
    for name in ("area", "sam_score", "stability", "entropy"):
        columns[name] = rows[name]
    schema = pa.schema([field for field in MASKS if field.name not in ("model", "attempt")])
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
