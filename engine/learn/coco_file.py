"""A COCO file, read and checked: the records of its images, and their masks as run lengths.

pycocotools takes what it is given: of run lengths that do not fit it makes masks of nonsense, of other things errors in its own
words. So all is checked first, and errors name the file and the annotation.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

from engine.masks.rle import fills_image
from schemas.errors import ConfigError, nearest_name
from schemas.records import TASKS

_log = logging.getLogger(__name__)

_FARTHEST = 2**20  # pixels; a polygon is drawn step by step, also where it is outside of the picture
_MOST_PIXELS = 2**32  # runs are counted in 32 bits

Mask = tuple[dict[str, Any], int, str]
"""COCO run lengths, area in pixels, and task."""


def read_coco_file(path: Path) -> list[tuple[dict[str, Any], list[Mask]]]:
    """Records of the images that have masks, in file order, with their masks, at least one and all of one size.

    Crowds are left out, and annotations whose mask is missing or has no pixels; of those it is said how many.

    Raises:
        ConfigError: the file is missing or is no COCO file, or an image or an annotation in it is damaged.
    """
    images, annotations = _load(path)
    masks: dict[Any, list[Mask]] = {key: [] for key in images}
    without = []
    for place, annotation in enumerate(annotations, 1):
        named = f"annotation {annotation.get('id', f'number {place}')}"
        if annotation.get("iscrowd"):
            continue
        try:
            key = annotation.get("image_id")
            if not isinstance(key, int | float | str) or key not in images:
                raise ValueError(f"names image {key}, which is not in images")
            mask = _read_mask(annotation, images[key])
        except ValueError as error:
            raise ConfigError(f"{path}: {named} {error}. Mend it, or take it out of the file.") from None
        if mask is None:
            without.append(named)
        else:
            masks[key].append(mask)
    if without:
        _log.warning(
            "%s: %d annotations have no mask and are left out. First: %s", path, len(without), without[0]
        )
    for key, of in masks.items():
        sizes = {tuple(rle["size"]) for rle, _, _ in of}
        if len(sizes) > 1:
            raise ConfigError(
                f"{path}: masks of {images[key]['file_name']} have different sizes (height, width): {sorted(sizes)}. "
                "Give all of them the picture's."
            )
    return [(images[key], of) for key, of in masks.items() if of]


def _load(path: Path) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """Records of images by their id, and annotations.

    Raises:
        ConfigError: the file is missing or is no COCO file, or an image in it has no id of its own or no name.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            content = {}
        records, annotations = (_pick_records(content.get(name)) for name in ("images", "annotations"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{path} is not a readable COCO file ({why}); give a JSON with images and annotations."
        ) from None
    images: dict[Any, dict[str, Any]] = {}
    for place, record in enumerate(records, 1):
        key, name = record.get("id"), record.get("file_name")
        if not isinstance(key, int | float | str) or not isinstance(name, str):
            raise ConfigError(f"{path}: image number {place} has no id or no file_name. Give it both.")
        if key in images:
            raise ConfigError(
                f"{path}: {images[key]['file_name']} and {name} have the same id, {key}. Give each image its own."
            )
        images[key] = record
    return images, annotations


def _pick_records(of: Any) -> list[dict[str, Any]]:
    if not isinstance(of, list) or not all(isinstance(record, dict) for record in of):
        raise ValueError("it has no lists of images and annotations")
    return of


def _read_mask(annotation: dict[str, Any], image: dict[str, Any]) -> Mask | None:
    """None where there is no mask, or one without pixels.

    Raises:
        ValueError: what of the annotation is wrong.
    """
    task = annotation.get("task") or "entity"
    if task not in TASKS:
        raise ValueError(
            f"has the task {task!r}, which is none. {nearest_name(str(task), TASKS)}".rstrip(".")
        )
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        rle = _draw_polygons(segmentation, image)
    elif isinstance(segmentation, dict):
        rle = _check_runs(segmentation)
    else:
        raise ValueError("has a segmentation that is neither polygons nor run lengths")
    area = int(coco_mask.area(rle)) if rle else 0
    return (rle, area, task) if rle and area else None


def _draw_polygons(polygons: list[Any], image: dict[str, Any]) -> dict[str, Any] | None:
    size = [image.get("height"), image.get("width")]
    if not _is_size(size):
        raise ValueError(f"is of {image['file_name']}, which has no height and width in pixels")
    outlines = []
    for polygon in polygons:
        try:
            outline = np.asarray(polygon, float)
        except (ValueError, TypeError, OverflowError):
            outline = np.empty((0, 0))
        if outline.ndim != 1:
            raise ValueError("has a polygon that is no list of numbers")
        if len(outline) % 2:
            raise ValueError(f"has a polygon of {len(outline)} numbers; each point has x and y")
        if not (np.abs(outline) < _FARTHEST).all():  # nor is NaN
            raise ValueError("has a polygon with a point that is no number, or far outside of any picture")
        if len(outline) >= 6:  # a point or a line encloses nothing
            outlines.append(outline.tolist())
    return coco_mask.merge(coco_mask.frPyObjects(outlines, *size)) if outlines else None


def _check_runs(rle: dict[str, Any]) -> dict[str, Any]:
    """Compressed run lengths of any."""
    size, counts = rle.get("size"), rle.get("counts")
    if not _is_size(size):
        raise ValueError(f"has run lengths of the size {size}; give height and width in pixels")
    if isinstance(counts, list):
        runs = all(isinstance(run, int) and run >= 0 for run in counts)
        fills = runs and sum(counts) == math.prod(size)
    else:
        fills = isinstance(counts, str) and fills_image(counts, *size)
    if not fills:
        raise ValueError(
            f"has run lengths that do not fill its {size[0]} x {size[1]} pixels (height x width)"
        )
    return coco_mask.frPyObjects(rle, *size) if isinstance(counts, list) else {"size": size, "counts": counts}


def _is_size(size: Any) -> TypeGuard[list[int]]:
    """Whether it is height and width."""
    if not isinstance(size, list) or len(size) != 2:
        return False
    return all(isinstance(side, int) and side > 0 for side in size) and math.prod(size) < _MOST_PIXELS
