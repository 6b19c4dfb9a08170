"""The interactive protocol: a person clicks, looks, and clicks where the mask is most wrong; how good is it after how
many clicks?

SAM (Kirillov et al. 2023, section 7.1) and SUM (Liu et al., NeurIPS 2024, section 4): clicks as in `points`; from the
second round on the model is given all clicks so far and its logits of the round before. What is meant by a mask
(salient, entity, part) is told with the first click only, as SUM teaches it. In every round the model gives three
masks, and the one that matches the truth best counts and is passed on ("best of the outputs"), also with several
clicks, where SAM's own interface would take its single mask. Figures are taken at the image's full resolution:
IoU, and boundary IoU within 0.02 of the image's diagonal.

Shape suffixes: N masks of one image and task, h w mask grid, H W image, P clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from engine.evaluate.mask_results import MOST_POINTS, MaskResult
from engine.evaluate.points import correcting_point, innermost_point
from engine.learn.data import LabelledImage, LabelledMask, spread_evenly
from engine.masks.boundary import boundary_iou
from engine.masks.rle import encode_masks
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError
from schemas.records import TASKS, Embedding, Prompts

_MASKS_AT_ONCE = 32
_PIXELS_AT_ONCE = 2**22  # of logits enlarged at once


def choose_images(
    sets: Mapping[str, Sequence[LabelledImage]], images: int | None = None, masks: int | None = None
) -> dict[str, list[LabelledImage]]:
    """What to evaluate on: masks that have pixels, and images that have masks.

    Args:
        sets: labelled images by the set's name.
        images: at most so many of a set, evenly spread; None for all.
        masks: at most so many of an image, evenly spread, so that a crowd does not outweigh the rest; None for all.

    Raises:
        ConfigError: a set has nothing to evaluate.
    """
    chosen = {}
    for name, of in sets.items():
        usable = [replace(image, masks=tuple(mask for mask in image.masks if mask.area)) for image in of]
        usable = [image for image in usable if image.masks]
        if not usable:
            raise ConfigError(f"The set {name!r} has no labelled image to evaluate on. Leave it out.")
        chosen[name] = [
            replace(image, masks=tuple(spread_evenly(image.masks, masks or len(image.masks))))
            for image in spread_evenly(usable, images or len(usable))
        ]
    return chosen


def evaluate_interactive(
    segmenter: Segmenter,
    sets: Mapping[str, Sequence[LabelledImage]],
    points: Sequence[int] = (1, 3, 5),
    *,
    tell_task: bool = True,
    keep_masks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[MaskResult]:
    """Click at every mask of the sets; one result for each mask and each of the numbers of clicks.

    Where a mask is right to the pixel the last click is given again.

    Args:
        segmenter: the model.
        sets: labelled images by the set's name, as `choose_images` gives them.
        points: numbers of clicks to report, 1 to `MOST_POINTS`.
        tell_task: tell the model with the first click what is meant; a model that was not taught tasks does not care.
        keep_masks: keep the masks of the last number of clicks, to be drawn.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: an image cannot be read, or has another size than its masks.
        ValueError: numbers of clicks that are none.
    """
    if not points or not all(1 <= count <= MOST_POINTS for count in points):
        raise ValueError(f"Numbers of clicks go from 1 to {MOST_POINTS}, not {list(points)}.")
    results: list[MaskResult] = []
    done, total = 0, sum(len(of) for of in sets.values())
    for name, of in sets.items():
        for image in of:
            results += _click_image(segmenter, name, image, points, tell_task, keep_masks)
            done += 1
            if progress:
                progress(done, total)
    return results


def _click_image(
    segmenter: Segmenter,
    data: str,
    image: LabelledImage,
    points: Sequence[int],
    tell_task: bool,
    keep_masks: bool,
) -> list[MaskResult]:
    pixels = image.load()
    size = tuple(image.masks[0].rle["size"])  # type: ignore[arg-type, var-annotated]
    if pixels.shape[:2] != size:
        raise ConfigError(
            f"{image.name} has {pixels.shape[0]} x {pixels.shape[1]} pixels, its masks in {data!r} have {size[0]} x "
            f"{size[1]}. Mend its size in the COCO file, or take it out."
        )
    embedding = segmenter.embed([pixels])
    found: dict[int, list[MaskResult]] = {index: [] for index in range(len(image.masks))}
    for task, indices in _chunks(image.masks):
        truths_NHW = np.stack([image.masks[index].decode() for index in indices])
        rounds = _click(segmenter, embedding, truths_NHW, task if tell_task else TASKS[0])
        for count, (masks_NHW, iou_N, clicks_NP3) in zip(range(1, max(points) + 1), rounds, strict=False):
            if count not in points:
                continue
            kept = keep_masks and count == max(points)
            rles = encode_masks(masks_NHW) if kept else [None] * len(indices)
            for n, index in enumerate(indices):
                found[index].append(
                    MaskResult(
                        data=data,
                        group=image.group,
                        image=image.name,
                        mask=index,
                        task=task,
                        points=count,
                        iou=float(iou_N[n]),
                        biou=boundary_iou(masks_NHW[n], truths_NHW[n]),
                        clicks=tuple((float(x), float(y), int(label)) for x, y, label in clicks_NP3[n]),
                        rle=rles[n],
                    )
                )
    return [result for of in found.values() for result in of]


def _chunks(masks: Sequence[LabelledMask]) -> Iterator[tuple[str, list[int]]]:
    """Places of masks of one task, a batch's worth at a time."""
    for task in dict.fromkeys(mask.task for mask in masks):
        indices = [index for index, mask in enumerate(masks) if mask.task == task]
        for start in range(0, len(indices), _MASKS_AT_ONCE):
            yield task, indices[start : start + _MASKS_AT_ONCE]


def _click(
    segmenter: Segmenter, embedding: Embedding, truths_NHW: np.ndarray, task: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Round after round without end: masks_NHW, their IoU_N, and the clicks that led to them, x y label, NP3."""
    count = len(truths_NHW)
    rows_N = torch.arange(count)
    clicks_NP3 = np.array([[(*innermost_point(truth), 1)] for truth in truths_NHW], np.float32)
    logits_N1hw = None
    while True:
        prompts = Prompts(
            torch.zeros(count, dtype=torch.int64),
            torch.from_numpy(clicks_NP3[..., :2].copy()),
            torch.from_numpy(clicks_NP3[..., 2].astype(np.int64)),
            masks_N1hw=logits_N1hw,
        )
        told = task if logits_N1hw is None else TASKS[0]
        logits_NMhw = segmenter.decode(embedding, prompts, task=told).logits_NMhw
        masks_NHW, iou_N, best_N = _pick_best(segmenter, logits_NMhw, truths_NHW)
        yield masks_NHW, iou_N, clicks_NP3
        logits_N1hw = logits_NMhw[rows_N, torch.from_numpy(best_N)][:, None]
        following = [
            correcting_point(mask, truth) or clicks_P3[-1]
            for mask, truth, clicks_P3 in zip(masks_NHW, truths_NHW, clicks_NP3.tolist(), strict=True)
        ]
        clicks_NP3 = np.concatenate([clicks_NP3, np.array(following, np.float32)[:, None]], 1)


def _pick_best(
    segmenter: Segmenter, logits_NMhw: torch.Tensor, truths_NHW: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each prompt's outputs the one that matches best: masks_NHW, its IoU_N, and which it is."""
    count, outputs = logits_NMhw.shape[:2]
    height, width = truths_NHW.shape[1:]
    masks_NHW, iou_N, best_N = np.empty(truths_NHW.shape, bool), np.empty(count), np.empty(count, np.int64)
    step = max(1, _PIXELS_AT_ONCE // (outputs * height * width))
    for start in range(0, count, step):
        part = logits_NMhw[start : start + step].flatten(0, 1)
        drawn = segmenter.upscale(part, (height, width)) > segmenter.mask_threshold
        for n, outputs_MHW in enumerate(drawn.cpu().numpy().reshape(-1, outputs, height, width), start):
            truth = truths_NHW[n]
            area = np.count_nonzero(truth)
            iou_M = []
            for mask in outputs_MHW:
                both = np.count_nonzero(mask & truth)
                iou_M.append(both / (np.count_nonzero(mask) + area - both))
            best_N[n] = int(np.argmax(iou_M))
            masks_NHW[n], iou_N[n] = outputs_MHW[best_N[n]], iou_M[best_N[n]]
    return masks_NHW, iou_N, best_N
