"""The interactive rounds that fine-tuning teaches with, and what is taught in each.

SUM (Liu et al., NeurIPS 2024, appendix): a box or a point at random, then points where the mask is wrong, one round
without a new prompt; each round is given the logits of the one before. On pseudo-labels points are drawn by
certainty and losses are weighed by it; where no certain error is left, the last point is given again.

Shape suffixes: M masks of one image, O outputs (4: the single mask, then the three), P points, h w mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from engine.learn.losses import dice_loss, focal_loss, mask_iou
from engine.learn.training_images import MaskTargets
from schemas.settings import FinetuneSettings

BOX_CHANCE = 0.2  # people click more often than they draw boxes; pretraining's share is much the same
_JITTER = 0.1  # of the box's sides, either way
# How often a point lies near the middle of its mask or of what is wrong, as people's clicks and those of the evaluation do.
_MIDDLE = 0.6
_SINGLE = 0.6  # weight of the single mask beside the best of the three
_OTHERS = 0.05  # and of all three: an output that never wins is not left to drift


@dataclass(frozen=True)
class Taught:
    """Masks of one image as tensors on the model's device, and what is drawn for them.

    Attributes:
        share_M1hw: share of each cell that is covered, 0..1.
        certainty_M1hw: 0..1; None for masks of people.
        task_M: place in `TASKS`.
    """

    share_M1hw: torch.Tensor
    certainty_M1hw: torch.Tensor | None
    task_M: torch.Tensor

    @staticmethod
    def pick(targets: MaskTargets, index_M: np.ndarray, human: bool, device: torch.device) -> Taught:
        """Some masks of an image."""

        def move(values_Mhw: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values_Mhw[index_M].astype(np.float32))[:, None].to(device)

        certainty = None if human else move(targets.certainty_Mhw)
        return Taught(
            move(targets.share_Mhw), certainty, torch.from_numpy(targets.task_M[index_M]).to(device)
        )


class PromptDrawer:
    """Draws the prompts of one image's masks, round after round, in pixels of the model's input.

    Args:
        taught: the masks.
        cell: pixels of the input to a cell of the grid.
        settings: whether certainty counts, and when the task is told.
        rng: of the draws.
    """

    def __init__(
        self, taught: Taught, cell: float, settings: FinetuneSettings, rng: np.random.Generator
    ) -> None:
        self._share_Mhw = taught.share_M1hw[:, 0].cpu().numpy()
        weighted = taught.certainty_M1hw is not None and settings.uncertainty_sampling
        self._weight_Mhw = taught.certainty_M1hw[:, 0].cpu().numpy() if weighted else None  # type: ignore[index]
        self._cell, self._rng, self._device = cell, rng, taught.share_M1hw.device
        self._when = settings.task_prompt
        human = taught.certainty_M1hw is None
        self._tasks = taught.task_M if human and settings.task_prompt != "none" else None
        self._points_MP2: np.ndarray | None = None
        self._labels_MP: np.ndarray | None = None
        self._boxes_M4: np.ndarray | None = None

    def first(self, *, point: bool = False) -> dict[str, torch.Tensor | None]:
        """A point inside each mask, or a box around each; one kind for all masks of the image."""
        inside_Mhw = self._share_Mhw > 0.5
        if not point and self._rng.random() < BOX_CHANCE:
            self._boxes_M4 = np.stack([self._draw_box(mask_hw) for mask_hw in inside_Mhw])
        else:
            self._add_points(np.stack([self._tend_to_middle(m, of) for m, of in enumerate(inside_Mhw)]))
        return self._prompt(None, tasks=self._tasks)

    def correct(self, logits_M1hw: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """One more point for each mask where it is wrong, and its logits."""
        wrong_Mhw = (logits_M1hw[:, 0] > 0).cpu().numpy() != (self._share_Mhw > 0.5)
        self._add_points(np.stack([self._tend_to_middle(m, of) for m, of in enumerate(wrong_Mhw)]))
        return self.repeat(logits_M1hw)

    def repeat(self, logits_M1hw: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """The same prompts again, with the mask's logits."""
        return self._prompt(logits_M1hw, tasks=self._tasks if self._when == "every" else None)

    def _add_points(self, where_Mhw: np.ndarray) -> None:
        count, _, columns = where_Mhw.shape
        points, labels = np.zeros((count, 1, 2), np.float32), np.zeros((count, 1), np.int64)
        for m, where_hw in enumerate(where_Mhw):
            weight_X = where_hw.ravel().astype(np.float64)
            if self._weight_Mhw is not None:
                weight_X = weight_X * self._weight_Mhw[m].ravel()
            if weight_X.sum() > 0:
                place = int(self._rng.choice(len(weight_X), p=weight_X / weight_X.sum()))
            elif self._points_MP2 is not None and self._labels_MP is not None:
                points[m], labels[m] = self._points_MP2[m, -1], self._labels_MP[m, -1]
                continue
            else:  # a mask without any certain pixel, or right after a box
                place = int(self._share_Mhw[m].argmax())
            row, column = divmod(place, columns)
            points[m, 0] = (np.array([column, row]) + self._rng.random(2)) * self._cell - 0.5
            labels[m, 0] = self._share_Mhw[m, row, column] > 0.5
        if self._points_MP2 is not None and self._labels_MP is not None:
            points = np.concatenate([self._points_MP2, points], 1)
            labels = np.concatenate([self._labels_MP, labels], 1)
        self._points_MP2, self._labels_MP = points, labels

    def _tend_to_middle(self, m: int, inside_hw: np.ndarray) -> np.ndarray:
        """Most often, the part of a region from a random share of its greatest depth on; all of it where that is uncertain."""
        if self._rng.random() >= _MIDDLE:
            return inside_hw
        depth_hw = cv2.distanceTransform(np.pad(inside_hw.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        deep_hw = inside_hw & (depth_hw >= depth_hw.max() * self._rng.uniform(0.3, 1.0))
        certain = self._weight_Mhw is None or (deep_hw * self._weight_Mhw[m]).any()
        return deep_hw if certain else inside_hw

    def _draw_box(self, mask_hw: np.ndarray) -> np.ndarray:
        """The mask's box, each side moved either way."""
        rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
        box_4 = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        sides_4 = np.tile(box_4[2:] - box_4[:2], 2)
        moved_4 = box_4 + self._rng.normal(0, _JITTER / 2, 4).clip(-_JITTER, _JITTER) * sides_4
        return (np.clip(moved_4, 0, mask_hw.shape[0]) * self._cell).astype(np.float32)

    def _prompt(
        self, logits_M1hw: torch.Tensor | None, tasks: torch.Tensor | None
    ) -> dict[str, torch.Tensor | None]:
        def move(values: np.ndarray | None) -> torch.Tensor | None:
            return None if values is None else torch.from_numpy(values).to(self._device)

        return {
            "points": move(self._points_MP2),
            "labels": move(self._labels_MP),
            "boxes": move(self._boxes_M4),
            "masks": logits_M1hw,
            "tasks": tasks,
        }


def teach(
    logits_MOhw: torch.Tensor, iou_MO: torch.Tensor, taught: Taught, settings: FinetuneSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of one round, the best output's logits M1hw, and its true IoU M.

    20 focal + dice + the squared error of the predicted IoU. Of the three outputs the best one is taught, the single
    mask beside it, and a little all of them.
    """
    weighted = taught.certainty_M1hw is not None and settings.uncertainty_loss
    certainty = taught.certainty_M1hw if weighted else None
    certain = None if certainty is None else certainty > settings.certain
    share = taught.share_M1hw.expand_as(logits_MOhw)
    masks_MO = 20 * focal_loss(logits_MOhw, share, certainty) + dice_loss(logits_MOhw, share, certain)
    truth_MO = mask_iou(logits_MOhw, share)  # of the whole mask: where nothing is certain it would be 0
    best_M1 = masks_MO[:, 1:].argmin(1, keepdim=True)
    loss = masks_MO[:, 1:].gather(1, best_M1).mean() + _SINGLE * masks_MO[:, 0].mean()
    loss = loss + _OTHERS * masks_MO[:, 1:].mean()
    loss = loss + (iou_MO - truth_MO).square().mean()
    place = best_M1[..., None, None].expand(-1, -1, *logits_MOhw.shape[-2:])
    return loss, logits_MOhw[:, 1:].gather(1, place).detach(), truth_MO[:, 1:].gather(1, best_M1)[:, 0]
