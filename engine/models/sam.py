"""SAM (package segment-anything) behind the `Segmenter` interface.

Coordinates, resizing and padding follow `segment_anything.SamPredictor`: the longer side is resized
to the input's side, the rest is padded at the right and at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.transforms.functional import resize, to_pil_image

from engine.models.decoder import box_corners, check_prompts, decode_masks, embed_points, pad_point
from engine.models.segmenter import Precision, Segmenter, check_images
from schemas.records import TASKS, Decoded, Embedding, Prompts


class SamSegmenter(Segmenter):
    """A `segment_anything.modeling.Sam` of any encoder and input size."""

    package = "segment-anything"
    decoder_modules = ("prompt_encoder", "mask_decoder")

    def __init__(
        self,
        model: Sam,
        *,
        name: str,
        sha256: str,
        source: str = "",
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        task_prompt_4C: torch.Tensor | None = None,
    ) -> None:
        super().__init__(
            model,
            name=name,
            sha256=sha256,
            source=source,
            device=device,
            precision=precision,
            task_prompt_4C=task_prompt_4C,
        )
        self.image_size = model.image_encoder.img_size
        self.grid_size = model.prompt_encoder.mask_input_size[0]
        self.mask_threshold = model.mask_threshold
        with torch.inference_mode():
            self._position_1Cee = model.prompt_encoder.get_dense_pe()

    @property
    def sam(self) -> Sam:
        """The package's model."""
        return self.model

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray]) -> Embedding:
        """One pass of the image encoder; see `Segmenter.embed`."""
        check_images(images)
        input_B3SS = torch.zeros(len(images), 3, self.image_size, self.image_size, device=self.device)
        for input_3SS, image in zip(input_B3SS, images, strict=True):
            height, width = self._input_size(image.shape[:2])
            resized_hw3 = torch.from_numpy(np.array(resize(to_pil_image(image), [height, width])))
            resized_hw3 = resized_hw3.to(self.device)
            # Padding is zero after normalisation, so it is left as it is.
            input_3SS[:, :height, :width] = (
                resized_hw3.permute(2, 0, 1) - self.sam.pixel_mean
            ) / self.sam.pixel_std
        with self._arithmetic():
            features = self.sam.image_encoder(input_B3SS)
        return Embedding(features, tuple((image.shape[0], image.shape[1]) for image in images))

    @torch.inference_mode()
    def decode(
        self,
        embedding: Embedding,
        prompts: Prompts,
        *,
        multimask: bool = True,
        min_iou: float | None = None,
        task: str = TASKS[0],
    ) -> Decoded:
        """Masks, predicted IoU and tokens of N prompts; see `Segmenter.decode`."""
        check_prompts(prompts, len(embedding.image_sizes), self.grid_size)
        index_N = prompts.image_index_N.to(self.device, non_blocking=True)
        sparse_NPC = self._embed_points(prompts, index_N, embedding.image_sizes)
        masks_N1hw = prompts.masks_N1hw
        with self._arithmetic():
            return decode_masks(
                self.sam.mask_decoder,
                self.sam.prompt_encoder,
                embedding,
                self._position_1Cee,
                prompts.image_index_N,
                sparse_NPC,
                None if masks_N1hw is None else masks_N1hw.to(self.device, torch.float32, non_blocking=True),
                multimask=multimask,
                min_iou=min_iou,
                task_C=self._task_vector(task),
            )

    @torch.inference_mode()
    def upscale(self, logits_Mhw: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """To the input's size, padding cut off, to the image's size; see `Segmenter.upscale`."""
        return self.sam.postprocess_masks(logits_Mhw.float()[None], self._input_size(image_size), image_size)[
            0
        ]

    def mask_extent(self, image_size: tuple[int, int]) -> tuple[float, float]:
        """The grid's part that is not padding; see `Segmenter.mask_extent`."""
        height, width = self._input_size(image_size)
        cell = self.image_size / self.grid_size
        return height / cell, width / cell

    def _input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = ResizeLongestSide.get_preprocess_shape(*image_size, self.image_size)
        return max(height, 1), max(width, 1)  # of a line hundreds of times as long as wide, something is left

    def _embed_points(
        self, prompts: Prompts, index_N: torch.Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        # The package scales in float64, and so does this wherever the device has it.
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        scales = []
        for height, width in image_sizes:
            new_height, new_width = self._input_size((height, width))
            scales.append((new_width / width, new_height / height))
        scale_B2 = torch.tensor(scales, dtype=kind).to(self.device, non_blocking=True)
        scale_N12 = scale_B2[index_N][:, None]

        points, labels = [], []
        if prompts.points_NP2 is not None and prompts.labels_NP is not None:
            points_NP2 = prompts.points_NP2.to(self.device, kind, non_blocking=True) * scale_N12
            labels_NP = prompts.labels_NP.to(self.device, torch.int64, non_blocking=True)
            if prompts.boxes_N4 is None:
                points_NP2, labels_NP = pad_point(points_NP2, labels_NP)
            points.append(points_NP2)
            labels.append(labels_NP)
        if prompts.boxes_N4 is not None:
            corners_N22, labels_N2 = box_corners(prompts.boxes_N4.to(self.device, kind, non_blocking=True))
            points.append(corners_N22 * scale_N12)
            labels.append(labels_N2)
        encoder = self.sam.prompt_encoder
        if not points:
            return torch.empty(len(index_N), 0, encoder.embed_dim, device=self.device)
        return embed_points(encoder, torch.cat(points, dim=1).float(), torch.cat(labels, dim=1))
