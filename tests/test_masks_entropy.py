"""A user asks how unsure a mask's pixels are."""

from __future__ import annotations

import numpy as np
import torch

from engine.masks.entropy import mean_entropy, pixel_entropy


def plain_entropy(logits: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(q > 0, q * np.log2(q), 0) for q in (p, 1 - p)]
    return -(terms[0] + terms[1])


def test_pixel_entropy_is_in_bits() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 8.0, -40.0, 1e4])
    np.testing.assert_allclose(pixel_entropy(logits).numpy(), plain_entropy(logits.numpy()), atol=1e-6)
    assert pixel_entropy(logits)[0] == 1


def test_mean_is_over_the_cells_the_box_touches() -> None:
    logits_Nhw = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(0)) * 4
    boxes_N4 = torch.tensor([[0, 0, 16, 12], [2.4, 3.0, 7.1, 5.0], [5, 5, 5, 5], [15.7, 11.2, 16.0, 12.0]])
    cells = [(slice(0, 12), slice(0, 16)), (slice(3, 5), slice(2, 8)), (slice(5, 6), slice(5, 6))]
    cells.append((slice(11, 12), slice(15, 16)))
    expected = [
        plain_entropy(logits[cell].numpy()).mean() for logits, cell in zip(logits_Nhw, cells, strict=True)
    ]
    np.testing.assert_allclose(mean_entropy(logits_Nhw, boxes_N4).numpy(), expected, atol=1e-6)


def test_a_sure_mask_has_less_entropy_than_an_unsure_one() -> None:
    shape = torch.where(torch.arange(20) < 10, 1.0, -1.0).expand(2, 20, 20)
    logits_Nhw = shape * torch.tensor([9.0, 0.5])[:, None, None]
    sure, unsure = mean_entropy(logits_Nhw, torch.tensor([[0.0, 0, 20, 20]] * 2)).tolist()
    assert sure < 0.01 < 0.9 < unsure <= 1
