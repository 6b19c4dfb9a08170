"""Prompts to masks and tokens with the modules of either package.

The packages' own `MaskDecoder.forward` takes one image at a time, repeats its features for every
prompt, and keeps the tokens to itself. What is here does the same arithmetic with the same modules
for prompts over many images, in an order that repeats nothing (see `cells`), and hands out the tokens.
Without `min_iou`, no step reads a value back from the device.

Shape suffixes: N prompts, B images, S sources, P prompt tokens, C channels (256), e side of the
embedding, L its e x e cells, h w mask grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from engine.models.two_way import TwoWay
from engine.models.upscaling import Upscaling
from schemas.records import Decoded, Embedding, Prompts

# The prompt encoders' labels for the corners of a box.
TOP_LEFT, BOTTOM_RIGHT = 2, 3
# Prompts whose tokens are treated at once, and whose state is kept; of their cells, a CPU treats at once
# no more than its cache holds. A GPU that is given 64 in half precision waits for the next launch more than it works.
_PROMPTS = {"cpu": 32, "cuda": 128, "mps": 64}
_CPU_CELLS = 4096


def check_prompts(prompts: Prompts, n_images: int, grid_size: int) -> int:
    """The number of prompts N.

    Raises:
        ValueError: the parts do not agree on N, nothing prompts, points come without labels, an
            image index or a label is out of range, or a mask is not on the grid.
    """
    index_N = prompts.image_index_N
    n = index_N.shape[0]
    points, labels, boxes, masks = prompts.points_NP2, prompts.labels_NP, prompts.boxes_N4, prompts.masks_N1hw
    if (points is None) != (labels is None):
        raise ValueError("Points and their labels come together.")
    if points is None and boxes is None and masks is None:
        raise ValueError("A prompt needs points, a box or a mask.")
    if points is not None and labels is not None:
        _check_shape("points_NP2", points, (n, labels.shape[-1], 2))
        _check_shape("labels_NP", labels, (n, points.shape[1]))
        if labels.device.type == "cpu" and not ((labels >= -1) & (labels <= 1)).all():
            raise ValueError("labels_NP must be 1 (foreground), 0 (background) or -1 (padding).")
    if boxes is not None:
        _check_shape("boxes_N4", boxes, (n, 4))
    if masks is not None:
        _check_shape("masks_N1hw", masks, (n, 1, grid_size, grid_size))
    # An index on the device is not read back; one out of range fails there.
    if index_N.device.type == "cpu" and n and not 0 <= int(index_N.min()) <= int(index_N.max()) < n_images:
        raise ValueError(f"image_index_N must be within 0..{n_images - 1}.")
    return n


def embed_points(prompt_encoder: Any, points_NP2: torch.Tensor, labels_NP: torch.Tensor) -> torch.Tensor:
    """Sparse prompt embedding of points and box corners.

    Args:
        prompt_encoder: either package's `PromptEncoder`.
        points_NP2: xy in the model's input frame, fp32.
        labels_NP: -1 padding, 0 background, 1 foreground, `TOP_LEFT`, `BOTTOM_RIGHT`.

    Returns:
        sparse_NPC, fp32. Positions are never computed in half precision: at 1024 pixels that
        would move points by several pixels.
    """
    with torch.autocast(points_NP2.device.type, enabled=False):
        # Half a pixel more: the centre of the pixel.
        position_NPC = prompt_encoder.pe_layer.forward_with_coords(
            points_NP2 + 0.5, prompt_encoder.input_image_size
        )
        kinds = [prompt_encoder.not_a_point_embed, *prompt_encoder.point_embeddings]
        kind_NPC = torch.cat([kind.weight for kind in kinds])[labels_NP + 1]
        return torch.where(labels_NP[..., None] == -1, kind_NPC, position_NPC + kind_NPC)


def box_corners(boxes_N4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (xyxy) as two labelled points each: points_N22 and labels_N2."""
    labels_2 = torch.arange(TOP_LEFT, BOTTOM_RIGHT + 1, device=boxes_N4.device)
    return boxes_N4.reshape(-1, 2, 2), labels_2.expand(boxes_N4.shape[0], 2)


def pad_point(points_NP2: torch.Tensor, labels_NP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with one padding point behind, as both packages end their points."""
    points = torch.nn.functional.pad(points_NP2, (0, 0, 0, 1), value=0.0)
    return points, torch.nn.functional.pad(labels_NP, (0, 1), value=-1)


def decode_masks(
    mask_decoder: Any,
    prompt_encoder: Any,
    embedding: Embedding,
    position_1Cee: torch.Tensor,
    image_index_N: torch.Tensor,
    sparse_NPC: torch.Tensor,
    masks_N1hw: torch.Tensor | None,
    *,
    multimask: bool,
    min_iou: float | None = None,
    task_C: torch.Tensor | None = None,
) -> Decoded:
    """Mask decoder of either package: attention, masks, predicted IoU and the tokens.

    Args:
        mask_decoder: either package's `MaskDecoder`.
        prompt_encoder: the `PromptEncoder` beside it, for mask prompts.
        embedding: image features; with high-resolution features if the decoder uses them.
        position_1Cee: the prompt encoder's dense positional encoding, once for all.
        image_index_N: image of each prompt. On the host, prompts of one image that follow each other share
            its projections; an index on the device is not read back, and its prompts share nothing.
        sparse_NPC: from `embed_points`; P may be 0.
        masks_N1hw: mask prompts, or None.
        multimask: outputs 1..3, else output 0 (or what SAM 2 puts in its place when it is unstable).
        min_iou: see `Segmenter.decode`.
        task_C: added to the dense prompt of all prompts; None for nothing.

    Raises:
        ValueError: `min_iou` without `multimask`.
    """
    if min_iou is not None and not multimask:
        raise ValueError("min_iou goes with multimask: a single mask may be another one in the end.")
    features_BCee = embedding.features_BCHW
    if task_C is not None:
        features_BCee = features_BCee + task_C.reshape(1, -1, 1, 1)
    position_LC = position_1Cee[0].flatten(1).mT.contiguous()
    own = masks_N1hw is not None
    parts = []
    for group, images in _group_prompts(image_index_N, len(features_BCee), sparse_NPC.device, own_source=own):
        if masks_N1hw is None:
            dense = prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        else:
            dense = prompt_encoder.mask_downscaling(masks_N1hw[group])
        source_SLC = (features_BCee[images] + dense).flatten(2).mT.contiguous()
        two_way = TwoWay(mask_decoder.transformer, source_SLC, position_LC)
        high_res = [fine_BChw[images] for fine_BChw in embedding.high_res]
        upscaling = Upscaling(mask_decoder, two_way.stage, high_res)
        for sparse_nPC in sparse_NPC[group].split(_PROMPTS[sparse_NPC.device.type]):
            parts.append(_decode_part(mask_decoder, two_way, upscaling, sparse_nPC, multimask, min_iou))

    logits_NMhw, iou_NM, iou_token_NC, mask_tokens_N4C, drawn_P, promise_P = (
        torch.cat(pieces) for pieces in zip(*parts, strict=True)
    )
    if not multimask and getattr(mask_decoder, "dynamic_multimask_via_stability", False):
        logits_NMhw, iou_NM = mask_decoder._dynamic_multimask_via_stability(logits_NMhw, iou_NM)
        promise_P = iou_NM[:, 0]
    # Without a cut it is known which are drawn, and nothing is read back.
    prompt_N = torch.arange(len(drawn_P), device=drawn_P.device)
    if min_iou is not None:
        prompt_N = prompt_N[drawn_P]
    return Decoded(logits_NMhw, iou_NM, iou_token_NC, mask_tokens_N4C, prompt_N, promise_P)


def _group_prompts(
    image_index_N: torch.Tensor, n_images: int, device: torch.device, *, own_source: bool
) -> Iterator[tuple[slice, torch.Tensor | slice]]:
    """Prompts of one image, and which that is; else, prompts of a source each."""
    n = len(image_index_N)
    if n_images == 1 and not own_source:
        yield slice(0, n), slice(0, 1)
    elif image_index_N.device.type == "cpu" and not own_source and n:
        images, counts = image_index_N.unique_consecutive(return_counts=True)
        start = 0
        for image, count in zip(images.tolist(), counts.tolist(), strict=True):
            yield slice(start, start + count), slice(image, image + 1)
            start += count
    else:  # an index on the device is not read back
        size = 1 if device.type == "cpu" else _PROMPTS[device.type]
        for start in range(0, max(n, 1), size):
            yield slice(start, start + size), image_index_N[start : start + size]


def _decode_part(
    mask_decoder: Any,
    two_way: TwoWay,
    upscaling: Upscaling,
    sparse_NPC: torch.Tensor,
    multimask: bool,
    min_iou: float | None,
) -> tuple[torch.Tensor, ...]:
    """logits_KMhw, iou_KM, iou_token_KC, mask_tokens_K4C; which of the N prompts they are of, bool; promise_N."""
    n, device = len(sparse_NPC), sparse_NPC.device
    output_tokens = [mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight]
    first = 0
    if getattr(mask_decoder, "pred_obj_scores", False):
        output_tokens.insert(0, mask_decoder.obj_score_token.weight)
        first = 1
    tokens_NTC = torch.cat([torch.cat(output_tokens).expand(n, -1, -1), sparse_NPC], dim=1)
    width = max(n, 1) if device.type != "cpu" else max(_CPU_CELLS // two_way.cells, 1)
    hidden_NTC, cells = two_way.transform(tokens_NTC, width)
    iou_token_NC = hidden_NTC[:, first]
    mask_tokens_N4C = hidden_NTC[:, first + 1 : first + 1 + mask_decoder.num_mask_tokens]

    fallback = not multimask and getattr(mask_decoder, "dynamic_multimask_via_stability", False)
    outputs = range(mask_decoder.num_mask_tokens)
    wanted = outputs if fallback else outputs[1:] if multimask else outputs[:1]
    # In half precision most scores would be ties, and the cut would differ from the caller's.
    with torch.autocast(device.type, enabled=False):
        iou_NM = mask_decoder.iou_prediction_head(iou_token_NC.float())[:, wanted.start : wanted.stop]
    weights_NMC = torch.stack(
        [mask_decoder.output_hypernetworks_mlps[i](mask_tokens_N4C[:, i]) for i in wanted], dim=1
    )
    promise_N = iou_NM.amax(1)
    drawn_N = torch.ones(n, dtype=torch.bool, device=device)
    if min_iou is not None:
        # Predictions need the tokens alone, and drawing costs more than they do.
        drawn_N = promise_N > min_iou
        iou_NM, iou_token_NC, mask_tokens_N4C = (x[drawn_N] for x in (iou_NM, iou_token_NC, mask_tokens_N4C))
    logits: list[torch.Tensor] = []
    for cell, weights, drawn in zip(cells, weights_NMC.split(width), drawn_N.split(width), strict=True):
        index = None if min_iou is None else drawn.nonzero()[:, 0]
        if index is None or len(index) or not logits:
            logits.append(upscaling.draw(cell, weights, index))
    # Under autocast they come in half precision.
    logits_NMhw, iou_token_NC, mask_tokens_N4C = (
        x.float() for x in (torch.cat(logits), iou_token_NC, mask_tokens_N4C)
    )
    return logits_NMhw, iou_NM, iou_token_NC, mask_tokens_N4C, drawn_N, promise_N


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}.")
