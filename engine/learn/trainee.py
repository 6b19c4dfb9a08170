"""A small model while it learns: one differentiable face for both packages, its warm start and its export."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.learn.curriculum import Recipe
from engine.models.nano import build_sam2_mini, build_sam_nano

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class PromptedModel(nn.Module):
    """One differentiable face for both packages' models: a view and its prompts -> four masks each.

    `forward(pixels_B3SS, prompts)` where prompts is a list over images of dicts with `points` (M,P,2),
    `labels` (M,P), `boxes` (M,4) or None and `masks` (M,1,h,w) or None, in view pixels. Returns lists of
    logits M4hw and IoU M4; output 0 is the single mask, 1..3 the multimask outputs.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.net: Any = build_sam_nano() if name == "sam-nano" else build_sam2_mini()

    @property
    def image_size(self) -> int:
        return self.net.image_size if self.name == "sam2-mini" else self.net.image_encoder.img_size

    @property
    def prompt_encoder(self) -> Any:
        return self.net.sam_prompt_encoder if self.name == "sam2-mini" else self.net.prompt_encoder

    def encode(
        self, pixels_B3SS: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embedding BCss and high-resolution features (empty for SAM); padding is zero after normalisation."""
        mean, std = (pixels_B3SS.new_tensor(value).view(1, 3, 1, 1) for value in (_MEAN, _STD))
        x = (pixels_B3SS - mean) / std * valid
        if self.name == "sam-nano":
            return self.net.image_encoder(x), []
        *fine, embedding = self.net.forward_image(x)["backbone_fpn"]
        return embedding + self.net.no_mem_embed.view(1, -1, 1, 1), fine

    def decode(
        self, embedding_1C: torch.Tensor, fine: list[torch.Tensor], prompt: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and IoU of all prompts of one image: logits M4hw, iou M4."""
        encoder = self.prompt_encoder
        side = embedding_1C.shape[-1]
        # Positions are relative to the input, so a model can be shown views of any size.
        encoder.image_embedding_size, encoder.input_image_size = (side, side), (side * 16, side * 16)
        points = None if prompt["points"] is None else (prompt["points"], prompt["labels"])
        sparse, dense = encoder(points=points, boxes=prompt["boxes"], masks=prompt["masks"])
        if self.name == "sam-nano":
            return self.net.mask_decoder.predict_masks(embedding_1C, encoder.get_dense_pe(), sparse, dense)
        logits, iou, _, _ = self.net.sam_mask_decoder.predict_masks(
            embedding_1C, encoder.get_dense_pe(), sparse, dense, repeat_image=True, high_res_features=fine
        )
        return logits, iou


def warm_start(net: nn.Module, weights: Path) -> int:
    """Let sam2-mini begin as the sam-nano of these weights; returns how many tensors were taken.

    Names are translated between the packages. Where sam2's feed-forward layer is wider, the rest of it
    starts without effect.
    """
    from safetensors.torch import load_file

    given = load_file(weights)
    copied = 0
    for name, value in net.state_dict().items():
        theirs = name.replace("sam_prompt_encoder.", "prompt_encoder.").replace(
            "sam_mask_decoder.", "mask_decoder."
        )
        theirs = theirs.replace(".mlp.layers.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")
        source = given.get(theirs)
        if (
            source is None
            or source.dim() != value.dim()
            or any(a > b for a, b in zip(source.shape, value.shape, strict=True))
        ):
            continue
        if source.shape != value.shape and theirs.endswith("lin2.weight"):
            value.zero_()
        value[tuple(slice(side) for side in source.shape)] = source.to(value)
        copied += 1
    no_memory = net.state_dict().get("no_mem_embed")
    if no_memory is not None:
        no_memory.zero_()
    return copied


def export(weights: dict[str, torch.Tensor], recipe: Recipe, image_size: int, step: int, path: Path) -> None:
    """Write fp16 safetensors whose metadata name the architecture, the input size and the recipe."""
    from safetensors.torch import save_file

    metadata = {
        "architecture": recipe.model,
        "image_size": str(image_size),
        "step": str(step),
        "recipe": json.dumps(asdict(recipe)),
    }
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in weights.items()}
    save_file(tensors, path.with_suffix(".new"), metadata)
    path.with_suffix(".new").replace(path)
