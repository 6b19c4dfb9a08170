"""A contact sheet of a store: the images whose masks are most uncertain, with all their masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.masks.rle import decode_rle
from engine.pool import reread_copy
from engine.report.contact_sheet import SheetCell, draw_contact_sheet, draw_masks
from engine.store import Store
from engine.store.image_rows import COPIES
from engine.store.model_choice import newest_model
from engine.store.whole_file import check_folder, written_whole
from schemas.errors import ConfigError, ImageError

_KINDS = (".png", ".jpg", ".jpeg")
_IMAGES = """
    WITH unsure AS (SELECT image_id, count(*) AS n_masks, max(uncertainty) AS most FROM masks
                    WHERE model = '{model}' AND replaced_by IS NULL
                    GROUP BY image_id ORDER BY most DESC, image_id LIMIT {count})
    SELECT image_id, any_value(unsure.n_masks) AS n_masks, any_value(most) AS uncertainty, {copies} AS copies
    FROM images JOIN unsure USING (image_id) WHERE model = '{model}'
    GROUP BY image_id ORDER BY uncertainty DESC, image_id
"""
_MASKS = """
    SELECT rle, height, width, uncertainty FROM masks
    WHERE model = '{model}' AND image_id = '{image_id}' AND replaced_by IS NULL ORDER BY area DESC, mask_id
"""


def draw_sheet(store: Store, out: Path, *, images: int = 12, model: str | None = None) -> list[str]:
    """Write a picture with `images` images and their masks, those with the most uncertain masks first.

    Args:
        out: a PNG or JPEG, by its extension.
        model: whose masks, by name or name@version; None for the model that labelled last.

    Returns:
        A line for each image that was left out, because its file is not there as it was labelled.

    Raises:
        ConfigError: the store holds no masks (of that model), or `out` cannot be written.
    """
    _check_out(out)
    model = newest_model(store, model)
    quoted = model.replace("'", "''")
    rows = store.query(_IMAGES.format(model=quoted, count=images, copies=COPIES)).to_pylist()
    cells, left_out = [], []
    for row in rows:
        try:
            image = reread_copy(row["copies"], row["image_id"])
        except ImageError as error:
            left_out.append(f"{Path(row['copies'][0][0]).name} is left out: {error}")
            continue
        found = store.query(_MASKS.format(model=quoted, image_id=row["image_id"])).to_pylist()
        caption = (
            Path(image.item.uri).name,
            f"{row['n_masks']} masks, most uncertain {row['uncertainty']:.2f}",
        )
        cells.append(SheetCell(draw_masks(image.pixels, _one_by_one(found)), caption))
    if not cells:
        raise ConfigError(
            "None of the images can be opened as they were: the pool was moved, deleted or replaced since it was labelled."
        )
    with written_whole(out) as part:
        draw_contact_sheet(cells, title=model).save(part)
    return left_out


def _one_by_one(masks: list[dict[str, Any]]) -> Iterator[tuple[np.ndarray, float]]:
    for mask in masks:
        yield decode_rle([mask["rle"]], mask["height"], mask["width"])[0], mask["uncertainty"]


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in _KINDS:
        raise ConfigError(f"{out} does not end in {', '.join(_KINDS)}. Write for example {out}.png.")
    check_folder(out)
