"""Automatic masks of batches of images: a grid of points, decoded, filtered and freed of duplicates.

The masks are those of `segment_anything.SamAutomaticMaskGenerator` and
`sam2.automatic_mask_generator.SAM2AutomaticMaskGenerator` (Kirillov et al., "Segment Anything", ICCV
2023, appendix B). Both enlarge every output to the image's size before they filter; here nothing is
enlarged that a filter drops, nor where enlarging cannot change anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np
import torch

from engine.generate.defaults import complete_settings
from engine.generate.drawing import Drawn, draw_view
from engine.generate.enlarge import Enlargement
from engine.generate.filters import Candidates, Outputs, filter_outputs, suppress
from engine.generate.records import ImageMasks, Mapper, Scorer
from engine.generate.seams import merge_tiles
from engine.generate.surrogate import STEPS, Surrogate
from engine.generate.views import Box, View, plan_views
from engine.masks.geometry import mask_boxes, paste_crop, remove_small_regions
from engine.masks.rle import encode_crops
from engine.models.segmenter import Segmenter
from schemas.records import Embedding, Prompts
from schemas.settings import GenerateSettings

# What the prompts of an image share is made once a batch; the masks of a batch are held at once.
_POINTS_PER_BATCH = 128


@torch.inference_mode()
def generate_masks(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    settings: GenerateSettings,
    *,
    scorer: Scorer | None = None,
    mapper: Mapper | None = None,
    points_per_batch: int | None = None,
    images_per_batch: int = 4,
    on_progress: Callable[[int], None] | None = None,
) -> list[ImageMasks]:
    """Masks of everything in each image.

    Batch sizes change speed and memory, not results (up to the rounding of the model's products).
    An image larger than `settings.tile_size` is cut into tiles; masks that a seam cuts are joined.
    `min_mask_region_area` works on the pixels of the finished masks, as segment-anything's does.

    Args:
        segmenter: the model.
        images: uint8 HW3 RGB; sizes may differ.
        settings: which masks are kept; thresholds that are None are those that suit the model.
        scorer: scores the masks that are kept (such as a `HeadSet`); None leaves their scores NaN.
        mapper: draws uncertainty maps of the masks that are kept (such as a `Refiner`); None draws none.
        points_per_batch: prompts decoded at once; by default 128.
        images_per_batch: images, crops or tiles embedded at once.
        on_progress: called with the number of images done so far.

    Returns:
        The masks of each image, in the order of `images`.

    Raises:
        ConfigError: settings that ask for a grid without points.
        ValueError: an image of another type or shape.
    """
    settings = complete_settings(settings, segmenter)
    points_per_batch = points_per_batch or _POINTS_PER_BATCH
    views = [view for i, image in enumerate(images) for view in plan_views(i, image.shape[:2], settings)]
    drawn = _draw_views(
        segmenter, images, views, settings, scorer, mapper, points_per_batch, images_per_batch
    )
    results = []
    for index, of_image in groupby(drawn, key=lambda pair: pair[0].image):
        height, width = images[index].shape[:2]
        tiles = []
        for tile, of_tile in groupby(of_image, key=lambda pair: pair[0].tile):
            masks = _finish_tile(tile, [drawn for _, drawn in of_tile], settings)
            rles = encode_crops(masks.pixels, masks.rows_N["box"][:, :2], height, width)
            found = ImageMasks(height, width, masks.rows_N, rles, masks.maps, masks.embedding_NC)
            tiles.append((tile, found))
        results.append(tiles[0][1] if len(tiles) == 1 else merge_tiles(tiles, settings.crop_nms_thresh))
        if on_progress is not None:
            on_progress(len(results))
    return results


def _draw_views(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    views: Sequence[View],
    settings: GenerateSettings,
    scorer: Scorer | None,
    mapper: Mapper | None,
    points_per_batch: int,
    images_per_batch: int,
) -> Iterator[tuple[View, Drawn]]:
    """Each view with its masks, in order; a view's logits are dropped before the next batch."""
    enlargements: dict[tuple[int, int], Enlargement] = {}
    for start in range(0, len(views), images_per_batch):
        batch = views[start : start + images_per_batch]
        enlargements = {
            view.size: enlargements.get(view.size) or Enlargement(segmenter, view.size) for view in batch
        }
        crops = [
            images[view.image][view.crop[1] : view.crop[3], view.crop[0] : view.crop[2]] for view in batch
        ]
        embedding = segmenter.embed(crops)
        filters = [
            partial(
                filter_outputs,
                segmenter,
                enlargements[view.size],
                view,
                settings=settings,
                for_scorer=scorer is not None,
            )
            for view in batch
        ]
        decoded = _decode_views(segmenter, embedding, batch, filters, settings, points_per_batch)
        for index, candidates in groupby(decoded, key=lambda pair: pair[0]):
            view = batch[index]
            enlargement = enlargements[view.size]
            parts = [part for _, part in candidates]
            map_view = partial(mapper.map_masks, embedding, index) if mapper else None
            features_Cee = embedding.features_BCHW[index]
            yield (
                view,
                draw_view(segmenter, enlargement, view, features_Cee, parts, settings, scorer, map_view),
            )


def _decode_views(
    segmenter: Segmenter,
    embedding: Embedding,
    views: Sequence[View],
    filters: Sequence[Callable[[Outputs], Candidates]],
    settings: GenerateSettings,
    points_per_batch: int,
) -> Iterator[tuple[int, Candidates]]:
    """What the filters keep of every view's points, view after view; of a grid, one decode may hold points of several views.

    Points without an output that the predicted-IoU filter would pass are not drawn.
    """
    points_P2 = np.concatenate([view.points_P2 for view in views])
    view_P = np.repeat(np.arange(len(views)), [len(view.points_P2) for view in views])
    promise_P, passed_P = np.zeros(len(view_P)), np.zeros(len(view_P), bool)

    def decode(asked_K: np.ndarray) -> Iterator[tuple[int, Candidates]]:
        for start in range(0, len(asked_K), points_per_batch):
            asked = asked_K[start : start + points_per_batch]
            prompts = Prompts(
                image_index_N=torch.from_numpy(view_P[asked]),
                points_NP2=torch.from_numpy(points_P2[asked, None].astype(np.float32)),
                labels_NP=torch.ones(len(asked), 1, dtype=torch.int64),
            )
            decoded = segmenter.decode(embedding, prompts, min_iou=settings.pred_iou_thresh or None)
            promise_P[asked] = decoded.promise_P.cpu().numpy()
            drawn_K = asked[decoded.prompt_N.cpu().numpy()]
            for index in np.unique(view_P[asked]).tolist():
                first, last = np.searchsorted(view_P[drawn_K], [index, index + 1]).tolist()
                outputs = Outputs(
                    points_P2[drawn_K[first:last]],
                    decoded.logits_NMhw[first:last],
                    decoded.iou_NM[first:last],
                    decoded.iou_token_NC[first:last],
                    decoded.mask_tokens_N4C[first:last],
                )
                candidates = filters[index](outputs)
                passed_P[drawn_K[first:last][candidates.prompt_N]] = True
                yield index, candidates

    if settings.points == "grid":
        yield from decode(np.arange(len(view_P)))
        return
    for index, view in enumerate(views):
        first, last = np.searchsorted(view_P, [index, index + 1]).tolist()
        rows, columns = segmenter.mask_extent(view.size)
        covered_2 = (columns / segmenter.grid_size, rows / segmenter.grid_size)
        surrogate = Surrogate(embedding.features_BCHW[index], covered_2, math.isqrt(last - first))
        next_P = surrogate.first_points()
        asked_P = next_P.copy()
        for step in range(1, STEPS + 1):
            yield from decode(first + np.flatnonzero(next_P))
            next_P = surrogate.next_points(
                asked_P,
                promise_P[first:last],
                passed_P[first:last],
                settings.pred_iou_thresh or -math.inf,
                all_at_once=step == STEPS,
            )
            asked_P |= next_P
        yield from decode(first + np.flatnonzero(next_P))


def _finish_tile(tile: Box, views: Sequence[Drawn], settings: GenerateSettings) -> Drawn:
    """Suppress duplicates between a tile's crops, smaller crops first; then mend small regions."""
    masks = Drawn.join(views)
    if len(views) > 1:
        x0, y0, x1, y1 = masks.rows_N["crop"].T.astype(np.int64)
        smallest_first_N = np.asarray(1 / ((x1 - x0) * (y1 - y0)))
        masks = masks.pick(suppress(masks.rows_N, smallest_first_N, settings.crop_nms_thresh))
    if settings.min_mask_region_area > 0 and len(masks.pixels):
        masks = _mend_regions(tile, masks, settings)
    return masks


def _mend_regions(tile: Box, masks: Drawn, settings: GenerateSettings) -> Drawn:
    """Fill small holes and drop small islands; of duplicates, masks that needed no mending stay."""
    left, top, right, bottom = tile
    rows_N, pixels = masks.rows_N.copy(), list(masks.pixels)
    unchanged_N = np.ones(len(rows_N))
    for i, (row, crop) in enumerate(zip(rows_N, masks.pixels, strict=True)):
        x0, y0, _, _ = row["box"] - (left, top, left, top)
        mask_HW = paste_crop(crop, x0, y0, bottom - top, right - left)
        mask_HW, changed = remove_small_regions(mask_HW, settings.min_mask_region_area)
        if changed:
            x0, y0, x1, y1 = mask_boxes(mask_HW[None])[0]
            pixels[i] = mask_HW[y0:y1, x0:x1]
            rows_N["box"][i] = (left + x0, top + y0, left + x1, top + y1)
            rows_N["area"][i] = pixels[i].sum()
            unchanged_N[i] = 0
    threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
    return replace(masks, rows_N=rows_N, pixels=pixels).pick(suppress(rows_N, unchanged_N, threshold))
