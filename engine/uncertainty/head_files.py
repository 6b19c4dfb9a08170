"""Head sets as files: our own as safetensors, bound to a model; the ones the paper's authors released."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.models.cache import compute_sha256
from engine.models.registry import entry_of
from engine.uncertainty.heads import HeadSet, Pairing
from schemas.errors import CheckpointError

if TYPE_CHECKING:
    from engine.models.segmenter import Segmenter

SUFFIX = ".heads.safetensors"
_LAYERS = 3


def find_heads(segmenter: Segmenter, asked: str | None = None) -> HeadSet | None:
    """The heads a model is scored with, on its device.

    Args:
        asked: path of a head set; `none` for no heads; None for the file `NAME.heads.safetensors` beside the
            model's weights, if there is one.

    Raises:
        CheckpointError: the file is missing or holds something else.
        ConfigError: it was fitted to another model version.
    """
    if asked == "none":
        return None
    path = Path(asked).expanduser() if asked else heads_path(segmenter)
    if asked is None and (path is None or not path.is_file()):
        return None
    assert path is not None
    heads = read_heads(path)
    heads.check_model(segmenter.model_id)
    return heads.to(segmenter.device)


def heads_path(segmenter: Segmenter) -> Path | None:
    """Where the heads of a model lie if nobody says otherwise: beside its weights; None for weights at a URL."""
    return beside_weights(segmenter, SUFFIX)


def beside_weights(segmenter: Segmenter, suffix: str) -> Path | None:
    """NAME + suffix beside a model's weights; None for weights at a URL.

    A fine-tuned model may have the name of the one it began as: what is asked for is where it lies itself.
    """
    entry = entry_of(segmenter.name, segmenter.sha256, segmenter.source)
    if entry:
        return entry.path.parent / f"{entry.name}{suffix}"
    if "://" in segmenter.source or not segmenter.source:
        return None
    weights = Path(segmenter.source)
    return weights.with_name(f"{weights.stem}{suffix}")


def read_heads(path: Path) -> HeadSet:
    """A head set written by `write_heads`.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            there = set(file.keys())
            tensors = {name: file.get_tensor(name).float() for name in there}
        layers = sum(name.endswith(".weight") for name in there)
        return HeadSet(
            names=tuple(json.loads(about["heads"])),
            weights=tuple(
                (tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(layers)
            ),
            scale_K=tensors["scale"],
            offset_K=tensors["offset"],
            pairing=Pairing(about["pairing"]),
            model_id=about["model"],
            features=int(about["features"]),
            knots_2Q=tensors.get("knots"),
            larger=about["larger"],
            version=compute_sha256(path)[:12],
        )
    except Exception as error:
        raise CheckpointError(f"{path} is no head set that can be read ({error!r}).") from None


def write_heads(heads: HeadSet, path: Path, about: Mapping[str, str] | None = None) -> HeadSet:
    """Write a head set as safetensors, weights as fp16; the file appears whole. Returns it as it reads again.

    Args:
        about: more to keep in the file's metadata, such as what the set was fitted to.
    """
    from safetensors.torch import save_file

    tensors = {"offset": heads.offset_K, "scale": heads.scale_K}
    for index, (weight, bias) in enumerate(heads.weights):
        tensors |= {f"layers.{index}.weight": weight.half(), f"layers.{index}.bias": bias}
    if heads.knots_2Q is not None:
        tensors["knots"] = heads.knots_2Q
    metadata = {
        **(about or {}),
        "heads": json.dumps(heads.names),
        "pairing": heads.pairing.value,
        "model": heads.model_id,
        "features": str(heads.features),
        "larger": heads.larger,
    }
    new = path.with_suffix(".new")
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, new, metadata)
    new.replace(path)
    return read_heads(path)


def fitted_digests(path: Path) -> set[str]:
    """Digests of the labelled images that a head set was fitted to (`LabelledImage.digests`; of their masks alone in older files)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return set(json.loads((file.metadata() or {}).get("fitted", "[]")))


def read_released(files: Mapping[str, Path]) -> HeadSet:
    """The heads that the paper's authors released: one file of weights each.

    Args:
        files: head name to `.pth` file; names that end in `_gap` are read as gaps, -0.5..0.5.

    Raises:
        CheckpointError: a file is missing or holds something else.
    """
    states = {}
    for name, path in files.items():
        try:
            states[name] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} is no head that can be read ({type(error).__name__}).") from None
    try:
        weights = tuple(
            (
                torch.stack([state[f"layers.{i}.weight"].float() for state in states.values()]),
                torch.stack([state[f"layers.{i}.bias"].float() for state in states.values()]),
            )
            for i in range(_LAYERS)
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"These are no heads of three layers and one size ({error}).") from None
    offset_K = torch.tensor([0.5 if name.endswith("_gap") else 0.0 for name in states])
    return HeadSet(tuple(states), weights, torch.ones(len(states)), offset_K, Pairing.neighbour, "")
