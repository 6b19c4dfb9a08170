"""Monte-Carlo entropies: the Bayesian baselines of UncertainSAM (Kaiser et al., ICML 2025), for evaluation only.

Each is the entropy of a mean: the probability maps of many predictions are averaged, and the mean map's pixel
entropy is averaged over one box. What is averaged over is model sizes (Theta), prompts (Xp), outputs (A), or all
of these (Y); and in every one the plain picture and five augmented ones. That takes 6 · P decodes of an object
by each model, so nothing that labels calls this.

Maps of any model are compared on one common grid of G x G cells, which is stretched over the image.

The released code differs: it weighs each pixel's entropy by its mean probability, chooses outputs by the ground
truth, and of these means takes only H_Y over augmentations, without the flip.

Shape suffixes: N objects, P points of each, X prompts at once, M outputs (3), G side of the common grid,
h w low-resolution mask grid, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.special import entr

from engine.masks.geometry import mask_boxes
from engine.models.segmenter import Segmenter, check_images
from schemas.records import Prompts

_GRID = 128
_PROMPTS_AT_ONCE = 16
# As in the released code: variance 5000, and a 5 x 5 kernel of the width OpenCV gives it.
_NOISE = math.sqrt(5000)
_BLUR = 5
_JPEG = (10, 30)


@dataclass(frozen=True)
class Augmented:
    """A changed picture: uint8 HW3 RGB of the same size. `mirrored`: left and right are exchanged, so that
    points have to be mirrored before and maps after."""

    name: str
    pixels_HW3: np.ndarray
    mirrored: bool = False


def augment(pixels_HW3: np.ndarray, seed: int) -> list[Augmented]:
    """Five changed pictures: JPEG of quality 10 and 30, Gaussian noise, Gaussian blur, horizontal flip.

    Args:
        pixels_HW3: uint8 RGB.
        seed: of the noise; the rest is not random.
    """
    pixels_HW3 = np.ascontiguousarray(pixels_HW3)
    noise_HW3 = np.random.default_rng(seed).standard_normal(pixels_HW3.shape, np.float32) * _NOISE
    noisy_HW3 = np.clip(np.rint(pixels_HW3 + noise_HW3), 0, 255).astype(np.uint8)
    return [
        *(Augmented(f"jpeg-{quality}", _compress(pixels_HW3, quality)) for quality in _JPEG),
        Augmented("noise", noisy_HW3),
        Augmented("blur", cv2.GaussianBlur(pixels_HW3, (_BLUR, _BLUR), 0)),
        Augmented("flip", np.ascontiguousarray(pixels_HW3[:, ::-1]), mirrored=True),
    ]


def monte_carlo_entropies(
    pixels_HW3: np.ndarray,
    points_NP2: np.ndarray,
    segmenter: Segmenter,
    larger: Segmenter | None,
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Entropies of each object's prediction, and of the mean over its Monte-Carlo samples.

    | key | the mean is over | of each decode |
    |---|---|---|
    | `entropy` | nothing: the prediction that is judged | the output of highest predicted IoU |
    | `H_Theta` | both models, 6 pictures | the output of highest predicted IoU |
    | `H_Xp` | P points, each alone, 6 pictures | the output of highest predicted IoU |
    | `H_A` | 6 pictures | the 3 outputs, weighted by predicted IoU |
    | `H_Y` | both models, P points, 6 pictures | the 3 outputs, weighted by predicted IoU |

    Weights are predicted IoU clamped at 0 over their sum; equal where all are 0. Every decode weighs the same.

    All five are averaged over the same cells: the box of the mask that is judged, which is that of `entropy`.
    Over a whole image the sure background of a small object would hide its unsure edge, and ordering by entropy
    would be ordering by size. Where that mask is empty it is the cell under the point.

    Args:
        pixels_HW3: uint8 RGB image.
        points_NP2: xy of foreground points in image pixels (0 is the centre of the first pixel), float32. The
            first point of each object is the prompt that is judged.
        segmenter: the model that is judged.
        larger: the other model size, on any device; None: `H_Theta` is NaN, and `H_Y` is over the one model.
        seed: of the augmentations.

    Returns:
        float64 N under each key, bits, 0..1.

    Raises:
        ValueError: points or pixels of another type or shape, or an image too long for JPEG (65,535 pixels).
    """
    check_images([pixels_HW3])
    if points_NP2.ndim != 3 or points_NP2.shape[2] != 2 or not points_NP2.shape[1]:
        raise ValueError(f"points_NP2 must be xy of the points of each object, not {points_NP2.shape}.")
    if not np.isfinite(points_NP2).all():
        raise ValueError("points_NP2 must be finite.")
    n = len(points_NP2)
    pictures = [Augmented("plain", pixels_HW3), *augment(pixels_HW3, seed)] if n else []
    judged_NGG, *sums = (torch.zeros(n, _GRID, _GRID) for _ in range(5))
    all_NGG, outputs_NGG, prompts_NGG, models_NGG = sums
    models = [segmenter] if larger is None else [segmenter, larger]
    for m, model in enumerate(models):
        for k, picture in enumerate(pictures):
            for part, picked_NPGG, mixed_NPGG in _draw_samples(model, picture, points_NP2):
                models_NGG[part] += picked_NPGG[:, 0] / len(models)
                all_NGG[part] += mixed_NPGG.mean(1) / len(models)
                if m == 0:
                    prompts_NGG[part] += picked_NPGG.mean(1)
                    outputs_NGG[part] += mixed_NPGG[:, 0]
                if m == k == 0:
                    judged_NGG[part] = picked_NPGG[:, 0]

    threshold = segmenter.mask_threshold
    boxes_N4 = _judged_boxes(judged_NGG.numpy(), points_NP2[:, 0], pixels_HW3.shape[:2], threshold)
    means = [judged_NGG, *(total / max(1, len(pictures)) for total in sums)]
    entropy_N, all_N, outputs_N, prompts_N, models_N = (
        _mean_entropy(mean_NGG.double().numpy(), boxes_N4) for mean_NGG in means
    )
    models_N = models_N if larger is not None else np.full(n, np.nan)
    return {"entropy": entropy_N, "H_Y": all_N, "H_A": outputs_N, "H_Xp": prompts_N, "H_Theta": models_N}


def _draw_samples(
    model: Segmenter, picture: Augmented, points_NP2: np.ndarray
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Probabilities on the common grid of some objects at a time, on the CPU: of the output the model picks, and
    of all three weighted, NPGG. One picture an embedding: its prompts then share the decoder's first layer."""
    height, width = picture.pixels_HW3.shape[:2]
    covered_h, covered_w = model.mask_extent((height, width))
    rows_Gh = _stretch(covered_h, model.grid_size).to(model.device)
    columns_Gw = _stretch(covered_w, model.grid_size).to(model.device)
    points_NP2 = points_NP2.astype(np.float32)
    if picture.mirrored:
        points_NP2 = np.stack([width - 1 - points_NP2[..., 0], points_NP2[..., 1]], -1)
        columns_Gw = columns_Gw.flip(0)
    embedding = model.embed([picture.pixels_HW3])
    p = points_NP2.shape[1]
    step = max(1, _PROMPTS_AT_ONCE // p)
    for start in range(0, len(points_NP2), step):
        part = slice(start, start + step)
        points_X12 = torch.from_numpy(points_NP2[part].reshape(-1, 1, 2))
        index_X = torch.zeros(len(points_X12), dtype=torch.int64)
        decoded = model.decode(embedding, Prompts(index_X, points_X12, torch.ones_like(index_X)[:, None]))
        # Logits and not probabilities are interpolated, as both packages do when they enlarge.
        maps_XMGG = (rows_Gh @ decoded.logits_NMhw @ columns_Gw.mT).sigmoid()
        weight_XM = decoded.iou_NM.clamp(min=0)
        weight_XM = torch.where(weight_XM.sum(1, keepdim=True) > 0, weight_XM, 1)
        weight_XM = weight_XM / weight_XM.sum(1, keepdim=True)
        picked_XGG = maps_XMGG[torch.arange(len(maps_XMGG), device=model.device), decoded.iou_NM.argmax(1)]
        mixed_XGG = torch.einsum("xm,xmrc->xrc", weight_XM, maps_XMGG)
        yield part, picked_XGG.unflatten(0, (-1, p)).cpu(), mixed_XGG.unflatten(0, (-1, p)).cpu()


def _stretch(covered: float, cells: int) -> torch.Tensor:
    """Bilinear weights, G x cells, that stretch the first `covered` cells over the common grid. The cells behind
    are padding, and weigh nothing."""
    place_G = ((torch.arange(_GRID) + 0.5) * covered / _GRID - 0.5).clamp(0, math.ceil(covered) - 1)
    return (1 - (place_G[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _judged_boxes(
    judged_NGG: np.ndarray, points_N2: np.ndarray, image_size: tuple[int, ...], threshold: float
) -> np.ndarray:
    """Box of each judged mask, N4 in cells; of the cell under its point where the mask is empty."""
    inside_NGG = judged_NGG > 1 / (1 + math.exp(-threshold))
    cell_N2 = ((points_N2 + 0.5) * _GRID / image_size[1::-1]).astype(int).clip(0, _GRID - 1)
    empty_N = ~inside_NGG.any((1, 2))
    inside_NGG[empty_N, cell_N2[empty_N, 1], cell_N2[empty_N, 0]] = True
    return mask_boxes(inside_NGG)


def _mean_entropy(mean_NGG: np.ndarray, boxes_N4: np.ndarray) -> np.ndarray:
    bits_NGG = (entr(mean_NGG) + entr(np.maximum(1 - mean_NGG, 0))) / math.log(2)
    return np.array(
        [bits[y0:y1, x0:x1].mean() for bits, (x0, y0, x1, y1) in zip(bits_NGG, boxes_N4, strict=True)], float
    ).clip(0, 1)


def _compress(pixels_HW3: np.ndarray, quality: int) -> np.ndarray:
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    decoded_HW3 = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if done else None
    if decoded_HW3 is None:
        raise ValueError(f"An image of {pixels_HW3.shape} cannot be a JPEG.")
    return cv2.cvtColor(decoded_HW3, cv2.COLOR_BGR2RGB)
