"""The masks that a model is least sure of as small pictures, to be put into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.masks.map_crop import MapCrop
from engine.masks.rle import decode_rle
from engine.pool import reread_copy
from engine.report.map_plots import draw_panels
from engine.report.round_data import image_name
from engine.store.image_rows import COPIES
from schemas.errors import GapmapError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.store.snapshot import Snapshot

_COUNT, _SIDE, _QUALITY = 12, 240, 82
_SPARE = 24  # tried in place of images that are gone
# Of each image its most uncertain mask first, so that one image does not fill the gallery.
_MOST_UNCERTAIN = f"""
    WITH top AS (FROM masks WHERE model = $model AND replaced_by IS NULL ORDER BY uncertainty DESC, mask_id LIMIT 2000),
         spread AS (SELECT *, row_number() OVER (PARTITION BY image_id ORDER BY uncertainty DESC, mask_id) AS place FROM top
                    ORDER BY place, uncertainty DESC, mask_id LIMIT $count)
    SELECT s.mask_id, s.image_id, s.rle, s.height, s.width, s.uncertainty, s.predicted_iou, s.model_gap, s.prompt_gap,
           s.task_gap, d.decision, i.copies, l.verdict, l.iou,
           p.x0, p.y0, p.x1, p.y1, p.rows, p.columns, p.values
    FROM spread s
    JOIN (SELECT image_id, {COPIES} AS copies FROM images
          WHERE model = $model AND image_id IN (SELECT image_id FROM spread) GROUP BY image_id) i USING (image_id)
    LEFT JOIN (SELECT * FROM maps WHERE model = $model AND mask_id IN (SELECT mask_id FROM spread)) p
           ON p.mask_id = s.mask_id AND p.image_id = s.image_id
    LEFT JOIN (FROM decisions WHERE model = $model) d ON d.mask_id = s.mask_id AND d.image_id = s.image_id
    LEFT JOIN (FROM labels WHERE verdict <> 'withdrawn'
               QUALIFY row_number() OVER (PARTITION BY mask_id ORDER BY answered_at DESC) = 1) l ON l.mask_id = s.mask_id
    ORDER BY s.place, s.uncertainty DESC, s.mask_id
"""


@dataclass(frozen=True)
class GalleryPicture:
    """One mask: its surroundings, the mask on them, and its map on them where there is one.

    Attributes:
        row: `mask_id`, `uncertainty`, `predicted_iou`, the gaps, `decision`, and `verdict` and `iou` of an answer.
        name: of the image.
        panels: data URIs of JPEG.
        size: width and height of each, pixels.
    """

    row: Mapping[str, Any]
    name: str
    panels: Sequence[str]
    size: tuple[int, int]


@dataclass(frozen=True)
class Gallery:
    """The most uncertain masks, and (name, reason) of images that could not be shown."""

    pictures: Sequence[GalleryPicture]
    missing: Sequence[tuple[str, str]]


def draw_gallery(snapshot: Snapshot, model: str) -> Gallery:
    """The twelve most uncertain masks that hold; those of images that are gone are named, and others take their place."""
    rows = snapshot.rows(_MOST_UNCERTAIN, {"model": model, "count": _COUNT + _SPARE})
    pictures: list[GalleryPicture] = []
    missing: dict[str, tuple[str, str]] = {}
    for row in rows:
        if len(pictures) == _COUNT:
            break
        if row["image_id"] in missing:
            continue
        try:
            image = reread_copy(row["copies"], row["image_id"])
        except GapmapError as error:  # a page is worth having without the bucket's credentials, too
            missing[row["image_id"]] = (image_name(row["copies"][0][0]), str(error))
            continue
        size = row["height"], row["width"]
        crop = MapCrop.from_row(row)
        map_HW = crop.sample((0, 0, size[1], size[0]), size) if crop else None
        panels = draw_panels(image.pixels, decode_rle([row["rle"]], *size)[0], map_HW, side=_SIDE)
        pictures.append(
            GalleryPicture(
                row, image_name(image.item.uri), [_embed(panel) for panel in panels], panels[0].size
            )
        )
    return Gallery(pictures, list(missing.values()))


def _embed(panel: Any) -> str:
    buffer = io.BytesIO()
    panel.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
