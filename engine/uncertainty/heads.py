"""Heads on the mask decoder's tokens: why is the model unsure of a mask, and how good is it.

UncertainSAM (Kaiser et al., ICML 2025): small perceptrons that regress, for each mask, what a larger
model, a better prompt or another of the three outputs would gain in IoU, and the IoU itself. All heads of
a set are evaluated in one batched product a layer, on the device of the tokens.

Shape suffixes: K heads, N prompts, M multimask outputs (3), C channels of a token (256), I and O
channels into and out of a layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch
from torch.nn import functional

from schemas.errors import CheckpointError, ConfigError

_LAYERS = 3


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
        names: name of each head, such as `model_gap`, `prompt_gap`, `task_gap` or `iou`.
        weights: weight_KOI and bias_KO of the three layers.
        offset_K: what is subtracted from each head's sigmoid: 0.5 for gaps (-0.5..0.5), 0 for IoU (0..1).
        pairing: which mask token goes with which mask.
        model_id: `name@version` of the model whose tokens they read; empty where that is not known.
    """

    names: tuple[str, ...]
    weights: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    offset_K: torch.Tensor
    pairing: Pairing
    model_id: str

    @torch.inference_mode()
    def score(self, iou_token_NC: torch.Tensor, mask_tokens_N4C: torch.Tensor) -> torch.Tensor:
        """What each head says of each multimask output, value_KNM, fp32, on the tokens' device."""
        first = 1 if self.pairing is Pairing.own else 0
        tokens_NMC = mask_tokens_N4C[:, first : first + 3]
        n, m = tokens_NMC.shape[:2]
        x_NMI = torch.cat([iou_token_NC[:, None].expand(-1, m, -1), tokens_NMC], dim=2).float()
        x_KXI = x_NMI.flatten(0, 1).expand(len(self.names), -1, -1)
        with torch.autocast(x_KXI.device.type, enabled=False):
            for index, (weight_KOI, bias_KO) in enumerate(self.weights):
                x_KXI = torch.baddbmm(bias_KO[:, None], x_KXI, weight_KOI.mT)
                if index + 1 < _LAYERS:
                    x_KXI = functional.relu(x_KXI)
            return x_KXI.sigmoid().reshape(len(self.names), n, m) - self.offset_K[:, None, None]

    def to(self, device: torch.device) -> HeadSet:
        """The same on a device."""
        weights = tuple((weight.to(device), bias.to(device)) for weight, bias in self.weights)
        return replace(self, weights=weights, offset_K=self.offset_K.to(device))

    def check_model(self, model_id: str) -> None:
        """Raise ConfigError unless these heads were fitted to this very model."""
        if self.model_id != model_id:
            raise ConfigError(
                f"These heads were fitted to {self.model_id or 'an unknown model'} and say nothing of {model_id}: "
                f"tokens mean something else in every model. Use heads of {model_id}, or label without."
            )


def read_released(files: Mapping[str, Path]) -> HeadSet:
    """The heads that the paper's authors released: one file of weights each.

    Args:
        files: head name to `.pth` file; names that end in `_gap` are read as gaps.

    Raises:
        CheckpointError: a file is missing or holds something else.
    """
    states = {}
    for name, path in files.items():
        try:
            states[name] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} is no head that can be read ({type(error).__name__}).") from None
    return _stack(states, Pairing.neighbour, "")


def read_heads(path: Path) -> HeadSet:
    """A head set written by `write_heads`.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            names = tuple(json.loads(about["heads"]))
            weights = tuple(
                (file.get_tensor(f"layers.{i}.weight"), file.get_tensor(f"layers.{i}.bias"))
                for i in range(_LAYERS)
            )
            return HeadSet(
                names, weights, file.get_tensor("offset"), Pairing(about["pairing"]), about["model"]
            )
    except Exception as error:
        raise CheckpointError(f"{path} is no head set that can be read ({error!r}).") from None


def write_heads(heads: HeadSet, path: Path) -> None:
    """Write a head set as safetensors; the file appears whole."""
    from safetensors.torch import save_file

    tensors = {"offset": heads.offset_K.cpu()}
    for index, (weight, bias) in enumerate(heads.weights):
        tensors |= {
            f"layers.{index}.weight": weight.cpu().contiguous(),
            f"layers.{index}.bias": bias.cpu().contiguous(),
        }
    about = {"heads": json.dumps(heads.names), "pairing": heads.pairing.value, "model": heads.model_id}
    new = path.with_suffix(".new")
    save_file(tensors, new, about)
    new.replace(path)


def _stack(states: Mapping[str, Mapping[str, torch.Tensor]], pairing: Pairing, model_id: str) -> HeadSet:
    try:
        weights = tuple(
            (
                torch.stack([state[f"layers.{i}.weight"].float() for state in states.values()]),
                torch.stack([state[f"layers.{i}.bias"].float() for state in states.values()]),
            )
            for i in range(_LAYERS)
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"These are no heads of three layers and one size ({error}).") from None
    offset_K = torch.tensor([0.5 if name.endswith("_gap") else 0.0 for name in states])
    return HeadSet(tuple(states), weights, offset_K, pairing, model_id)
