"""Masks of overlapping tiles made into masks of the image.

Neighbouring tiles see the same pixels where they overlap. Two masks that agree there are views of one
object: if one of them is whole, it stays and the cut view goes; if a seam cut both, they are joined.

Shape suffixes: N masks of all tiles, 4 box x0 y0 x1 y1 (exclusive ends), image pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from engine.generate.filters import suppress
from engine.generate.records import MAP_STATISTICS, SCORES, ImageMasks
from engine.generate.views import Box
from engine.masks.geometry import touches_edge
from engine.masks.map_crop import join_crops
from engine.masks.rle import combine_rle, encode_crops, mask_iou, measure_rle

_SAME_OBJECT = 0.5  # IoU inside the overlap of two tiles
_CONTAINED = 0.8  # share of a mask that lies in another


def merge_tiles(tiles: Sequence[tuple[Box, ImageMasks]], iou_threshold: float) -> ImageMasks:
    """Join masks across seams and drop what two tiles both found.

    A joined mask has the prompt, crop and output of its best part, and the parts' scores, weighted by
    area. A mask counts as cut when its box comes within 20 pixels of a seam, as at the edge of a crop.
    Tiles that do not overlap leave nothing to agree on: their masks stay cut.

    Args:
        tiles: each tile's box and its masks, already in the frame of the image.
        iou_threshold: box IoU above which the lower predicted IoU goes, in the end.
    """
    height, width = tiles[0][1].height, tiles[0][1].width
    rows_N = np.concatenate([masks.rows_N for _, masks in tiles])
    rles = [rle for _, masks in tiles for rle in masks.rles]
    tile_N = np.repeat(np.arange(len(tiles)), [len(masks) for _, masks in tiles])
    boxes_T4 = np.array([tile for tile, _ in tiles])
    cut_N = touches_edge(rows_N["box"], boxes_T4[tile_N], np.array([0, 0, width, height]))

    groups = _Groups(rles, tile_N, height, width)
    for i, j in _find_links(rows_N, rles, tile_N, boxes_T4, cut_N, height, width):
        groups.unite(i, j)
    maps = [crop for _, masks in tiles for crop in masks.maps or ()]
    rows, texts, crops, largest = [], [], [], []
    for members in groups.members():
        row, rle, parts = _settle(members, rows_N, rles, cut_N, height, width)
        rows.append(row)
        texts.append(rle)
        largest.append(max(parts, key=lambda i: rows_N["area"][i]))
        if maps:
            crops.append(join_crops([maps[i] for i in parts]))
    merged_N = np.array(rows, rows_N.dtype) if rows else rows_N
    kept_N = suppress(merged_N, merged_N["sam_score"], iou_threshold)
    kept = kept_N.tolist()
    mapped = all(masks.maps is not None for _, masks in tiles)
    return ImageMasks(
        height,
        width,
        merged_N[kept_N],
        [texts[i] for i in kept],
        [crops[i] for i in kept] if mapped else None,
        _join_embeddings([masks for _, masks in tiles], [largest[i] for i in kept]),
    )


def _join_embeddings(tiles: Sequence[ImageMasks], places: Sequence[int]) -> np.ndarray | None:
    """Embeddings of the masks at these places among those of all tiles; None where a tile has none."""
    parts = [masks.embedding_NC for masks in tiles if masks.embedding_NC is not None]
    return np.concatenate(parts)[list(places)] if len(parts) == len(tiles) else None


class _Groups:
    """Sets of masks that show one object; two masks of one tile join only where they are apart."""

    def __init__(self, rles: Sequence[str], tile_N: np.ndarray, height: int, width: int) -> None:
        self._rles, self._tile_N, self._size = rles, tile_N, (height, width)
        self._group_of = {i: [i] for i in range(len(rles))}

    def unite(self, i: int, j: int) -> None:
        """Make one set of two, unless they hold overlapping masks of one tile."""
        ours, theirs = self._group_of[i], self._group_of[j]
        if ours is theirs:
            return
        for a in ours:
            same_tile = [self._rles[b] for b in theirs if self._tile_N[a] == self._tile_N[b]]
            if mask_iou([self._rles[a]], same_tile, *self._size).any():
                return
        ours += theirs
        self._group_of.update(dict.fromkeys(theirs, ours))

    def members(self) -> Iterator[list[int]]:
        """Each set once, in the order of its first mask."""
        for i, group in self._group_of.items():
            if i == min(group):
                yield group


def _find_links(
    rows_N: np.ndarray,
    rles: Sequence[str],
    tile_N: np.ndarray,
    boxes_T4: np.ndarray,
    cut_N: np.ndarray,
    height: int,
    width: int,
) -> list[tuple[int, int]]:
    """Pairs of masks that show one object, the surest first."""
    agreeing, containing = [], []
    for tile_a, tile_b in combinations(range(len(boxes_T4)), 2):
        x0, y0 = np.maximum(boxes_T4[tile_a, :2], boxes_T4[tile_b, :2]).tolist()
        x1, y1 = np.minimum(boxes_T4[tile_a, 2:], boxes_T4[tile_b, 2:]).tolist()
        if x0 >= x1 or y0 >= y1:
            continue
        [overlap] = encode_crops([np.ones((y1 - y0, x1 - x0), bool)], np.array([[x0, y0]]), height, width)
        in_overlap_N = _boxes_meet(rows_N["box"], np.array([[x0, y0, x1, y1]]))[:, 0]
        a_N, b_N = (np.flatnonzero(in_overlap_N & (tile_N == tile)) for tile in (tile_a, tile_b))
        inside = {i: combine_rle([rles[i], overlap], height, width, intersect=True) for i in (*a_N, *b_N)}
        area = dict(zip(inside, measure_rle(list(inside.values()), height, width)[0].tolist(), strict=True))
        meet = _boxes_meet(rows_N["box"][a_N], rows_N["box"][b_N]) & (cut_N[a_N][:, None] | cut_N[b_N])
        for i, j in zip(
            *(side[place] for side, place in zip((a_N, b_N), meet.nonzero(), strict=True)), strict=True
        ):
            both = combine_rle([inside[i], inside[j]], height, width, intersect=True)
            shared = int(measure_rle([both], height, width)[0][0])
            if not shared:
                continue
            iou = shared / (area[i] + area[j] - shared)
            if cut_N[i] and cut_N[j]:
                if iou >= _SAME_OBJECT:
                    agreeing.append((iou, i, j))
                elif shared / min(area[i], area[j]) >= _CONTAINED:
                    containing.append((shared / min(area[i], area[j]), i, j))
            elif iou >= _SAME_OBJECT and shared / rows_N["area"][i if cut_N[i] else j] >= _CONTAINED:
                # A whole mask may only replace what it holds.
                agreeing.append((iou, i, j))
    ranked = sorted(agreeing, key=lambda link: -link[0]) + sorted(containing, key=lambda link: -link[0])
    return [(i, j) for _, i, j in ranked]


def _boxes_meet(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Whether boxes share a pixel, bool NM."""
    first_NM2 = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    last_NM2 = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    return (first_NM2 < last_NM2).all(2)


def _settle(
    members: Sequence[int],
    rows_N: np.ndarray,
    rles: Sequence[str],
    cut_N: np.ndarray,
    height: int,
    width: int,
) -> tuple[np.void, str, Sequence[int]]:
    """One mask for what several tiles saw: the best whole view, or the union of the cut ones; and which it is made of."""
    ranked = sorted(members, key=lambda i: -rows_N["sam_score"][i])
    whole = [i for i in ranked if not cut_N[i]]
    best = whole[0] if whole else ranked[0]
    row, rle = rows_N[best].copy(), rles[best]
    if len(members) > 1 and not whole:
        rle = combine_rle([rles[i] for i in members], height, width)
        areas, boxes_N4 = measure_rle([rle], height, width)
        row["area"], row["box"] = areas[0], boxes_N4[0]
        for score in ("sam_score", "stability", "entropy", *SCORES, *MAP_STATISTICS):
            row[score] = np.average(rows_N[score][members], weights=rows_N["area"][members])
        # What two tiles both saw is in it once: never more than the mask has.
        row["map_certain_area"] = min(rows_N["map_certain_area"][members].sum(), areas[0])
        return row, rle, members
    return row, rle, [best]
