"""Heads on the mask decoder's tokens: why is the model unsure of a mask, and how good is it.

UncertainSAM (Kaiser et al., ICML 2025): small perceptrons that regress, for each mask, what a larger
model, a better prompt or another of the three outputs would gain in IoU, and the IoU itself. All heads of
a set are evaluated in one batched product a layer, on the device of the tokens. Beside the tokens, heads
of our own read the features of `engine.uncertainty.features`.

Shape suffixes: K heads, N prompts or masks, M multimask outputs (3), C channels of a token (256), S stacked
perceptrons, X rows, I and O channels into and out of a layer, Q knots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch.nn import functional

from engine.uncertainty.features import FEATURES, describe_masks
from schemas.errors import ConfigError
from schemas.records import MaskEvidence

GAPS = ("model_gap", "prompt_gap", "task_gap")
"""Direct gaps (the paper's star): IoU that a fix gains over this mask."""
IOUS = ("iou", "iou_meant", "iou_best", "iou_larger", "iou_dense")
"""IoU heads: of the mask with the object it matches best; with the object that was meant; and the same of the
best of the three outputs, of what the larger model picks, and of what a dense prompt gives."""
FIXES = {"model_gap": "iou_larger", "prompt_gap": "iou_dense", "task_gap": "iou_best"}
"""For each gap the IoU head whose difference to `iou_meant` says the same (the paper's gap without the star)."""


class Pairing(StrEnum):
    """Which mask token a head is shown beside the IoU token, for the multimask output m = 0..2.

    `own` is the token that the mask is made from (1 + m). `neighbour` is the one before it (m), which
    the released heads were trained with.
    """

    own = "own"
    neighbour = "neighbour"


@dataclass(frozen=True)
class HeadSet:
    """Heads for the tokens of one model version.

    Attributes:
        names: name of each head, of `GAPS` and `IOUS`.
        weights: weight_SOI and bias_SO of each layer. Either one perceptron a head, with one output each (S = K,
            as released), or S members with an output for each head (O = K in the last layer), whose values are averaged.
        scale_K, offset_K: a head's value is sigmoid * scale - offset.
        pairing: which mask token goes with which mask.
        model_id: `name@version` of the model whose tokens they read; empty where that is not known.
        features: how many features are read behind the two tokens; 0 for none.
        knots_2Q: raw `iou` and what it means, both ascending: the calibration of `predicted_iou`; None for none.
        larger: `name@version` of the model that `model_gap` and `iou_larger` speak of; empty where there is none.
        version: first 12 hex digits of the SHA-256 of the file; empty for a set that is no file yet.
    """

    names: tuple[str, ...]
    weights: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    scale_K: torch.Tensor
    offset_K: torch.Tensor
    pairing: Pairing
    model_id: str
    features: int = 0
    knots_2Q: torch.Tensor | None = None
    larger: str = ""
    version: str = ""

    def score(self, iou_token_NC: torch.Tensor, mask_tokens_N4C: torch.Tensor) -> torch.Tensor:
        """What each head says of each multimask output from tokens alone, value_KNM, fp32, on the tokens' device."""
        first = 1 if self.pairing is Pairing.own else 0
        tokens_NMC = mask_tokens_N4C[:, first : first + 3]
        n, m = tokens_NMC.shape[:2]
        x_NMI = torch.cat([iou_token_NC[:, None].expand(-1, m, -1), tokens_NMC], dim=2)
        return self.read(x_NMI.flatten(0, 1)).unflatten(1, (n, m))

    def score_masks(self, evidence: MaskEvidence) -> dict[str, torch.Tensor]:
        """The columns of the `masks` table for N masks, fp32, on their device.

        Returns:
            Those of `GAPS` that the set has (-1..1) and `predicted_iou` (0..1, calibrated) where it has `iou`.
        """
        tokens, first = evidence.siblings, 1 if self.pairing is Pairing.own else 0
        parts = [
            tokens.iou_token_PC[tokens.prompt_N],
            tokens.mask_tokens_P4C[tokens.prompt_N, evidence.output_N + first],
        ]
        if self.features:
            parts.append(describe_masks(evidence)[:, : self.features])
        values = dict(zip(self.names, self.read(torch.cat(parts, 1)), strict=True))
        columns = {name: values[name] for name in GAPS if name in values}
        if "iou" in values:
            columns["predicted_iou"] = self.calibrate(values["iou"])
        return columns

    def read_samples(self, inputs_XI: torch.Tensor) -> torch.Tensor:
        """What each head says of rows of IoU token, mask token and all `FEATURES`, value_KX; of the features it takes those it reads."""
        tokens = inputs_XI.shape[1] - len(FEATURES)
        return self.read(inputs_XI[:, : tokens + self.features])

    @torch.inference_mode()
    def read(self, inputs_XI: torch.Tensor) -> torch.Tensor:
        """What each head says of rows of IoU token, mask token and as many features as the set reads, value_KX."""
        x_SXI = inputs_XI.float().expand(len(self.weights[0][0]), -1, -1)
        with torch.autocast(x_SXI.device.type, enabled=False):
            for index, (weight_SOI, bias_SO) in enumerate(self.weights):
                x_SXI = torch.baddbmm(bias_SO[:, None], x_SXI, weight_SOI.mT)
                if index + 1 < len(self.weights):
                    x_SXI = functional.relu(x_SXI)
            value_SXI = x_SXI.sigmoid()
            value_KX = value_SXI[..., 0] if value_SXI.shape[2] == 1 else value_SXI.mean(0).mT
            return value_KX * self.scale_K[:, None] - self.offset_K[:, None]

    def calibrate(self, iou_X: torch.Tensor) -> torch.Tensor:
        """What a raw value of the `iou` head means, 0..1: linear between the knots."""
        if self.knots_2Q is None:
            return iou_X.clamp(0, 1)
        raw_Q, true_Q = self.knots_2Q
        right = torch.searchsorted(raw_Q, iou_X.contiguous()).clamp(1, len(raw_Q) - 1)
        share = ((iou_X - raw_Q[right - 1]) / (raw_Q[right] - raw_Q[right - 1])).clamp(0, 1)
        return torch.lerp(true_Q[right - 1], true_Q[right], share).clamp(0, 1)

    def to(self, device: torch.device) -> HeadSet:
        """The same on a device."""
        return replace(
            self,
            weights=tuple((weight.to(device), bias.to(device)) for weight, bias in self.weights),
            scale_K=self.scale_K.to(device),
            offset_K=self.offset_K.to(device),
            knots_2Q=None if self.knots_2Q is None else self.knots_2Q.to(device),
        )

    def check_model(self, model_id: str) -> None:
        """Raise ConfigError unless these heads were fitted to this very model."""
        if self.model_id != model_id:
            raise ConfigError(
                f"These heads were fitted to {self.model_id or 'an unknown model'} and say nothing of {model_id}: "
                f"tokens mean something else in every model. Fit heads of {model_id} (gapmap fit-heads --help), "
                "or label without any (--heads none)."
            )


def subtract_ious(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gaps as differences of IoU heads (the paper's gaps without the star), by the gap's name, -1..1."""
    return {gap: values[fixed] - values["iou_meant"] for gap, fixed in FIXES.items() if fixed in values}
