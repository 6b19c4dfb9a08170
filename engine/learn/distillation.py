"""Learning without forgetting: to clicks anywhere the model that learns gives the answers that it gave as it was.

Li and Hoiem, "Learning without forgetting", ECCV 2016, for a model that is prompted. It needs no masks, and holds the model where
pseudo-labels are silent: at things that it is not sure of, and in the outputs that are not the best.

Shape suffixes: N clicks, O outputs (4: the single mask, then the three), P points, h w mask grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from engine.learn.trainee import PromptedModel

_CLICKS, _TURNS = 8, 2
_FOCUS = 20  # weight of the pixels beside the overlap, as in `teach`


@dataclass(frozen=True)
class EncodedImage:
    """An image as a model sees it, to be asked about: embedding 1Chw, and SAM 2's high-resolution features."""

    model: PromptedModel
    embedding_1Chw: torch.Tensor
    fine: Sequence[torch.Tensor]

    def decode(self, prompt: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits NOhw and predicted IoU NO of the prompts."""
        return self.model.decode(self.embedding_1Chw, self.fine, prompt)


def distil(
    learner: EncodedImage,
    teacher: EncodedImage,
    extent: tuple[float, float],
    cell: float,
    rng: np.random.Generator,
    arithmetic: AbstractContextManager,
) -> torch.Tensor:
    """How far a model's answers to eight random clicks are from its teacher's: 0 where they are the same.

    Each click is followed by a correction of one of the teacher's masks, which is given with it.

    Args:
        learner: the image as the model sees it now.
        teacher: the same of the model as it was.
        extent: rows and columns of the mask grid that the image covers.
        cell: pixels of the input to a cell of the grid.
        rng: of the clicks.
        arithmetic: what both are asked in (autocast).
    """
    device = learner.embedding_1Chw.device
    points_NP2 = _draw_clicks(rng, extent, cell)
    labels_NP = np.ones((_CLICKS, 1), np.int64)
    given_N1hw: torch.Tensor | None = None
    total = learner.embedding_1Chw.new_zeros(())
    for _ in range(_TURNS):
        prompt = {
            "points": torch.from_numpy(points_NP2).to(device),
            "labels": torch.from_numpy(labels_NP).to(device),
            "boxes": None,
            "masks": given_N1hw,
            "tasks": None,
        }
        with arithmetic:
            with torch.no_grad():
                old_NOhw, old_iou_NO = teacher.decode(prompt)
            new_NOhw, new_iou_NO = learner.decode(prompt)
        score = (new_iou_NO.float() - old_iou_NO.float()).square().mean()
        total = total + _difference(new_NOhw.float(), old_NOhw.float()).mean() + score
        output_N = torch.from_numpy(rng.integers(1, old_NOhw.shape[1], _CLICKS)).to(device)
        given_N1hw = old_NOhw.float()[torch.arange(_CLICKS, device=device), output_N][:, None]
        following_N12 = _draw_clicks(rng, extent, cell)
        inside_N1 = _look_up(given_N1hw, following_N12, cell)
        points_NP2 = np.concatenate([points_NP2, following_N12], 1)
        labels_NP = np.concatenate([labels_NP, 1 - inside_N1], 1)
    return total / _TURNS


def _draw_clicks(rng: np.random.Generator, extent: tuple[float, float], cell: float) -> np.ndarray:
    """Points anywhere in the image, pixels of the model's input, float32 N12."""
    rows, columns = extent
    return (rng.random((_CLICKS, 1, 2)) * (columns, rows) * cell - 0.5).astype(np.float32)


def _look_up(logits_N1hw: torch.Tensor, points_N12: np.ndarray, cell: float) -> np.ndarray:
    """Whether each point lies in its mask, 0 or 1, int64 N1."""
    masks_Nhw = (logits_N1hw[:, 0] > 0).cpu().numpy()
    columns_N, rows_N = ((points_N12[:, 0] + 0.5) / cell).astype(int).T.clip(0, masks_Nhw.shape[-1] - 1)
    return masks_Nhw[np.arange(len(masks_Nhw)), rows_N, columns_N].astype(np.int64)[:, None]


def _difference(new_NOhw: torch.Tensor, old_NOhw: torch.Tensor) -> torch.Tensor:
    """Squared difference of the probabilities, and 1 - their soft Dice: NO."""
    new, old = new_NOhw.sigmoid().flatten(2), old_NOhw.sigmoid().flatten(2)
    squares = new.square().sum(2) + old.square().sum(2)
    return _FOCUS * (new - old).square().mean(2) + 1 - (2 * (new * old).sum(2) + 1) / (squares + 1)
