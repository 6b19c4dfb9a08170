"""Checkpoints of a run: written whole or not at all, and gone on with only by the very run that wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.learn.training_images import TrainingImage
from engine.models.cache import lock_path
from schemas.errors import ConfigError


class StaleCheckpointError(ConfigError):
    """A checkpoint was written with other data, settings or weights.

    Attributes:
        path: where it lies.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is the checkpoint of another run: other data, settings or weights. Go on with those, or remove "
            "the file to begin anew."
        )
        self.path = path


def save_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write tensors, numbers and texts; killed meanwhile, the one before stays.

    Args:
        path: the file; its folder is made.
        identity: everything that decides the run's result, as text.
        state: what the run needs to go on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    torch.save({"identity": identity, **state}, new)
    new.replace(path)


def load_checkpoint(path: Path, identity: str, device: torch.device) -> dict[str, Any] | None:
    """What a run has saved, on a device; None if it has not.

    Raises:
        StaleCheckpointError: the file is another run's.
    """
    if not path.exists():
        return None
    saved = torch.load(path, weights_only=True, map_location=device)
    if saved.pop("identity", None) != identity:
        raise StaleCheckpointError(path)
    return saved


def identify_images(images: Iterable[TrainingImage]) -> list[list[Any]]:
    """All of these images, in their order, that decides what is learnt from them, as JSON takes it."""
    return [[image.key, image.group, image.human, image.answered, _hash_masks(image)] for image in images]


@contextmanager
def hold_models(folder: Path) -> Iterator[None]:
    """While in this context, no other process of this machine learns into a folder of models: they share its checkpoint.

    Waits for one that does; a killed one lets go. What holds it already may hold it again.
    """
    from filelock import FileLock

    path = lock_path("models", str(folder.resolve()))
    with FileLock(path, thread_local=False, is_singleton=True):
        yield


def _hash_masks(image: TrainingImage) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for mask in image.masks:
        of = mask.uncertainty
        digest.update(repr([mask.counts, mask.size, mask.task, mask.point]).encode())
        if of is not None:
            digest.update(repr([of.frame, of.values_hw.shape]).encode() + of.values_hw.tobytes())
    return digest.hexdigest()
