"""What a mask looks like to the model: its image features averaged over the mask.

Shape suffixes: N masks, C channels, e feature grid, h w mask grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

_LARGEST = 127


def embed_masks(features_Cee: torch.Tensor, logits_Nhw: torch.Tensor, threshold: float) -> np.ndarray:
    """Pooled embedding of each mask, values_NC, int8: 127 stands for the largest of its magnitudes.

    A cell of the features weighs as much as the mask's probability in it; outside of the mask's edge it weighs nothing,
    or the far faint background would drown small masks. One matrix product for all masks of a view.

    Args:
        features_Cee: the model's image features, any precision.
        logits_Nhw: of masks of that image, on the mask grid, which covers the same square; each has a cell above the threshold.
        threshold: logit of a mask's edge.
    """
    if not len(logits_Nhw):
        return np.zeros((0, len(features_Cee)), np.int8)
    rows, columns = features_Cee.shape[1:]
    inside_Nhw = logits_Nhw.float().sigmoid().mul_(logits_Nhw > threshold)
    weights_Nee = functional.adaptive_avg_pool2d(inside_Nhw[:, None], (rows, columns))[:, 0]
    sums_NC = weights_Nee.flatten(1) @ features_Cee.float().flatten(1).mT
    # The length goes away here, and with it the sum of the weights.
    largest_N1 = sums_NC.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (sums_NC / largest_N1 * _LARGEST).round().to(torch.int8).cpu().numpy()


def unpack_embeddings(values_NC: np.ndarray) -> np.ndarray:
    """embedding_NC, float32, of length 1 (zeros stay zeros), from the stored bytes."""
    embedding_NC = values_NC.astype(np.float32)
    length_N1 = np.linalg.norm(embedding_NC, axis=1, keepdims=True)
    return embedding_NC / np.maximum(length_N1, 1)
