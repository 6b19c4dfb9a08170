"""A model while it learns: one differentiable face for both packages; warm start and export of the small ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.models.cache import compute_sha256
from engine.models.decoder import box_corners, embed_points, pad_point
from engine.models.nano import build_sam2_mini, build_sam_nano
from schemas.records import TASKS

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class PromptedModel(nn.Module):
    """One differentiable face for both packages' models: `encode` views, then `decode` each view's prompts.

    A prompt is a dict with `points` (M,P,2) and `labels` (M,P), or None; `boxes` (M,4) or None, points or boxes at
    least; `masks` (M,1,h,w) or None; all in pixels of the model's input. `images` (M), if there are several, are their
    places in the batch. With `tasks` (M), places in `TASKS`, the task prompt is added; the unspecified one stays zero.

    Args:
        net: a `segment_anything.modeling.Sam` or `sam2.modeling.sam2_base.SAM2Base`.
        package: which of them, `segment-anything` or `sam2`.
        task_prompt_4C: what the task prompt starts as; zeros if not given.
    """

    def __init__(self, net: Any, package: str, task_prompt_4C: torch.Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.package = package
        width = self.prompt_encoder.embed_dim
        start = torch.zeros(len(TASKS), width) if task_prompt_4C is None else task_prompt_4C.detach().clone()
        self.task_prompt = nn.Parameter(start)

    @property
    def image_size(self) -> int:
        return self.net.image_size if self.package == "sam2" else self.net.image_encoder.img_size

    @property
    def prompt_encoder(self) -> Any:
        return self.net.sam_prompt_encoder if self.package == "sam2" else self.net.prompt_encoder

    @property
    def mask_decoder(self) -> Any:
        return self.net.sam_mask_decoder if self.package == "sam2" else self.net.mask_decoder

    def encode(
        self, pixels_B3SS: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embedding BCss and high-resolution features (empty for SAM); padding is zero after normalisation."""
        mean, std = (pixels_B3SS.new_tensor(value).view(1, 3, 1, 1) for value in (_MEAN, _STD))
        x = (pixels_B3SS - mean) / std * valid
        if self.package != "sam2":
            return self.net.image_encoder(x), []
        levels = self.net.forward_image(x)["backbone_fpn"]
        *fine, embedding = levels[-self.net.num_feature_levels :]
        if self.net.directly_add_no_mem_embed:
            embedding = embedding + self.net.no_mem_embed.view(1, -1, 1, 1)
        return embedding, fine

    def decode(
        self, embedding_BC: torch.Tensor, fine: Sequence[torch.Tensor], prompt: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and IoU of all prompts: logits M4hw, iou M4; 0 is the single mask, 1..3 the multimask outputs.

        Without `images` (M), places in the batch, all prompts are of its one image.
        """
        encoder = self.prompt_encoder
        side = embedding_BC.shape[-1]
        # Positions are relative to the input, so a model can be shown views of any size.
        encoder.image_embedding_size, encoder.input_image_size = (side, side), (side * 16, side * 16)
        with torch.autocast(embedding_BC.device.type, enabled=False):
            sparse = self._embed_points(prompt)
            if prompt["masks"] is None:
                dense = encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(len(sparse), -1, side, side)
            else:
                dense = encoder.mask_downscaling(prompt["masks"])
            if prompt.get("tasks") is not None:
                tasks_M = prompt["tasks"]
                vectors_MC = torch.where((tasks_M > 0)[:, None], self.task_prompt[tasks_M], 0.0)
                dense = dense + vectors_MC[:, :, None, None]
        if prompt.get("images") is not None:
            # The packages' decoders take one image; it only ever counts as the sum with the dense prompt.
            dense = dense + embedding_BC[prompt["images"]]
            embedding_BC, fine = torch.zeros_like(embedding_BC[:1]), [of[prompt["images"]] for of in fine]
        decoder, position = self.mask_decoder, encoder.get_dense_pe()
        if self.package != "sam2":
            return decoder.predict_masks(embedding_BC, position, sparse, dense)
        fine_or_none = list(fine) or None
        logits, iou, _, _ = decoder.predict_masks(
            embedding_BC, position, sparse, dense, repeat_image=True, high_res_features=fine_or_none
        )
        return logits, iou

    def _embed_points(self, prompt: dict) -> torch.Tensor:
        """As the package's prompt encoder, without reading anything back from the device."""
        points = [] if prompt["points"] is None else [(prompt["points"], prompt["labels"])]
        boxes = [] if prompt["boxes"] is None else [box_corners(prompt["boxes"])]
        # sam2's predictor gives a box as points in front of the others; segment-anything's follows them, without padding.
        parts = boxes + points if self.package == "sam2" else points + boxes
        coordinates, labels = (torch.cat(of, 1) for of in zip(*parts, strict=True))
        if self.package == "sam2" or not boxes:
            coordinates, labels = pad_point(coordinates, labels)
        return embed_points(self.prompt_encoder, coordinates, labels)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether learning in bf16 saves time: on a processor without units for it an update takes ten times as long."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def small_model(name: str) -> PromptedModel:
    """`sam-nano` or `sam2-mini` with random weights."""
    if name == "sam-nano":
        return PromptedModel(build_sam_nano(), "segment-anything")
    return PromptedModel(build_sam2_mini(), "sam2")


def warm_start(net: nn.Module, weights: Path) -> int:
    """Let a model begin as these weights of a small model; returns how many tensors were taken.

    For sam2-mini from sam-nano, names are translated between the packages. Where sam2's feed-forward layer is wider, the rest of it
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
        source = given.get(name, given.get(theirs))
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
    if no_memory is not None and "no_mem_embed" not in given:
        no_memory.zero_()
    return copied


def describe_start(weights: Path | None) -> dict | None:
    """How the weights a run starts from were made: the recipe in their file, and the file's SHA-256."""
    from safetensors import safe_open

    if weights is None:
        return None
    with safe_open(weights, framework="pt") as file:
        recipe = (file.metadata() or {}).get("recipe", "null")
    return {"sha256": compute_sha256(weights), "recipe": json.loads(recipe)}


def export(weights: dict[str, torch.Tensor], identity: dict, image_size: int, step: int, path: Path) -> None:
    """Write fp16 safetensors whose metadata name the architecture, the input size and how it was trained."""
    from safetensors.torch import save_file

    metadata = {
        "architecture": identity["model"],
        "image_size": str(image_size),
        "step": str(step),
        "recipe": json.dumps(identity),
    }
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in weights.items()}
    save_file(tensors, path.with_suffix(".new"), metadata)
    path.with_suffix(".new").replace(path)
