"""The one way from a name, path or URL to a segmenter."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from engine.models import cache, download
from engine.models.registry import MODELS, ModelEntry
from engine.models.transfer import Progress
from schemas.errors import CheckpointError, ConfigError, nearest_name

if TYPE_CHECKING:
    import torch

    from engine.models.segmenter import Precision, Segmenter


def load_segmenter(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
) -> Segmenter:
    """A model ready to use, from a registry name, or a path or fsspec URL of a checkpoint.

    The architecture of a checkpoint is read off its weights. An official file is known by its
    checksum wherever it lies, and has its registry name; any other is named like its file.

    Args:
        name_or_path: a key of `MODELS`, or where a .safetensors, .pt or .pth file is.
        device: cuda, cuda:N, mps or cpu; None for the best there is.
        precision: `fp32`, `bf16` (CUDA) or `auto` (bf16 on CUDA, else fp32).
        progress: told how far a download is; None shows a bar on standard error.

    Raises:
        ConfigError: an unknown name, device or precision, or an address that cannot work.
        TransientError: the address cannot be reached now.
        CheckpointError: the file is missing, damaged, refused, or of no known architecture.
    """
    asked = str(name_or_path)
    entry = MODELS.get(asked)
    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(download.progress_bar(Path(asked).name))
        path = _find_weights(asked, entry, progress)
    sha256 = cache.file_sha256(path)
    known = entry or next((e for e in MODELS.values() if e.sha256 == sha256), None)

    from engine.models.architecture import build_model, recognise
    from engine.models.checkpoint import fill, read_checkpoint, split_task_prompt

    checkpoint = read_checkpoint(path)
    like = recognise(checkpoint)
    architecture = known.name if known else like
    if architecture is None:
        raise CheckpointError(
            f"{path} fits no known architecture. Known: {', '.join(sorted(MODELS))}, and what was "
            "fine-tuned from them."
        )
    image_size = checkpoint.metadata.get("image_size")
    model = build_model(architecture, image_size=int(image_size) if image_size else None)
    checkpoint, task_prompt_4C = split_task_prompt(checkpoint)
    fill(model, checkpoint, looks_like=like if like != architecture else None)
    return _segmenter_class(architecture)(
        model,
        name=known.name if known else name_model(path),
        sha256=sha256,
        source=_source(asked, path, entry),
        device=device,
        precision=precision,
        task_prompt_4C=task_prompt_4C,
    )


def name_model(name_or_path: str | Path) -> str:
    """What `load_segmenter` calls a model: its registry name, or that of its file, fit for a folder of the store; but an official
    file by another name is only known when it is read."""
    if (asked := str(name_or_path)) in MODELS:
        return asked
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(asked).stem).strip("-.") or "model"


def check_model(name_or_path: str | Path) -> None:
    """Whether there is such a model, as far as that shows without reading or fetching it.

    Raises:
        ConfigError: an unknown name.
        CheckpointError: a file on this machine is missing.
    """
    asked = str(name_or_path)
    entry = MODELS.get(asked)
    if entry is None:
        if not _is_address(asked):
            raise ConfigError(
                f"There is no model {asked!r}. {nearest_name(asked, MODELS)} Or give the path or URL of a "
                "checkpoint (.safetensors, .pt, .pth)."
            )
        if "://" not in asked:
            download.local_copy(asked)
    elif entry.kind == "shipped" and not entry.path.is_file():
        raise CheckpointError(
            f"{entry.path} is missing. It comes with gapmap: restore it, or train it anew with: make weights"
        )


def _find_weights(asked: str, entry: ModelEntry | None, progress: Progress) -> Path:
    check_model(asked)
    if entry is None:
        return download.local_copy(asked, progress=progress)
    if entry.kind == "official":
        return download.fetch(
            entry.url, entry.path, size_bytes=entry.size_bytes, sha256=entry.sha256, progress=progress
        )
    return entry.path


def _is_address(asked: str) -> bool:
    return "/" in asked or "\\" in asked or asked.endswith((".safetensors", ".pt", ".pth"))


def _source(asked: str, path: Path, entry: ModelEntry | None) -> str:
    if entry is not None:
        return entry.url or f"weights/{path.name}"
    from engine.pool.address import without_credentials

    return without_credentials(asked) if "://" in asked else str(path.resolve())


def _segmenter_class(name: str) -> type[Segmenter]:
    if MODELS[name].package == "sam2":
        from engine.models.sam2 import Sam2Segmenter

        return Sam2Segmenter
    from engine.models.sam import SamSegmenter

    return SamSegmenter
