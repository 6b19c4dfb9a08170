"""The one interface to a promptable segmentation model.

Shape suffixes: N prompts, M masks, B images, P points, C channels (256), h w low-resolution mask
grid, H W image.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch

from schemas.errors import ConfigError
from schemas.records import TASKS

if TYPE_CHECKING:
    from schemas.records import Decoded, Embedding, Prompts

Precision = Literal["auto", "fp32", "bf16"]


class Segmenter(ABC):
    """A promptable model with its weights, on one device, in evaluation mode.

    Two frames are used. "image" is the decoded image in pixels, and everything that goes in or out
    is in it. "grid" is the square low-resolution grid that mask logits live on; `mask_extent` says
    which part of it an image covers and `upscale` leads from it to image pixels.

    Attributes:
        package: the package the architecture comes from, `segment-anything` or `sam2`.
        decoder_modules: names of its prompt encoder and its mask decoder among the model's modules.
        name: registry name, or the checkpoint's file name without its ending.
        sha256: SHA-256 of the weights file, hex.
        source: where the weights came from, without credentials.
        parameters: number of parameters.
        image_size: side of the model's square input, pixels.
        grid_size: side of the square mask grid, cells; also the side of mask prompts.
        device: where the model is.
        precision: `fp32`, or `bf16` (automatic mixed precision, CUDA only).
        mask_threshold: logit above which a pixel belongs to the mask.
        task_prompt_4C: what is added to the dense prompt for each of `schemas.records.TASKS`; None for a model
            that was not taught any.
    """

    package: ClassVar[str]
    decoder_modules: ClassVar[tuple[str, str]]
    model: Any
    image_size: int
    grid_size: int
    mask_threshold: float

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str,
        sha256: str,
        source: str = "",
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        task_prompt_4C: torch.Tensor | None = None,
    ) -> None:
        """Take over a model: it is moved to the device and put into evaluation mode.

        Raises:
            ConfigError: no such device here, or a precision it does not have.
        """
        self.device = choose_device(device)
        self.precision = _choose_precision(precision, self.device)
        self.name = name
        self.sha256 = sha256
        self.source = source
        self.parameters = sum(p.numel() for p in model.parameters())
        self.task_prompt_4C = None if task_prompt_4C is None else task_prompt_4C.float().to(self.device)
        self.model = model.eval().requires_grad_(False).to(self.device)

    @property
    def version(self) -> str:
        """First 12 hex digits of the SHA-256 of the weights file."""
        return self.sha256[:12]

    @property
    def model_id(self) -> str:
        """`name@version`: what a row of the store names as its model."""
        return f"{self.name}@{self.version}"

    @abstractmethod
    def embed(self, images: Sequence[np.ndarray]) -> Embedding:
        """Run the image encoder once over a batch.

        Args:
            images: uint8 HW3 RGB arrays; sizes may differ.

        Raises:
            ValueError: no images, or an array of another type or shape.
        """

    @abstractmethod
    def decode(
        self,
        embedding: Embedding,
        prompts: Prompts,
        *,
        multimask: bool = True,
        min_iou: float | None = None,
        task: str = TASKS[0],
    ) -> Decoded:
        """Decode N prompts, for any of the embedding's images, in one pass.

        Prompts may be on any device, their image index best on the host; without `min_iou` nothing is read
        back from the device. Memory grows with N by the logits alone (0.8 MiB a prompt at 1024 pixels) and
        what an image's prompts share is made once a call, so N may be hundreds; prompts of one image should
        follow each other.

        Args:
            embedding: what `embed` returned.
            prompts: points, boxes and masks; coordinates in image pixels.
            multimask: three masks of different scale for each prompt; else one.
            min_iou: leave out prompts with no output whose predicted IoU is above this, before
                their masks are drawn; with `multimask` only.
            task: what is meant by the prompts, one of `TASKS`. To be told with an object's first prompt only; a
                model that was not taught tasks answers all alike.

        Returns:
            fp32 tensors on the model's device, made under inference mode.

        Raises:
            ValueError: the prompts do not fit each other, the embedding or the grid.
        """

    def with_decoder(self, weights: Mapping[str, torch.Tensor]) -> Self:
        """The same behind another prompt encoder and mask decoder; the image encoder is shared.

        A single mask is then always the decoder's own: nothing takes its place when it is unstable.

        Args:
            weights: state of the `decoder_modules`, by the names the model has for them.

        Raises:
            RuntimeError: names or shapes differ.
        """
        other, model = copy.copy(self), copy.copy(self.model)
        model._modules = dict(self.model._modules)
        for name in self.decoder_modules:
            module = copy.deepcopy(model._modules[name])
            start = f"{name}."
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            )
            if hasattr(module, "dynamic_multimask_via_stability"):
                module.dynamic_multimask_via_stability = False
            model._modules[name] = module
        other.model = model
        return other

    @abstractmethod
    def upscale(self, logits_Mhw: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Enlarge low-resolution logits to one image's pixels, as the model's package does.

        Args:
            logits_Mhw: logits on the grid, all of masks of one image.
            image_size: (height, width) of the image, pixels.

        Returns:
            logits_MHW, fp32, same device. It takes 4·M·H·W bytes and more meanwhile.
        """

    @abstractmethod
    def mask_extent(self, image_size: tuple[int, int]) -> tuple[float, float]:
        """Rows and columns of the mask grid that an image covers, from its top-left corner.

        Fractional, and the rest of the grid is padding. With extent (h, w), the cell in column i
        covers the image's x from i·W/w to (i+1)·W/w pixels, and rows alike.

        Args:
            image_size: (height, width) of the image, pixels.
        """

    def _task_vector(self, task: str) -> torch.Tensor | None:
        """What is added to the dense prompt for a task, vector_C; None for nothing."""
        if task not in TASKS:
            raise ValueError(f"There is no task {task!r}. There are: {', '.join(TASKS)}.")
        return None if self.task_prompt_4C is None else self.task_prompt_4C[TASKS.index(task)]

    def _arithmetic(self) -> contextlib.AbstractContextManager:
        """Mixed precision, or fp32 that is fp32: on CUDA convolutions round to TF32 unless told not to."""
        if self.precision == "bf16":
            return torch.autocast("cuda", torch.bfloat16)
        return torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=False,
        )


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best there is: cuda, then mps, then cpu.

    Raises:
        ConfigError: the name is not a device, or this machine does not have it.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(kind for kind, there in has.items() if there))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"{device!r} is not a device. Use cuda, cuda:N, mps or cpu.") from None
    there = [kind for kind, present in has.items() if present]
    if chosen.type not in there:
        raise ConfigError(f"This machine has no {chosen.type}. It has: {', '.join(there)}.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"There is no {chosen}: this machine has {torch.cuda.device_count()} GPU(s).")
    return chosen


def check_images(images: Sequence[np.ndarray]) -> None:
    """Raise ValueError unless every image is a uint8 HW3 array with pixels."""
    if not len(images):
        raise ValueError("embed needs at least one image.")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"An image must be a uint8 HW3 array, not {image.dtype} {image.shape}.")


def _choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "bf16" and device.type != "cuda":
        raise ConfigError(f"bf16 needs a CUDA device, not {device.type}. Use precision fp32 or auto.")
    return precision
