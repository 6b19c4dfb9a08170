"""Boxes, stability, edges and regions of masks.

Shape suffixes: N masks, H W image, 4 box x0 y0 x1 y1 (x1 and y1 exclusive), pixels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def mask_boxes(masks_NHW: np.ndarray) -> np.ndarray:
    """Tight box of each mask; an empty mask has the box 0 0 0 0.

    Args:
        masks_NHW: bool.

    Returns:
        boxes_N4, int32.
    """
    if not masks_NHW.size:
        return np.zeros((len(masks_NHW), 4), np.int32)
    in_rows_NH: np.ndarray = np.logical_or.reduce(masks_NHW, axis=2)
    in_columns_NW: np.ndarray = np.logical_or.reduce(masks_NHW, axis=1)
    height, width = masks_NHW.shape[1:]
    boxes_4N = [
        in_columns_NW.argmax(1),
        in_rows_NH.argmax(1),
        width - in_columns_NW[:, ::-1].argmax(1),
        height - in_rows_NH[:, ::-1].argmax(1),
    ]
    return (np.stack(boxes_4N, 1) * in_rows_NH.max(axis=1)[:, None]).astype(np.int32)


def touches_edge(
    boxes_N4: np.ndarray, crop: np.ndarray, image: np.ndarray, tolerance: int = 20
) -> np.ndarray:
    """Which boxes end at an edge of their crop that is no edge of the image.

    Args:
        boxes_N4: boxes in the frame of `crop` and `image`.
        crop: box that the masks were made in, of 4 or N4.
        image: box of 4 around everything.
        tolerance: pixels that count as touching; 20 is what both packages take.

    Returns:
        bool, N.
    """
    near_crop_N4 = np.abs(boxes_N4 - crop) <= tolerance
    near_image_N4 = np.abs(boxes_N4 - image) <= tolerance
    return (near_crop_N4 & ~near_image_N4).any(1)


def paste_crop(crop: np.ndarray, x0: int, y0: int, height: int, width: int) -> np.ndarray:
    """The mask of a whole image, bool HW, from the crop whose top-left pixel is at x0, y0."""
    mask_HW = np.zeros((height, width), bool)
    mask_HW[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    return mask_HW


def remove_small_regions(mask_HW: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill holes and drop islands smaller than `min_area` pixels; the largest island always stays.

    As `segment_anything.utils.amg.remove_small_regions`, holes first; regions are 8-connected. A
    hole is a background region, so small background at the array's border is filled as well.

    Args:
        mask_HW: bool.
        min_area: pixels.

    Returns:
        The mask, and whether it changed.
    """
    holes_HW = _small_regions(~mask_HW, min_area)
    filled_HW = mask_HW | holes_HW
    islands_HW = _small_regions(filled_HW, min_area)
    changed = bool(holes_HW.any() or islands_HW.any())
    if changed and (islands_HW == filled_HW).all():
        regions_HW, _ = ndimage.label(filled_HW, _EIGHT_NEIGHBOURS)
        sizes = np.bincount(regions_HW.ravel(), minlength=2)
        return regions_HW == sizes[1:].argmax() + 1, True
    return filled_HW & ~islands_HW, changed


def _small_regions(mask_HW: np.ndarray, min_area: int) -> np.ndarray:
    regions_HW, _ = ndimage.label(mask_HW, _EIGHT_NEIGHBOURS)
    small = np.bincount(regions_HW.ravel()) < min_area
    small[0] = False
    return small[regions_HW]
