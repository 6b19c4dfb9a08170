"""A pool masked once by the shipped model on a coarse grid of points, and embeddings that are remembered.

Shape suffixes: N masks, C channels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from engine.generate.generator import generate_masks
from engine.generate.pooling import unpack_embeddings
from engine.learn.data import LabelledImage
from engine.learn.embedded import halve
from engine.models.segmenter import Segmenter
from engine.uncertainty.heads import HeadSet
from schemas.records import Embedding
from schemas.settings import GenerateSettings


class EmbeddingCache:
    """Embeddings by the content of the pixels, fp16, in memory and in a file."""

    def __init__(self, segmenter: Segmenter, path: Path | None = None) -> None:
        self._embed, self._path = segmenter.embed, path
        self._known: dict[str, Embedding] = {}
        if path and path.exists():
            tensors = load_file(path)
            for name in sorted(name for name in tensors if name.endswith("/0")):
                key, size = name.split("/")[0], tuple(map(int, name.split("/")[1].split("x")))
                levels = [tensors[other] for other in sorted(tensors) if other.startswith(f"{key}/")]
                self._known[key] = Embedding(levels[0], (size,), tuple(levels[1:]))  # type: ignore[arg-type]

    def attach(self, segmenter: Segmenter) -> Segmenter:
        """The same model, which embeds through this cache."""
        other = copy.copy(segmenter)
        other.embed = self.embed  # type: ignore[method-assign]
        return other

    def embed(self, images: Sequence[np.ndarray]) -> Embedding:
        """As `Segmenter.embed`."""
        return join_embeddings([self._look_up(image) for image in images])

    def save(self) -> None:
        """Write what is known to the file."""
        if self._path:
            tensors = {
                f"{key}/{'x'.join(map(str, of.image_sizes[0]))}/{level}": tensor
                for key, of in self._known.items()
                for level, tensor in enumerate((of.features_BCHW, *of.high_res))
            }
            save_file(tensors, self._path.with_suffix(".new"))
            self._path.with_suffix(".new").replace(self._path)

    def _look_up(self, image: np.ndarray) -> Embedding:
        key = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).hexdigest()
        if key not in self._known:
            self._known[key] = halve(self._embed([image]))
        return self._known[key]


def join_embeddings(parts: Sequence[Embedding]) -> Embedding:
    """Several embeddings as one batch, fp32."""
    return Embedding(
        torch.cat([part.features_BCHW for part in parts]).float(),
        tuple(size for part in parts for size in part.image_sizes),
        tuple(torch.cat(levels).float() for levels in zip(*(part.high_res for part in parts), strict=True)),
    )


@dataclass(frozen=True)
class PoolMasks:
    """The pool's masks as the shipped model made them.

    Attributes:
        image_N: place of each mask's image.
        predicted_iou_N: by the heads, calibrated.
        entropy_N: bits.
        embedding_NC: float32, of length 1.
        counts: run lengths.
    """

    image_N: np.ndarray
    predicted_iou_N: np.ndarray
    entropy_N: np.ndarray
    embedding_NC: np.ndarray
    counts: list[str]

    def __len__(self) -> int:
        return len(self.counts)


def mask_pool(
    segmenter: Segmenter,
    heads: HeadSet,
    images: Sequence[LabelledImage],
    settings: GenerateSettings,
    progress: Callable[[int], None],
) -> PoolMasks:
    """Automatic masks of every image, with scores and embeddings."""
    parts: dict[str, list[Any]] = {name: [] for name in PoolMasks.__dataclass_fields__}
    for place, image in enumerate(images):
        [masks] = generate_masks(segmenter, [image.load()], settings, scorer=heads)
        rows_N = masks.rows_N
        parts["image_N"].append(np.full(len(masks), place))
        parts["predicted_iou_N"].append(rows_N["predicted_iou"])
        parts["entropy_N"].append(rows_N["entropy"])
        parts["embedding_NC"].append(unpack_embeddings(masks.embedding_NC))
        parts["counts"].extend(masks.rles)
        progress(place + 1)
    return PoolMasks(**{name: of if name == "counts" else np.concatenate(of) for name, of in parts.items()})
