"""People who answer for the benchmark of active learning: what they say of a mask, and the seconds it takes them.

They alone see the oracle. Shown a mask, they look for the object that it overlaps best. Where it is good enough they
leave it as it is; else they draw the object; where it shows no object they say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.learn.data import LabelledImage
from engine.masks.rle import mask_iou


@dataclass(frozen=True)
class Costs:
    """What answers take, in seconds, and how people decide. Assumed, not measured; all of it can be set.

    Attributes:
        open: to open an image, once for all of its masks that are asked about together.
        accept: to leave a mask as it is.
        none: to say that it shows no object.
        fix, error: to mend a mask: `fix`, and `error` times (1 - IoU) more.
        good: IoU from which a mask is left as it is.
        floor: IoU below which a mask shows no object.
        noise: share of masks to be mended that are left as they are.
    """

    open: float = 3.0
    accept: float = 2.0
    none: float = 2.0
    fix: float = 6.0
    error: float = 12.0
    good: float = 0.85
    floor: float = 0.1
    noise: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What was said of one mask.

    Attributes:
        verdict: `correct`, `fixed` or `no object`.
        counts: run lengths of the mask that is left; None for no object.
        thing: place of the object in the oracle's image; -1 for no object.
        iou: of the mask that was shown with the object.
        seconds: without opening the image.
    """

    verdict: str
    counts: str | None
    thing: int
    iou: float
    seconds: float


def answer(oracle: LabelledImage, shown: str, costs: Costs, rng: np.random.Generator) -> Answer:
    """Say what is to be said of a mask.

    Args:
        oracle: the image with its true masks.
        shown: run lengths of the mask.
        costs: how to decide, and what it takes.
        rng: of careless answers.
    """
    height, width = oracle.masks[0].plain_rle["size"]  # type: ignore[misc]
    truths = [str(mask.plain_rle["counts"]) for mask in oracle.masks]
    iou_T = mask_iou([shown], truths, height, width)[0]
    thing = int(iou_T.argmax())
    iou = float(iou_T[thing])
    if iou < costs.floor:
        return Answer("no object", None, -1, iou, costs.none)
    if iou >= costs.good or rng.random() < costs.noise:
        return Answer("correct", shown, thing, iou, costs.accept)
    return Answer("fixed", truths[thing], thing, iou, costs.fix + costs.error * (1 - iou))
