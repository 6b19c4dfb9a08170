"""A contact sheet of a store: the images whose masks are most uncertain, with all their masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ConfigError, ImageError
from schemas.records import PoolItem
from schemas.settings import PoolSettings

if TYPE_CHECKING:
    from engine.store import Store

_MODEL = "SELECT model FROM images GROUP BY model ORDER BY max(committed_at) DESC LIMIT 1"
_IMAGES = """
    SELECT i.image_id, any_value(i.uri) AS uri, any_value(i.fingerprint) AS fingerprint, any_value(i.n_masks) AS n_masks,
           max(m.uncertainty) AS uncertainty
    FROM images i JOIN masks m USING (image_id, model)
    WHERE i.model = '{model}'
    GROUP BY i.image_id ORDER BY uncertainty DESC, i.image_id LIMIT {count}
"""
_MASKS = "SELECT rle, uncertainty FROM masks WHERE model = '{model}' AND image_id = '{image_id}'"


def draw_sheet(store: Store, out: Path, *, images: int = 12, model: str | None = None) -> None:
    """Write a PNG with `images` images and their masks, those with the most uncertain masks first.

    Raises:
        ConfigError: the store holds no masks (of that model).
    """
    from engine.masks.rle import decode_rle
    from engine.pool import read_image
    from engine.report.contact_sheet import SheetCell, draw_contact_sheet

    if model is None:
        newest = store.query(_MODEL).to_pylist()
        model = newest[0]["model"] if newest else ""
    quoted = model.replace("'", "''")
    rows = store.query(_IMAGES.format(model=quoted, count=images)).to_pylist()
    if not rows:
        raise ConfigError(
            f"The store {store.files.label} holds no masks{f' of {model}' if model else ''}. Make some: gapmap label POOL --store …"
        )
    cells = []
    for row in rows:
        try:
            pixels = read_image(PoolItem(row["uri"], row["fingerprint"]), PoolSettings()).pixels
        except ImageError:  # moved or deleted since it was labelled
            continue
        found = store.query(_MASKS.format(model=quoted, image_id=row["image_id"])).to_pylist()
        masks = list(decode_rle([m["rle"] for m in found], *pixels.shape[:2]))
        caption = (Path(row["uri"]).name, f"{row['n_masks']} masks, most uncertain {row['uncertainty']:.2f}")
        cells.append(SheetCell(pixels, masks, [m["uncertainty"] for m in found], caption))
    if not cells:
        raise ConfigError(
            "None of the images can be opened any more: the pool was moved or deleted since it was labelled."
        )
    draw_contact_sheet(cells, title=model).save(out)
