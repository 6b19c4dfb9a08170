"""SAM 2 and SAM 2.1 (package sam2), for images, behind the `Segmenter` interface.

Coordinates, resizing and the added no-memory embedding follow `sam2.SAM2ImagePredictor`: the image
is stretched to the square input, so nothing is padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch.nn import functional
from torchvision.transforms.functional import normalize, resize

from engine.models.decoder import box_corners, check_prompts, decode_masks, embed_points, pad_point
from engine.models.segmenter import Precision, Segmenter, check_images
from schemas.records import TASKS, Decoded, Embedding, Prompts

# The package's `SAM2Transforms`.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Sam2Segmenter(Segmenter):
    """A `sam2.modeling.sam2_base.SAM2Base` of any encoder and input size.

    Its memory modules are kept (a checkpoint written from it is complete) but never run.
    """

    package = "sam2"
    decoder_modules = ("sam_prompt_encoder", "sam_mask_decoder")

    def __init__(
        self,
        model: SAM2Base,
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
        self.image_size = model.image_size
        self.grid_size = model.sam_prompt_encoder.mask_input_size[0]
        self.mask_threshold = 0.0
        with torch.inference_mode():
            self._position_1Cee = model.sam_prompt_encoder.get_dense_pe()

    @property
    def sam2(self) -> SAM2Base:
        """The package's model."""
        return self.model

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray]) -> Embedding:
        """One pass of the image encoder; see `Segmenter.embed`."""
        check_images(images)
        # Bytes travel to the device, floats are made there; MPS lacks the antialiased resize.
        where = torch.device("cpu") if self.device.type == "mps" else self.device
        inputs = []
        for image in images:
            pixels_3HW = torch.from_numpy(np.ascontiguousarray(image)).to(where).permute(2, 0, 1)
            pixels_3HW = pixels_3HW.contiguous().to(torch.float32).div(255)
            resized_3SS = resize(pixels_3HW, [self.image_size, self.image_size], antialias=True)
            inputs.append(normalize(resized_3SS, _MEAN, _STD))
        with self._arithmetic():
            levels = self.sam2.forward_image(torch.stack(inputs).to(self.device))["backbone_fpn"]
            *high_res, features_BCee = levels[-self.sam2.num_feature_levels :]
            if self.sam2.directly_add_no_mem_embed:
                features_BCee = features_BCee + self.sam2.no_mem_embed.reshape(1, -1, 1, 1)
        sizes = tuple((image.shape[0], image.shape[1]) for image in images)
        return Embedding(features_BCee, sizes, tuple(high_res))

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
        """Masks, predicted IoU and tokens of N prompts; see `Segmenter.decode`.

        A single mask that is unstable is replaced by the best of the three, if the model was built
        so (the official ones are, as in the package).
        """
        check_prompts(prompts, len(embedding.image_sizes), self.grid_size)
        index_N = prompts.image_index_N.to(self.device, non_blocking=True)
        sparse_NPC = self._embed_points(prompts, index_N, embedding.image_sizes)
        masks_N1hw = prompts.masks_N1hw
        with self._arithmetic():
            return decode_masks(
                self.sam2.sam_mask_decoder,
                self.sam2.sam_prompt_encoder,
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
        """Straight from the grid to the image's size; see `Segmenter.upscale`."""
        return functional.interpolate(
            logits_Mhw.float()[None], image_size, mode="bilinear", align_corners=False
        )[0]

    def mask_extent(self, image_size: tuple[int, int]) -> tuple[float, float]:
        """The whole grid; see `Segmenter.mask_extent`."""
        return float(self.grid_size), float(self.grid_size)

    def _embed_points(
        self, prompts: Prompts, index_N: torch.Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        widths_heights = [(width, height) for height, width in image_sizes]
        size_B2 = torch.tensor(widths_heights, dtype=torch.float32).to(self.device, non_blocking=True)
        size_N12 = size_B2[index_N][:, None]

        # The package sends a box as two more points, before the others.
        points, labels = [], []
        if prompts.boxes_N4 is not None:
            corners_N22, labels_N2 = box_corners(
                prompts.boxes_N4.to(self.device, torch.float32, non_blocking=True)
            )
            points.append(corners_N22)
            labels.append(labels_N2)
        if prompts.points_NP2 is not None and prompts.labels_NP is not None:
            points.append(prompts.points_NP2.to(self.device, torch.float32, non_blocking=True))
            labels.append(prompts.labels_NP.to(self.device, torch.int64, non_blocking=True))
        encoder = self.sam2.sam_prompt_encoder
        if not points:
            return torch.empty(len(index_N), 0, encoder.embed_dim, device=self.device)
        points_NP2 = torch.cat(points, dim=1) / size_N12 * self.image_size
        return embed_points(encoder, *pad_point(points_NP2, torch.cat(labels, dim=1)))
