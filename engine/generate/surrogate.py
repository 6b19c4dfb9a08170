"""Which points of a grid are worth asking, learnt from those that were asked.

What a point's best mask is predicted to be worth, and whether any of its masks passes the filters, change little
from a place to the next, and are alike where the image's features are alike. So both are regressed by Gaussian
processes over place and features (Rasmussen and Williams, 2006, chapter 2), and a point is asked as long as it may
well have a mask that is kept: the search for a level set of Gotovos et al., "Active learning for level set
estimation", IJCAI 2013, in three steps. Nothing is trained beforehand.

Shape suffixes: P points of the grid, B those of a block, A those of it that were asked, C channels, e side of the encoder's grid, 2 x y.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

STEPS = 3
"""How often points are chosen after the first; with the last, all that are worth it."""

# Chosen with sam-nano on one half of the image groups (docs/decoder.md).
_APART = 3  # the first points, on the grid
_NEAR = 2.0  # length scale of place alone, in steps of the grid
_FAR = 8.0  # of place where features are alike
_ALIKE = 1.0  # length scale of features, in their root mean square distance from their mean
_OF_FEATURES = 0.6  # share of the variance that features explain
_NOISE = 0.05
_SIGMAS = 2.0
_PASS_SIGMAS, _PASS = 1.0, 0.3
_SPREAD = 0.02  # predicted IoU differs by this at least, whatever was seen,
_PRIOR_SPREAD = 0.2  # and by this where only few points were asked
_FEW = 9  # of fewer, and of failures alone, nothing is concluded
_BLOCK = 32  # points of a side that are regressed together: time grows with the cube of their number


class Surrogate:
    """What is expected of the points of one view's grid."""

    def __init__(self, features_Cee: torch.Tensor, covered_2: tuple[float, float], side: int) -> None:
        """Take the features at the points.

        Args:
            features_Cee: the image encoder's, any precision.
            covered_2: shares (across, down) of the square of features that the view covers, from its corner.
            side: of the grid; its P = side² points lie row after row, each in the middle of its cell.
        """
        if features_Cee.device.type != "cuda":
            features_Cee = features_Cee.cpu()  # mps lacks some of what follows
        places = (torch.arange(side, device=features_Cee.device) + 0.5) / side * 2
        x_P, y_P = places.repeat(side), places.repeat_interleave(side)
        at_P2 = torch.stack([x_P * covered_2[0], y_P * covered_2[1]], 1) - 1
        sampled = functional.grid_sample(
            features_Cee.float()[None],
            at_P2[None, None],
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )
        self._side = side
        self._blocks = [(block, self._kernel(sampled[0, :, 0].mT, block)) for block in _cut_grid(side)]

    def first_points(self) -> np.ndarray:
        """Which points are asked before anything is known: every third of every third row; bool_P."""
        first_RC = np.zeros((self._side, self._side), bool)
        start = min(1, self._side - 1)
        first_RC[start::_APART, start::_APART] = True
        return first_RC.ravel()

    def next_points(
        self,
        asked_P: np.ndarray,
        promise_P: np.ndarray,
        passed_P: np.ndarray,
        pred_iou_thresh: float,
        *,
        all_at_once: bool,
    ) -> np.ndarray:
        """Which of the other points may well have a mask that is kept; bool_P.

        Args:
            asked_P: which points were asked; of the others nothing below is looked at.
            promise_P: best predicted IoU of each.
            passed_P: whether a mask of it passed the filters.
            pred_iou_thresh: that of the filters; minus infinity where they have none.
            all_at_once: all of them; else the better half, after which more is known of the rest.
        """
        worth_P = np.full(len(asked_P), -np.inf)
        for block, kernel_BB in self._blocks:
            asked_B = asked_P[block]
            mean_B, sigma_B = _regress(
                kernel_BB, asked_B, promise_P[block], _SPREAD if asked_B.sum() >= _FEW else _PRIOR_SPREAD
            )
            may_B = ~asked_B & (mean_B + _SIGMAS * sigma_B >= pred_iou_thresh)
            promising_B = asked_B & (promise_P[block] > pred_iou_thresh)
            if promising_B.sum() >= _FEW and passed_P[block][promising_B].any():
                pass_B, doubt_B = _regress(kernel_BB, promising_B, passed_P[block].astype(float), 0.0)
                may_B &= pass_B + _PASS_SIGMAS * doubt_B >= _PASS
            # First those that promise much, or of which little is known.
            worth_P[block] = np.where(may_B, mean_B + sigma_B, -np.inf)
        next_P = np.isfinite(worth_P)
        if next_P.any() and not all_at_once:
            next_P &= worth_P >= np.median(worth_P[next_P])
        return next_P

    def _kernel(self, features_PC: torch.Tensor, block: np.ndarray) -> torch.Tensor:
        """Prior covariance of a block's points, of variance 1."""
        features_BC = features_PC[torch.from_numpy(block).to(features_PC.device)]
        size = features_BC.norm(dim=1).mean()
        features_BC = features_BC - features_BC.mean(0)
        # Features that are all alike are not told apart by their rounding.
        least = (1e-3 * size).clamp(min=torch.finfo(torch.float32).tiny)
        spread = features_BC.square().sum(1).mean().sqrt().clamp(min=least)
        unlike_BB = (torch.cdist(features_BC, features_BC) / (spread * _ALIKE)).square()
        rows, columns = np.divmod(block, self._side)
        place_B2 = torch.from_numpy(np.stack([rows, columns], 1)).to(features_BC)
        apart_BB = torch.cdist(place_B2, place_B2).square()
        alike_BB = torch.exp(-unlike_BB / 2 - apart_BB / (2 * _FAR**2))
        return _OF_FEATURES * alike_BB + (1 - _OF_FEATURES) * torch.exp(-apart_BB / (2 * _NEAR**2))


def _cut_grid(side: int) -> Iterator[np.ndarray]:
    """Positions of a grid's points in squares of at most `_BLOCK` a side, about equally large."""
    cuts = np.linspace(0, side, math.ceil(side / _BLOCK) + 1).round().astype(int).tolist()
    grid_RC = np.arange(side**2).reshape(side, side)
    for top, bottom in pairwise(cuts):
        for left, right in pairwise(cuts):
            yield grid_RC[top:bottom, left:right].ravel()


def _regress(
    kernel_BB: torch.Tensor, known_B: np.ndarray, value_B: np.ndarray, least_spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation at every point, given the values at those that are known."""
    known = torch.from_numpy(np.flatnonzero(known_B)).to(kernel_BB.device)
    value_A = torch.from_numpy(value_B[known_B]).to(kernel_BB)
    middle, spread = value_A.mean(), value_A.std(correction=0).clamp(min=least_spread)
    to_all_AB = kernel_BB[known]
    noisy_AA = to_all_AB[:, known] + _NOISE * torch.eye(len(known), device=kernel_BB.device)
    root_AA = torch.linalg.cholesky(noisy_AA)
    white_AB = torch.linalg.solve_triangular(root_AA, to_all_AB, upper=False)
    white_A1 = torch.linalg.solve_triangular(root_AA, (value_A - middle)[:, None], upper=False)
    mean_B = middle + (white_AB.mT @ white_A1)[:, 0]
    sigma_B = spread * (1 - white_AB.square().sum(0)).clamp(min=0).sqrt()
    return mean_B.cpu().numpy(), sigma_B.cpu().numpy()
