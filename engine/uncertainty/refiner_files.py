"""Refiners as files: a prompt encoder and a mask decoder as safetensors, bound to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.models.cache import compute_sha256
from engine.uncertainty.head_files import beside_weights
from engine.uncertainty.maps import Refiner
from schemas.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from engine.models.segmenter import Segmenter

SUFFIX = ".refiner.safetensors"


def find_refiner(segmenter: Segmenter, asked: str | None = None) -> Refiner | None:
    """What draws a model's uncertainty maps.

    Args:
        asked: path of a refiner; `self` for the model itself; `none` for no maps; None for the file
            `NAME.refiner.safetensors` beside the model's weights, or the model itself where there is none.

    Raises:
        CheckpointError: the file is missing or holds something else.
        ConfigError: it was fitted to another model version.
    """
    if asked == "none":
        return None
    if asked not in (None, "self"):
        return read_refiner(segmenter, Path(asked).expanduser())
    path = refiner_path(segmenter)
    if asked == "self" or path is None or not path.is_file():
        return Refiner(segmenter, "self")
    return read_refiner(segmenter, path)


def refiner_path(segmenter: Segmenter) -> Path | None:
    """Where the refiner of a model lies if nobody says otherwise: beside its weights; None for weights at a URL."""
    return beside_weights(segmenter, SUFFIX)


def read_refiner(segmenter: Segmenter, path: Path) -> Refiner:
    """A refiner written by `write_refiner`, in front of the model's image encoder.

    Raises:
        CheckpointError: the file is missing or holds something else.
        ConfigError: it was fitted to another model version.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:
        raise CheckpointError(f"{path} is no refiner that can be read ({error!r}).") from None
    fitted_to = about.get("refines", "")
    if fitted_to != segmenter.model_id:
        raise ConfigError(
            f"{path} was fitted to {fitted_to or 'an unknown model'}, not to {segmenter.model_id}. Fit one of this "
            "model (gapmap fit-refiner --help), or let the model draw its maps itself: --maps self"
        )
    try:
        refining = segmenter.with_decoder(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {segmenter.model_id}: {error}") from None
    return Refiner(refining, "refiner", compute_sha256(path)[:12])


def write_refiner(
    weights: Mapping[str, torch.Tensor], model_id: str, path: Path, about: Mapping[str, object]
) -> None:
    """Write a refiner: learnt weights as fp16, the rest as it is; the file appears whole.

    Args:
        weights: state of the model's `decoder_modules`.
        model_id: the model version it was fitted to.
        about: what it was fitted with, for the file's metadata.
    """
    from safetensors.torch import save_file

    tensors = {
        name: (value if "gaussian" in name or not value.is_floating_point() else value.half())
        .cpu()
        .contiguous()
        for name, value in weights.items()
    }
    new = path.with_name(path.name + ".new")
    save_file(tensors, new, {"refines": model_id, "about": json.dumps(about)})
    new.chmod(0o644)  # safetensors leaves it to its owner alone
    new.replace(path)
