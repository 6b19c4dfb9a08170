"""Which parts of a model learn: the decoder, everything, or low-rank adapters; and the weights that come of it.

Adapters are those of the package peft (Hu et al., "LoRA", ICLR 2022); they are merged in the end, so that what is
written is a plain model.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from engine.learn.trainee import PromptedModel
from engine.models.segmenter import Segmenter
from schemas.settings import FinetuneSettings

# The linear layers of attention and of feed-forward blocks, in both packages' encoders and decoders.
_ADAPTED = r".*\.(qkv|proj|q_proj|k_proj|v_proj|out_proj|lin1|lin2|layers\.[01])"
_NOT_ADAPTED = r".*(hypernetworks|iou_prediction_head|memory|obj_ptr|patch_embed).*"
_BLOCK = re.compile(r"(?:image_encoder\.(?:trunk\.)?)blocks\.(\d+)\.")


def make_learner(segmenter: Segmenter, settings: FinetuneSettings) -> PromptedModel:
    """A copy of the model on its device, fp32, whose learning parts alone require gradients.

    The encoder stays in evaluation mode (nothing is dropped at random), so that what is learnt is what is used.
    """
    model = PromptedModel(deepcopy(segmenter.model), segmenter.package, segmenter.task_prompt_4C)
    model.requires_grad_(False)
    if settings.train == "all":
        model.net.requires_grad_(True)
    elif settings.train == "decoder":
        model.prompt_encoder.requires_grad_(True)
        model.mask_decoder.requires_grad_(True)
    else:
        from peft import LoraConfig, inject_adapter_in_model

        names = [
            name
            for name, module in model.net.named_modules()
            if isinstance(module, nn.Linear)
            and re.fullmatch(_ADAPTED, name)
            and not re.fullmatch(_NOT_ADAPTED, name)
        ]
        torch.manual_seed(settings.seed)
        config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=names)
        inject_adapter_in_model(config, model.net)
    model.task_prompt.requires_grad_(settings.task_prompt != "none")
    return model.to(segmenter.device).eval()


def learns_encoder(settings: FinetuneSettings) -> bool:
    """Whether images have to be encoded anew in every update."""
    return settings.train != "decoder"


def parameter_groups(model: PromptedModel, settings: FinetuneSettings) -> list[dict[str, Any]]:
    """Parameters by the share of the learning rate they get: less, the nearer an encoder block is to the image."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    blocks = {name: int(found[1]) for name in learning if (found := _BLOCK.search(name))}
    last = max(blocks.values(), default=0)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learning.items():
        if name in blocks:
            depth = last + 1 - blocks[name]
        else:  # what comes before the blocks is lowest, all else is not of the encoder's depth
            depth = last + 2 if blocks and re.search(r"patch_embed|pos_embed", name) else 0
        groups.setdefault(settings.layer_decay**depth, []).append(parameter)
    return [{"params": parameters, "share": share} for share, parameters in sorted(groups.items())]


def learnt_state(model: PromptedModel) -> dict[str, torch.Tensor]:
    """The learning parameters by name, copied to the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def whole_weights(model: PromptedModel) -> dict[str, torch.Tensor]:
    """All weights under the package's names, adapters merged, on the CPU; the model itself is left as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    net = deepcopy(model.net)
    for module in net.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {
        name.replace(".base_layer.", "."): value.detach().cpu().contiguous()
        for name, value in net.state_dict().items()
        if ".lora_" not in name
    }
