"""The same pseudo-labels as other methods would teach them: SAM's confidence as the map, or the refiner's masks as labels.

SUM (Liu et al., NeurIPS 2024, section 4.4) compares itself with both. The masks of a store have no logits, so each
is asked of the model again, with its own point; where the answer is another mask (it was made in a crop, say) it is left
out of what both give.

Shape suffixes: N masks of one image, M outputs, h w mask grid, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from engine.learn.embedded import shrink_masks
from engine.learn.losses import mask_iou
from engine.learn.training_images import TrainingImage, TrainingMask
from engine.masks.geometry import mask_boxes
from engine.masks.rle import encode_masks
from engine.models.segmenter import Segmenter
from engine.uncertainty.maps import Refiner, crop_maps
from schemas.records import Prompts

_SAME = 0.8  # IoU on the grid; the stored mask was cut at full resolution


def teach_otherwise(
    refiner: Refiner,
    segmenter: Segmenter,
    images: Sequence[TrainingImage],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """(with 1 - 2 |σ - 0.5| as uncertainty, with the refiner's masks as certain labels), image by image as given.

    Args:
        refiner: whose masks.
        segmenter: the model that made the pseudo-labels.
        images: with masks of its own.
        progress: called with (images done, images in all).
    """
    confident, redrawn = [], []
    for done, image in enumerate(images, 1):
        by_confidence, by_refiner = _teach_image(refiner, segmenter, image)
        confident.append(replace(image, masks=tuple(by_confidence)))
        redrawn.append(replace(image, masks=tuple(by_refiner)))
        if progress:
            progress(done, len(images))
    return confident, redrawn


@torch.inference_mode()
def _teach_image(
    refiner: Refiner, segmenter: Segmenter, image: TrainingImage
) -> tuple[list[TrainingMask], list[TrainingMask]]:
    asked = [mask for mask in image.masks if mask.point is not None]
    if not asked:
        return [], []
    embedding = segmenter.embed([image.load()])
    size = embedding.image_sizes[0]
    points_N2 = torch.tensor([mask.point for mask in asked])
    prompts = Prompts(
        torch.zeros(len(asked), dtype=torch.int64),
        points_N2[:, None],
        torch.ones(len(asked), 1, dtype=torch.int64),
    )
    logits_NMhw = segmenter.decode(embedding, prompts).logits_NMhw
    stored_Nhw = torch.from_numpy(shrink_masks(segmenter, [mask.decode() for mask in asked]))
    stored_NMhw = stored_Nhw[:, None].expand_as(logits_NMhw).to(logits_NMhw.device)
    iou_N, best_N = mask_iou(logits_NMhw - segmenter.mask_threshold, stored_NMhw).max(1)
    same_N = (iou_N >= _SAME).nonzero()[:, 0]
    if not len(same_N):
        return [], []
    asked = [asked[n] for n in same_N.tolist()]
    logits_Nhw = logits_NMhw[same_N, best_N[same_N]]
    drawn_NHW = [mask.decode() for mask in asked]
    boxes_N4 = mask_boxes(np.stack(drawn_NHW))
    doubt_Nhw = 1 - 2 * (logits_Nhw.sigmoid() - 0.5).abs()
    values_Nhw = (doubt_Nhw * 255).round().to(torch.uint8).cpu().numpy()
    crops = crop_maps(values_Nhw, boxes_N4, segmenter.mask_extent(size), size)
    confident = [replace(mask, uncertainty=crop) for mask, crop in zip(asked, crops, strict=True)]
    redrawn_Nhw = refiner.redraw(
        embedding, 0, logits_Nhw, torch.from_numpy(boxes_N4), points_N2[same_N.cpu()]
    )
    masks_NHW = (segmenter.upscale(redrawn_Nhw, size) > segmenter.mask_threshold).cpu().numpy()
    counts = encode_masks(masks_NHW)
    redrawn = [
        replace(mask, counts=rle)
        for mask, rle, mask_HW in zip(asked, counts, masks_NHW, strict=True)
        if mask_HW.any()
    ]
    return confident, redrawn
