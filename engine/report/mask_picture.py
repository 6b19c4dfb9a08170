"""One mask of a store as a picture: its image, the mask and its uncertainty map."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from engine.masks.map_crop import MapCrop
from engine.masks.rle import decode_rle
from engine.pool import reread_copy
from engine.report.map_plots import draw_mask
from engine.store import Store
from engine.store.image_rows import COPIES
from engine.store.whole_file import check_folder, written_whole
from schemas.errors import ConfigError, ImageError

_MASK = """
    WITH found AS (FROM masks WHERE starts_with(mask_id, '{mask_id}') ORDER BY mask_id LIMIT 50)
    SELECT m.mask_id, m.image_id, m.model, m.rle, m.height, m.width, m.area, m.uncertainty, m.sam_score,
           m.predicted_iou, m.map_mean, m.map_uncertain, m.map_source, i.copies
    FROM found m JOIN (SELECT image_id, model, {copies} AS copies FROM images WHERE image_id IN (SELECT image_id FROM found)
                       GROUP BY image_id, model) i USING (image_id, model)
    ORDER BY m.mask_id
"""
_MAP = """SELECT * FROM maps WHERE mask_id = '{mask_id}' AND model = '{model}' AND image_id = '{image_id}' LIMIT 1"""


def draw_mask_picture(store: Store, mask_id: str, out: Path | None = None) -> Path:
    """Write the picture of a mask as a PNG; returns its path.

    Args:
        mask_id: its first digits are enough, if no other mask has them.
        out: the file; MASK_ID.png if not given.

    Raises:
        ConfigError: no mask or several have these digits, its image is not there as it was labelled, or `out` cannot be
            written.
    """
    row = _find_mask(store, mask_id)
    path = out or Path(f"{row['mask_id']}.png")
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path} does not end in .png. Write for example --out mask.png")
    check_folder(path)
    try:
        image = reread_copy(row["copies"], row["image_id"])
    except ImageError as error:
        raise ConfigError(f"{Path(row['copies'][0][0]).name} cannot be shown: {error}") from None
    mask_HW = decode_rle([row["rle"]], row["height"], row["width"])[0]
    map_HW = _read_map(store, row)
    predicted = "" if row["predicted_iou"] is None else f", predicted IoU {row['predicted_iou']:.2f}"
    unsure = (
        f"uncertain: {row['map_uncertain']:.0%} of it, mean {row['map_mean']:.2f} (by {row['map_source']})"
        if map_HW is not None
        else "no uncertainty map: labelled with --maps none"
    )
    lines = (
        Path(image.item.uri).name,
        f"{row['area']} px, SamScore {row['sam_score']:.2f}{predicted}",
        unsure,
    )
    page = draw_mask(image.pixels, mask_HW, map_HW, f"{row['mask_id']}   {row['model']}", lines)
    with written_whole(path) as part:
        page.save(part)
    return path


def _find_mask(store: Store, mask_id: str) -> dict[str, Any]:
    if not re.fullmatch("[0-9a-f]{1,32}", mask_id):
        raise ConfigError(
            f"{mask_id!r} is no mask_id: those are hex digits. Look some up: "
            f'gapmap query "FROM masks" --store {shlex.quote(store.files.label)}'
        )
    found = store.query(_MASK.format(mask_id=mask_id, copies=COPIES)).to_pylist()
    if not found:
        raise ConfigError(f"The store {store.files.label} has no mask {mask_id}…")
    ids = sorted({row["mask_id"] for row in found})
    if len(ids) > 1:
        raise ConfigError(f"Several masks begin with {mask_id}: {', '.join(ids[:3])} … Give more digits.")
    return found[0]


def _read_map(store: Store, row: dict[str, Any]) -> np.ndarray | None:
    if row["map_source"] is None:
        return None
    found = store.query(
        _MAP.format(**{key: str(row[key]).replace("'", "''") for key in ("mask_id", "model", "image_id")})
    )
    for of in found.to_pylist():
        if crop := MapCrop.from_row(of):
            height, width = row["height"], row["width"]
            return crop.sample((0, 0, width, height), (height, width))
    return None
