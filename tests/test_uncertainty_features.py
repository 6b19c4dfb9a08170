"""What heads are shown of a mask beside its tokens."""

from __future__ import annotations

import math

import torch

from engine.masks.overlap import compare_outputs
from engine.uncertainty.features import FEATURES, describe_masks
from schemas.records import MaskEvidence, Siblings


def three_outputs() -> torch.Tensor:
    """A part (2 x 2), the whole (4 x 4) around it, and something elsewhere (4 x 4), on a grid of 16."""
    logits = torch.full((1, 3, 16, 16), -5.0)
    logits[0, 0, 1:3, 1:3] = 5
    logits[0, 1, 0:4, 0:4] = 5
    logits[0, 2, 8:12, 8:12] = 5
    return logits


def evidence_of(output: int) -> MaskEvidence:
    overlap, coverage = compare_outputs(three_outputs(), 0.0, (16.0, 16.0))
    siblings = Siblings(
        torch.zeros(1, 256), torch.zeros(1, 4, 256), torch.tensor([[0.5, 0.9, 0.7]]), overlap, coverage
    )
    measures = [torch.tensor([value]) for value in (float("nan"), 0.3, 1 / 64, 1.0)]
    return MaskEvidence(siblings, torch.tensor([output]), *measures)


def test_outputs_are_compared_by_what_they_share() -> None:
    overlap, coverage = compare_outputs(three_outputs(), 0.0, (16.0, 16.0))
    expected = torch.tensor([[1, 4 / 16, 0], [4 / 16, 1, 0], [0, 0, 1]])
    assert torch.allclose(overlap[0], expected)
    assert torch.allclose(coverage[0], torch.tensor([4, 16, 16]) / 256)


def test_padding_of_the_grid_is_not_the_image() -> None:
    _, coverage = compare_outputs(three_outputs(), 0.0, (8.0, 16.0))
    assert torch.allclose(coverage[0], torch.tensor([4, 16, 0]) / 128)


def test_a_fine_grid_is_looked_at_coarsely_and_says_the_same() -> None:
    fine = three_outputs().repeat_interleave(16, 2).repeat_interleave(16, 3)
    for said, expected in zip(
        compare_outputs(fine, 0.0, (256.0, 256.0)),
        compare_outputs(three_outputs(), 0.0, (16.0, 16.0)),
        strict=True,
    ):
        assert torch.allclose(said, expected, atol=1e-6)


def test_outputs_without_a_pixel_have_no_overlap() -> None:
    overlap, coverage = compare_outputs(torch.full((2, 3, 8, 8), -1.0), 0.0, (8.0, 8.0))
    assert not overlap.any()
    assert not coverage.any()


def test_a_mask_is_described_beside_its_rivals() -> None:
    features = dict(zip(FEATURES, describe_masks(evidence_of(0))[0].tolist(), strict=True))
    assert features["score"] == 0.5
    assert math.isclose(features["score_of_rival"], 0.9, rel_tol=1e-6), "the better scored of the others"
    assert math.isclose(features["score_of_third"], 0.7, rel_tol=1e-6)
    assert features["overlap_with_rival"] == 0.25
    assert features["overlap_with_third"] == features["overlap_of_others"] == 0
    assert math.isclose(features["log_size_of_rival"], math.log(4), rel_tol=1e-5)
    assert math.isclose(features["log_area"], math.log(1 / 64), rel_tol=1e-5)
    assert features["stability"] == 0, "what has no value is 0"
    assert features["fill"] == 1
    middle = dict(zip(FEATURES, describe_masks(evidence_of(1))[0].tolist(), strict=True))
    assert math.isclose(middle["score_of_rival"], 0.7, rel_tol=1e-6)
    assert middle["overlap_with_third"] == 0.25
