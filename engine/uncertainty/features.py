"""What is read of a mask: its scores, its shape, the profile of its logits, and how it stands among its siblings.

Shape suffixes: N masks, P prompts they are from, F features.
"""

from __future__ import annotations

import torch

from engine.masks.overlap import compare_outputs
from engine.masks.profile import PROFILE, describe_profiles
from schemas.records import MaskEvidence

FEATURES = (
    "score",
    "score_of_rival",
    "score_of_third",
    "overlap_with_rival",
    "overlap_with_third",
    "overlap_of_others",
    "log_size_of_rival",
    "log_size_of_third",
    "log_area",
    "stability",
    "entropy",
    "fill",
    *(f"{measure}_of_{output}" for output in ("mask", "rival", "third") for measure in PROFILE),
)
"""Names of the features, in their order. The rival is the better scored of the other two outputs. Sets fitted to the first
of them go on reading those."""

_LEAST = 1e-5  # share of the image below which sizes do not differ


def describe_masks(evidence: MaskEvidence) -> torch.Tensor:
    """features_NF of masks, fp32, on their device, F in the order of `FEATURES`.

    Scores are the model's own IoU estimates; sizes are natural logarithms, of the siblings relative to the mask, of the
    mask itself as a share of the image; the profiles are those of `engine.masks.profile`; the rest is 0..1. All are
    finite: what has no value (the stability of an empty mask) is 0.
    """
    siblings = evidence.siblings
    prompt_N, own_N1 = siblings.prompt_N, evidence.output_N[:, None]
    iou_N3 = siblings.iou_P3[prompt_N]
    others_N2 = torch.cat([(own_N1 + 1) % 3, (own_N1 + 2) % 3], 1)
    score_N2 = iou_N3.gather(1, others_N2)
    swapped_N1 = score_N2[:, :1] < score_N2[:, 1:]
    others_N2 = torch.where(swapped_N1, others_N2.flip(1), others_N2)
    overlap_P33, coverage_P3 = compare_outputs(siblings.coarse_P3rc)
    overlap_N33 = overlap_P33[prompt_N]
    overlap_N3 = overlap_N33.gather(1, own_N1[..., None].expand(-1, -1, 3))[:, 0]
    between_N3 = overlap_N33.gather(1, others_N2[:, :1, None].expand(-1, -1, 3))[:, 0]
    log_size_N3 = coverage_P3[prompt_N].clamp(min=_LEAST).log()
    profiles_P3F = describe_profiles(siblings.coarse_P3rc.flatten(0, 1)).unflatten(0, (-1, 3))
    profiles_N3F = profiles_P3F[prompt_N]
    ordered_N3 = torch.cat([own_N1, others_N2], 1)
    features_NF = torch.cat(
        [
            iou_N3.gather(1, own_N1),
            iou_N3.gather(1, others_N2),
            overlap_N3.gather(1, others_N2),
            between_N3.gather(1, others_N2[:, 1:]),
            log_size_N3.gather(1, others_N2) - log_size_N3.gather(1, own_N1),
            torch.stack(
                [
                    evidence.area_N.clamp(min=_LEAST).log(),
                    evidence.stability_N,
                    evidence.entropy_N,
                    evidence.fill_N,
                ],
                1,
            ),
            profiles_N3F.gather(1, ordered_N3[..., None].expand(-1, -1, len(PROFILE))).flatten(1),
        ],
        1,
    )
    return features_NF.float().nan_to_num(0, 0, 0)
