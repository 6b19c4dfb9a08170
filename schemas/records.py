"""Small records passed between rooms.

Shape suffixes: N prompts, B images, P points, C channels (256), h w low-resolution mask grid, H W image.
Pixel frames: "image" = the decoded image after EXIF orientation, x right, y down, origin at the
top-left corner of the top-left pixel; "input" = the model's square input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


TASKS = ("unspecified", "salient", "entity", "part")
"""What may be meant by a prompt: nothing in particular, the salient object, a whole thing, a part of one."""


@dataclass(frozen=True)
class PoolItem:
    """One file of the pool, known from a listing alone.

    Attributes:
        uri: full fsspec URL, without credentials.
        fingerprint: changes when the file changes; from the listing, so the file is not opened.
        file_bytes: size if the listing tells it.
        open_url: what to open where that is not `uri`, because it carries credentials (or a file
            name that is not Unicode). Kept out of repr; never write it to a table or a log.
    """

    uri: str
    fingerprint: str
    file_bytes: int | None = None
    open_url: str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class PoolImage:
    """A decoded image. `pixels` is uint8 HW3 RGB, sRGB, EXIF orientation applied."""

    item: PoolItem
    image_id: str
    pixels: np.ndarray
    mode: str
    file_bytes: int


@dataclass(frozen=True)
class Embedding:
    """Image features of a batch, and what is needed to map between image and input frames.

    Attributes:
        features_BCHW: the decoder's image embedding.
        high_res: finer features (SAM 2: strides 4 and 8, already projected), empty for SAM.
        image_sizes: (height, width) of each image, pixels.
    """

    features_BCHW: torch.Tensor
    image_sizes: tuple[tuple[int, int], ...]
    high_res: tuple[torch.Tensor, ...] = field(default=())


@dataclass(frozen=True)
class Prompts:
    """N prompts for the images of one embedding; coordinates in image pixels, as the packages take them.

    That is, 0 is the centre of the first pixel: both packages add half a pixel of the model's input.

    Attributes:
        image_index_N: which image of the embedding each prompt is for, int64.
        points_NP2: xy of points, float32, or None.
        labels_NP: 1 foreground, 0 background, -1 padding, int64.
        boxes_N4: xyxy, float32, or None.
        masks_N1hw: low-resolution mask logits of an earlier decode, or None.
    """

    image_index_N: torch.Tensor
    points_NP2: torch.Tensor | None = None
    labels_NP: torch.Tensor | None = None
    boxes_N4: torch.Tensor | None = None
    masks_N1hw: torch.Tensor | None = None


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says of N prompts: everything scores and maps need.

    Attributes:
        logits_NMhw: low-resolution mask logits, M = 3 (multimask) or 1; not clamped.
        iou_NM: predicted IoU of each output, uncalibrated.
        iou_token_NC: the IoU token after the decoder's transformer.
        mask_tokens_N4C: all four mask tokens; multimask outputs are made from tokens 1..3, the
            single output from token 0.
        prompt_N: which prompt each row belongs to, in ascending order; all of them unless `decode`
            was told to leave some out.
        promise_P: best predicted IoU of each prompt, those that were left out, too.
    """

    logits_NMhw: torch.Tensor
    iou_NM: torch.Tensor
    iou_token_NC: torch.Tensor
    mask_tokens_N4C: torch.Tensor
    prompt_N: torch.Tensor
    promise_P: torch.Tensor


@dataclass(frozen=True)
class Siblings:
    """Which prompt each of N masks is from, and what the decoder said of each of P prompts and of all three outputs of it.

    Attributes:
        prompt_N: position of each mask's prompt, int64.
        iou_token_PC, mask_tokens_P4C, iou_P3: as in `Decoded`.
        coarse_P3rc: logits above the mask threshold of all three outputs on a coarse grid of the image (or crop), fp16.
    """

    prompt_N: torch.Tensor
    iou_token_PC: torch.Tensor
    mask_tokens_P4C: torch.Tensor
    iou_P3: torch.Tensor
    coarse_P3rc: torch.Tensor

    @property
    def _of_prompts(self) -> tuple[torch.Tensor, ...]:
        return self.iou_token_PC, self.mask_tokens_P4C, self.iou_P3, self.coarse_P3rc

    def pick(self, index_K: torch.Tensor) -> Siblings:
        """The same of the masks at these positions, in this order, without prompts that none of them is from."""
        used_P, prompt_K = self.prompt_N[index_K].unique(return_inverse=True)
        return Siblings(prompt_K, *(values[used_P] for values in self._of_prompts))

    @staticmethod
    def join(parts: Sequence[Siblings]) -> Siblings:
        """Those of several batches, one after another."""
        import torch

        firsts = itertools.accumulate((len(part.iou_P3) for part in parts), initial=0)
        return Siblings(
            torch.cat([part.prompt_N + first for part, first in zip(parts, firsts, strict=False)]),
            *map(torch.cat, zip(*(part._of_prompts for part in parts), strict=True)),
        )


@dataclass(frozen=True)
class MaskEvidence:
    """All that N masks can be scored by, on the model's device.

    Attributes:
        siblings: the prompts they are from.
        output_N: which of the three outputs each mask is, int64.
        stability_N: IoU of the mask cut above and below the threshold, 0..1.
        entropy_N: mean pixel entropy inside the box, bits.
        area_N: share of the image (or crop) that the mask covers, 0..1.
        fill_N: share of its box that it covers, 0..1.
    """

    siblings: Siblings
    output_N: torch.Tensor
    stability_N: torch.Tensor
    entropy_N: torch.Tensor
    area_N: torch.Tensor
    fill_N: torch.Tensor
