"""A contact sheet of a store: the images whose masks are most uncertain, with all their masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigError, ImageError

if TYPE_CHECKING:
    import numpy as np

    from engine.store import Store

_KINDS = (".png", ".jpg", ".jpeg")
_IMAGES = """
    SELECT i.image_id, min(i.uri) AS uri, arg_min(i.fingerprint, i.uri) AS fingerprint,
           count(DISTINCT m.mask_id) AS n_masks, max(m.uncertainty) AS uncertainty
    FROM images i JOIN masks m USING (image_id, model)
    WHERE i.model = '{model}' AND m.replaced_by IS NULL
    GROUP BY i.image_id ORDER BY uncertainty DESC, i.image_id LIMIT {count}
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
    from engine.pool import reread_image
    from engine.report.contact_sheet import SheetCell, draw_contact_sheet, draw_masks
    from engine.store.model_choice import newest_model
    from engine.store.whole_file import written_whole

    _check_out(out)
    model = newest_model(store, model)
    quoted = model.replace("'", "''")
    rows = store.query(_IMAGES.format(model=quoted, count=images)).to_pylist()
    cells, left_out = [], []
    for row in rows:
        name = Path(row["uri"]).name
        try:
            image = reread_image(row["uri"], row["fingerprint"], row["image_id"])
        except ImageError as error:
            left_out.append(f"{name} is left out: {error}")
            continue
        found = store.query(_MASKS.format(model=quoted, image_id=row["image_id"])).to_pylist()
        caption = (name, f"{row['n_masks']} masks, most uncertain {row['uncertainty']:.2f}")
        cells.append(SheetCell(draw_masks(image.pixels, _one_by_one(found)), caption))
    if not cells:
        raise ConfigError(
            "None of the images can be opened as they were: the pool was moved, deleted or replaced since it was labelled."
        )
    with written_whole(out) as part:
        draw_contact_sheet(cells, title=model).save(part)
    return left_out


def _one_by_one(masks: list[dict[str, Any]]) -> Iterator[tuple[np.ndarray, float]]:
    from engine.masks.rle import decode_rle

    for mask in masks:
        yield decode_rle([mask["rle"]], mask["height"], mask["width"])[0], mask["uncertainty"]


def _check_out(out: Path) -> None:
    from engine.store.whole_file import check_folder

    if out.suffix.lower() not in _KINDS:
        raise ConfigError(f"{out} does not end in {', '.join(_KINDS)}. Write for example {out}.png.")
    check_folder(out)
