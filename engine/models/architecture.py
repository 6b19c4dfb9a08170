"""Empty models for the registry's names, and the name for given weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.models.registry import MODELS, ModelEntry
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from engine.models.checkpoint import Checkpoint

# (width of the first layer, number of blocks) of the image encoder -> registry name
_SAM = {(768, 12): "sam-vit-b", (1024, 24): "sam-vit-l", (1280, 32): "sam-vit-h"}
_SAM2 = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base-plus", (144, 48): "large"}


def build_model(name: str, *, image_size: int | None = None) -> torch.nn.Module:
    """The package's model of a registry name, with random weights, on the CPU.

    Args:
        name: registry name.
        image_size: side of the square input, pixels; None for the usual one. The ViT of SAM has
            its size in its weights and takes no other.

    Raises:
        ConfigError: another input size for a SAM ViT.
    """
    entry = MODELS[name]
    if entry.kind == "shipped":
        return _build_shipped(name, image_size)
    if entry.package == "sam2":
        return _build_sam2(entry, image_size)
    if image_size not in (None, 1024):
        raise ConfigError(f"{name} works at 1024 pixels alone, not at {image_size}.")
    from segment_anything import sam_model_registry

    return sam_model_registry[entry.architecture]()


def recognise(checkpoint: Checkpoint) -> str | None:
    """The registry name whose architecture the weights have, or None.

    By the file's own word (`architecture` in safetensors metadata), else by names and shapes.
    """
    said = checkpoint.metadata.get("architecture")
    if said in MODELS:
        return said
    weights = checkpoint.weights
    if "image_encoder.pos_embed" in weights:
        key = (
            weights["image_encoder.pos_embed"].shape[-1],
            _count(weights, r"image_encoder\.blocks\.(\d+)\."),
        )
        return _SAM.get(key)
    first = weights.get("image_encoder.trunk.patch_embed.proj.weight")
    if first is not None:
        size = _SAM2.get((first.shape[0], _count(weights, r"image_encoder\.trunk\.blocks\.(\d+)\.")))
        generation = "sam2.1" if "no_obj_embed_spatial" in weights else "sam2"
        return f"{generation}-{size}" if size else None
    shapes = {name: weight.shape for name, weight in weights.items()}
    for entry in MODELS.values():
        if entry.kind == "shipped":
            state = build_model(entry.name).state_dict()
            if shapes == {name: weight.shape for name, weight in state.items()}:
                return entry.name
    return None


def _count(names: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _build_shipped(name: str, image_size: int | None) -> torch.nn.Module:
    from engine.models import nano

    build = {"sam-nano": nano.build_sam_nano, "sam2-mini": nano.build_sam2_mini}[name]
    return build() if image_size is None else build(image_size)


def _build_sam2(entry: ModelEntry, image_size: int | None) -> torch.nn.Module:
    # The package composes its configuration through hydra's process-wide state, which breaks where
    # hydra is in use already. The file itself needs no composing.
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(sam2.__path__[0]) / entry.architecture).model
    # What the package's own build_sam2 adds.
    config.sam_mask_decoder_extra_args = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    if image_size is not None:
        config.image_size = image_size
    return instantiate(config, _recursive_=True)
