"""A model on its way out: the file of a fine-tuned one, which loads like any other checkpoint, and its row in a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.models.architecture import recognise
from engine.models.cache import compute_sha256
from engine.models.checkpoint import TASK_PROMPT, Checkpoint
from engine.models.segmenter import Segmenter


def write_model(
    weights: Mapping[str, torch.Tensor],
    task_prompt_4C: torch.Tensor | None,
    folder: Path,
    name: str,
    image_size: int,
    about: Mapping[str, object],
) -> Path:
    """Write FOLDER/VERSION/NAME.safetensors, fp32; returns its path. The same weights give the same file.

    Args:
        weights: by the package's names, complete.
        task_prompt_4C: vector of each task; None for none.
        folder: where the versions of models lie; made if it is not there.
        name: what the model is called, whatever its version.
        image_size: side of its input, pixels.
        about: how it came about, for the file's metadata.

    Raises:
        ValueError: the weights are of no known architecture.
    """
    from safetensors.torch import save_file

    architecture = recognise(Checkpoint(folder, dict(weights), {}))
    if architecture is None:
        raise ValueError("These weights are of no known architecture.")
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    if task_prompt_4C is not None:
        tensors[TASK_PROMPT] = task_prompt_4C.detach().cpu().contiguous()
    metadata = {
        "architecture": architecture,
        "image_size": str(image_size),
        "about": json.dumps(about, sort_keys=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{name}.safetensors.new"
    save_file(tensors, new, metadata)
    _sort_metadata(new)
    new.chmod(0o644)  # safetensors leaves it to its owner alone
    path = folder / compute_sha256(new)[:12] / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    new.replace(path)
    return path


def _sort_metadata(path: Path) -> None:
    """safetensors writes the metadata in another order each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the same in another order"
        file.seek(8)
        file.write(text)


def describe_model(segmenter: Segmenter) -> dict[str, Any]:
    """A model's row of the `models` table, but for how it came about."""
    return {
        "model": segmenter.model_id,
        "name": segmenter.name,
        "version": segmenter.version,
        "package": segmenter.package,
        "source": segmenter.source,
        "sha256": segmenter.sha256,
        "parameters": segmenter.parameters,
        "image_size": segmenter.image_size,
    }
