"""What heads are shown of a mask beside its tokens."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from engine.masks.overlap import coarsen, compare_outputs
from engine.masks.profile import PROFILE, describe_profiles
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
    coarse = coarsen(three_outputs(), 0.0, (16.0, 16.0))
    siblings = Siblings(
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 256),
        torch.zeros(1, 4, 256),
        torch.tensor([[0.5, 0.9, 0.7]]),
        coarse,
    )
    measures = [torch.tensor([value]) for value in (float("nan"), 0.3, 1 / 64, 1.0)]
    return MaskEvidence(siblings, torch.tensor([output]), *measures)


def test_outputs_are_compared_by_what_they_share() -> None:
    overlap, coverage = compare_outputs(coarsen(three_outputs(), 0.0, (16.0, 16.0)))
    expected = torch.tensor([[1, 4 / 16, 0], [4 / 16, 1, 0], [0, 0, 1]])
    assert torch.allclose(overlap[0], expected)
    assert torch.allclose(coverage[0], torch.tensor([4, 16, 16]) / 256)


def test_padding_of_the_grid_is_not_the_image() -> None:
    _, coverage = compare_outputs(coarsen(three_outputs(), 0.0, (8.0, 16.0)))
    assert torch.allclose(coverage[0], torch.tensor([4, 16, 0]) / 128)


def test_a_fine_grid_is_looked_at_coarsely_and_says_the_same() -> None:
    fine = three_outputs().repeat_interleave(16, 2).repeat_interleave(16, 3)
    for said, expected in zip(
        compare_outputs(coarsen(fine, 0.0, (256.0, 256.0))),
        compare_outputs(coarsen(three_outputs(), 0.0, (16.0, 16.0))),
        strict=True,
    ):
        assert torch.allclose(said, expected, atol=1e-6)


def test_outputs_without_a_pixel_have_no_overlap() -> None:
    overlap, coverage = compare_outputs(torch.full((2, 3, 8, 8), -1.0))
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


def profile_of(logits: torch.Tensor) -> dict[str, float]:
    return dict(zip(PROFILE, describe_profiles(logits[None])[0].tolist(), strict=True))


def square(side: int, logit: float = 6.0, at: int = 8) -> torch.Tensor:
    logits = torch.full((32, 32), -6.0)
    logits[at : at + side, at : at + side] = logit
    return logits


def test_a_profile_says_what_shape_the_mask_has() -> None:
    compact = profile_of(square(8))
    assert math.isclose(compact["raggedness"], 4, rel_tol=1e-5), "a square's edge in square roots of its area"
    assert math.isclose(compact["thinness"], math.log(1.5), rel_tol=1e-5)
    assert math.isclose(compact["rim"], math.log(1 + 12 * 12 - 64), rel_tol=1e-5)
    assert abs(compact["spread"]) < 0.06, "nearly a disc"
    assert compact["elongation"] < 1e-3
    assert compact["touch"] == 0
    line = torch.full((32, 32), -6.0)
    line[4, 2:30] = 6
    assert profile_of(line)["elongation"] > 0.95
    assert math.isclose(profile_of(line.T)["elongation"], profile_of(line)["elongation"], rel_tol=1e-5)
    diagonal = torch.where(torch.eye(32) > 0, 6.0, -6.0)
    assert profile_of(diagonal)["elongation"] > 0.95
    scattered = square(4, at=2)
    scattered[20:24, 20:24] = 6
    assert profile_of(scattered)["spread"] > profile_of(square(6))["spread"] + 1
    assert profile_of(scattered)["raggedness"] > profile_of(square(6))["raggedness"]
    assert profile_of(square(8, at=0))["touch"] == 0.5, "two of its four sides are the image's"


def test_a_profile_says_how_sure_the_mask_is() -> None:
    sure, unsure = profile_of(square(8)), profile_of(square(8, 0.5))
    assert sure["probability"] > unsure["probability"]
    assert math.isclose(sure["peak"], 0.6, rel_tol=1e-3)
    assert math.isclose(sure["area_4_above"], math.log(2), rel_tol=1e-5), "as large four logits higher"
    assert unsure["area_1_above"] == 0, "gone one logit higher"
    assert unsure["expected_iou"] < sure["expected_iou"] < 1
    soft = square(8)
    soft[6:18, 6:18] = soft[6:18, 6:18].clamp(min=-1.5)
    assert math.isclose(profile_of(soft)["area_2_below"], math.log(1 + 144 / 64), rel_tol=1e-5)
    assert profile_of(soft)["area_1_below"] == sure["area_1_below"]
    assert profile_of(soft)["rim_probability"] > 0.1 > sure["rim_probability"]


def test_masks_without_a_pixel_and_masks_of_everything_have_a_finite_profile() -> None:
    for logits in (torch.full((1, 1), -3.0), torch.full((32, 32), -20.0), torch.full((32, 32), 20.0)):
        assert torch.isfinite(describe_profiles(logits[None])).all()
    assert describe_profiles(torch.zeros(0, 8, 8)).shape == (0, len(PROFILE))
    assert coarsen(three_outputs(), 0.5, (16.0, 16.0)).dtype == torch.float16


def test_profiles_follow_the_order_of_the_rivals() -> None:
    features = dict(zip(FEATURES, describe_masks(evidence_of(0))[0].tolist(), strict=True))
    profiles = describe_profiles(three_outputs()[0]).tolist()
    for name, output in (("mask", 0), ("rival", 1), ("third", 2)):
        for measure, value in zip(PROFILE, profiles[output], strict=True):
            assert math.isclose(features[f"{measure}_of_{name}"], value, abs_tol=1e-6)


def test_many_masks_are_described_as_one_alone() -> None:
    logits = torch.randn(101, 17, 23).mul(3).half()
    logits[50] = 5  # reaches all edges, next to masks that do not
    together = describe_profiles(logits)
    for index in (0, 49, 50, 51, 95, 96, 100):
        assert torch.allclose(together[index], describe_profiles(logits[index : index + 1])[0], atol=1e-5)
    touched = functional.max_pool2d((logits.float() > 0).float()[:, None], 5, 1, 2)[:, 0]
    rim = (touched - (logits > 0).float()).sum((1, 2)).log1p()
    assert torch.allclose(together[:, PROFILE.index("rim")], rim, atol=1e-6)


def test_masks_keep_their_prompt_when_they_are_picked_and_joined() -> None:
    def batch(prompt: list[int], prompts: range) -> Siblings:
        value_P = torch.tensor(prompts).float()
        tokens = value_P[:, None], value_P[:, None, None].expand(-1, 4, 1)
        outputs = value_P[:, None].expand(-1, 3), value_P[:, None, None, None].expand(-1, 3, 2, 2)
        return Siblings(torch.tensor(prompt), *tokens, *outputs)

    joined = Siblings.join([batch([0, 0, 2], range(10, 13)), batch([1, 0], range(20, 22))])
    assert joined.iou_P3[joined.prompt_N, 0].tolist() == [10, 10, 12, 21, 20]
    picked = joined.pick(torch.tensor([4, 2, 0]))
    assert picked.iou_P3[picked.prompt_N, 0].tolist() == [20, 12, 10]
    assert picked.coarse_P3rc[picked.prompt_N, 0, 0, 0].tolist() == [20, 12, 10]
    assert len(picked.iou_P3) == 3, "prompts without a mask are let go of"
