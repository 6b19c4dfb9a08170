"""Reading weights without running what is in the file, and putting them into a model."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from schemas.errors import CheckpointError
from schemas.records import TASKS

TASK_PROMPT = "task_prompt"
"""Name of the task prompt among the weights of a fine-tuned model."""
SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """Weights by parameter name, and what the file says about them (safetensors only)."""

    path: Path
    weights: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.safetensors`, `.pt` or `.pth` file onto the CPU.

    Pickles are read with `weights_only`: a file that holds more than tensors is refused, not run.
    SAM 2's and others' training checkpoints keep the weights under `model`; those are taken.

    Raises:
        CheckpointError: the file is damaged, of another kind, or holds more than weights.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} is no checkpoint: its name must end in {', '.join(SUFFIXES)}.")
    try:
        # Memory-mapped where the format allows: a model and its file need not both be in memory.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or it holds Python objects beside tensors, which could run "
            "code when read. Save the state dict alone, best as .safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint. Fetch or save it again.") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not _is_state_dict(content):
        raise CheckpointError(
            f"{path} holds no weights: expected names with tensors, plain or under 'model'."
        )
    return Checkpoint(path, content, {})


def fill(model: torch.nn.Module, checkpoint: Checkpoint, *, looks_like: str | None = None) -> None:
    """Copy a checkpoint's weights into a model; half-precision weights are widened.

    Args:
        looks_like: registry name the weights would fit, for the error.

    Raises:
        CheckpointError: names or shapes differ; nothing was copied.
    """
    wanted = model.state_dict()
    given = checkpoint.weights
    shared = wanted.keys() & given.keys()
    wrong = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(shared)
        if given[name].shape != wanted[name].shape
    ]
    faults = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (
            ("missing", wanted.keys() - given.keys()),
            ("unexpected", given.keys() - wanted.keys()),
            ("of another shape", wrong),
        )
        if names
    ]
    if faults:
        hint = f" They look like the weights of {looks_like!r}." if looks_like else ""
        raise CheckpointError(
            f"The weights in {checkpoint.path} do not fit the model: {'; '.join(faults)}.{hint}"
        )
    model.load_state_dict(dict(given))


def split_task_prompt(checkpoint: Checkpoint) -> tuple[Checkpoint, torch.Tensor | None]:
    """The weights of the package's model, and the task prompt that fine-tuning may have added, vector_4C.

    Raises:
        CheckpointError: there is one, but it is not a vector for each task.
    """
    weights = dict(checkpoint.weights)
    task_prompt = weights.pop(TASK_PROMPT, None)
    if task_prompt is not None and (task_prompt.dim() != 2 or len(task_prompt) != len(TASKS)):
        raise CheckpointError(
            f"{checkpoint.path}: {TASK_PROMPT} has shape {tuple(task_prompt.shape)}, not one vector for each of "
            f"{', '.join(TASKS)}."
        )
    return replace(checkpoint, weights=weights), task_prompt


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Checkpoint(path, weights, file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())
    )


def _some(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
