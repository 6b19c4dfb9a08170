"""Masks of an image as rows of the tables `masks`, `maps` and `embeddings`."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from engine.generate.records import MAP_STATISTICS, SCORES, ImageMasks
from schemas.tables import EMBEDDINGS, MAPS, MASKS, MENDED


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


def mask_table(
    masks: ImageMasks, image_id: str, model: str, *, heads: str | None = None, map_source: str | None = None
) -> pa.Table:
    """Rows of the `masks` table.

    `uncertainty` is 1 - predicted_iou; where there is none, 1 - sam_score, clipped to 0..1.

    Args:
        masks: of one image.
        image_id: hash of the image.
        model: name@version that made them.
        heads: version of the head set that scored them, if one did.
        map_source: who drew their uncertainty maps, if anybody did.

    Returns:
        A table with the schema `schemas.tables.MASKS` but for `model` and `attempt`, which the commit adds.
    """
    rows, n = masks.rows_N, len(masks)
    scored_N = ~np.isnan(rows["predicted_iou"])
    columns = {
        "mask_id": _mask_ids(masks, image_id, model),
        "image_id": [image_id] * n,
        "point_x": rows["point"][:, 0],
        "point_y": rows["point"][:, 1],
        "output_index": rows["output_index"],
        "height": np.full(n, masks.height, np.int32),
        "width": np.full(n, masks.width, np.int32),
        "rle": masks.rles,
        "heads": [heads] * n,
        "map_source": [map_source] * n,
        "uncertainty": np.clip(1 - np.where(scored_N, rows["predicted_iou"], rows["sam_score"]), 0, 1),
        "uncertainty_source": np.where(scored_N, "predicted_iou", "sam_score").tolist(),
    }
    for place, edge in enumerate(("x0", "y0", "x1", "y1")):
        columns[edge] = rows["box"][:, place]
        columns[f"crop_{edge}"] = rows["crop"][:, place]
    for name in ("area", "sam_score", "stability", "entropy"):
        columns[name] = rows[name]
    for name in (*SCORES, *MAP_STATISTICS):
        columns[name] = pa.array(rows[name], from_pandas=True)  # NaN is NULL
    columns |= dict.fromkeys(MENDED, [None] * n)
    schema = pa.schema([field for field in MASKS if field.name not in ("model", "attempt")])
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)


def map_table(masks: ImageMasks, image_id: str, model: str, source: str) -> pa.Table:
    """Rows of the `maps` table, like those of `mask_table`.

    Args:
        masks: of one image, with maps.
        image_id, model: as for `mask_table`.
        source: who drew the maps.
    """
    maps, n = masks.maps or [], len(masks)
    frames_N4 = np.array([crop.frame for crop in maps], np.float32).reshape(n, 4)
    columns = {
        "mask_id": _mask_ids(masks, image_id, model),
        "image_id": [image_id] * n,
        **{edge: frames_N4[:, place] for place, edge in enumerate(("x0", "y0", "x1", "y1"))},
        "rows": [crop.values_hw.shape[0] for crop in maps],
        "columns": [crop.values_hw.shape[1] for crop in maps],
        "values": [crop.values_hw.tobytes() for crop in maps],
        "map_source": [source] * n,
    }
    schema = pa.schema([field for field in MAPS if field.name not in ("model", "attempt")])
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)


def embedding_table(masks: ImageMasks, image_id: str, model: str) -> pa.Table:
    """Rows of the `embeddings` table, like those of `mask_table`, of masks that have embeddings."""
    n = len(masks)
    embedding_NC = np.zeros((n, 0), np.int8) if masks.embedding_NC is None else masks.embedding_NC
    columns = {
        "mask_id": _mask_ids(masks, image_id, model),
        "image_id": [image_id] * n,
        "values": [values_C.tobytes() for values_C in embedding_NC],
    }
    schema = pa.schema([field for field in EMBEDDINGS if field.name not in ("model", "attempt")])
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)


def _mask_ids(masks: ImageMasks, image_id: str, model: str) -> list[str]:
    rows = masks.rows_N
    prompts = zip(rows["crop"].tolist(), rows["point"].tolist(), rows["output_index"].tolist(), strict=True)
    return [mask_id(image_id, model, crop, point, output) for crop, point, output in prompts]
