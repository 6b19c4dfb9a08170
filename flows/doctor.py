"""What `gapmap doctor` looks at: does this machine have what gapmap needs, and if not, what to do."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.version import Version

_NEEDED = (
    "prefect",
    "torch",
    "segment_anything",
    "sam2",
    "pyarrow",
    "duckdb",
    "fsspec",
    "safetensors",
    "cv2",
    "pycocotools",
)
# Pairs that install together without complaint and then fail late or silently.
_TOO_NEW = {
    "fastapi": ((0, 151), "Prefect's server dies at start with it"),
    "sqlalchemy": ((2, 1), "Prefect's schedules silently never fire with it"),
}

# Beside the packages, and part of none: only a checkout has them.
_OF_CHECKOUT = ("weights", "weights/kept-out.json", "label-studio.lock")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `remedy` says what to do, where something is wrong."""

    name: str
    fine: bool
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, one finding after the other; nothing is changed."""
    yield _python()
    yield _torch()
    for name in _NEEDED:
        if name != "torch":
            yield _package(name)
    for name, (limit, harm) in _TOO_NEW.items():
        yield _not_newer(name, limit, harm)
    for look in (_device, _checkout, _weights, _cache, _prefect_api):
        yield _guarded(look)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        version,
        "Use Python 3.11 or newer: make install PYTHON=python3.12",
    )


def _torch() -> Finding:
    """torch with torchvision: the pair whose mismatch shows as a missing operator."""
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "torchvision::nms" in message:
            return Finding(
                "torch + torchvision",
                False,
                f"{message}: torch {_version('torch')} and torchvision {_version('torchvision')} are builds for different "
                "devices (a CPU-only torch beside a CUDA torchvision, or the other way round)",
                "Install both from one place, together: .venv/bin/uv pip install --reinstall -r requirements.lock",
            )
        return Finding("torch + torchvision", False, message, "Run: make install")
    return Finding("torch + torchvision", True, f"{torch.__version__} with {torchvision.__version__}")


def _package(name: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything
        return Finding(
            name, False, f"cannot be imported: {type(error).__name__}: {error}", "Run: make install"
        )
    return Finding(name, True, str(getattr(module, "__version__", "") or _version(name.replace("_", "-"))))


def _not_newer(name: str, limit: tuple[int, int], harm: str) -> Finding:
    found = _version(name)
    too_new = found != "absent" and Version(found).release[:2] >= limit  # of a pre-release, too
    bound = ".".join(map(str, limit))
    return Finding(
        f"{name} < {bound}",
        not too_new,
        f"{found}{': ' + harm if too_new else ''}",
        f"Run: .venv/bin/uv pip install '{name}<{bound}'",
    )


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            "device",
            True,
            f"cuda: {torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
        )
    if torch.backends.mps.is_available():
        return Finding("device", True, "mps")
    return Finding(
        "device", True, f"cpu, {torch.get_num_threads()} threads (no GPU found: fine for the small models)"
    )


def _checkout() -> Finding:
    folder = Path(__file__).resolve().parents[1]
    missing = [name for name in _OF_CHECKOUT if not (folder / name).exists()]
    return Finding(
        "checkout",
        not missing,
        f"{folder}{' has no ' + ', '.join(missing) if missing else ''}",
        "Use gapmap from its checkout: run make install there (pip install without --editable leaves these files behind). "
        "In a checkout restore them: git checkout -- weights label-studio.lock",
    )


def _weights() -> Finding:
    from engine.models.registry import MODELS

    shipped = [entry for entry in MODELS.values() if entry.kind == "shipped"]
    missing = [entry.name for entry in shipped if not entry.path.is_file()]
    there = [entry.name for entry in MODELS.values() if entry.path.is_file()]
    return Finding(
        "weights",
        not missing,
        f"here: {', '.join(there) or 'none'}",
        "Restore the weights folder, or run: make weights",
    )


def _cache() -> Finding:
    from engine.models.download import cache_dir

    folder = Path(cache_dir())
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    writable, free = os.access(parent, os.W_OK), shutil.disk_usage(parent).free / 2**30
    return Finding(
        "cache",
        writable,
        f"{folder}, {free:.0f} GiB free",
        f"Make {parent} writable, or set GAPMAP_CACHE to a folder that is",
    )


def _prefect_api() -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        from prefect.settings import PREFECT_API_URL

        url = PREFECT_API_URL.value()
    if not url:
        return Finding("prefect server", True, "none set: flows run in process")
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        return Finding(
            "prefect server",
            False,
            f"no answer ({type(error).__name__})",
            "Start it (prefect server start), or unset PREFECT_API_URL",
        )
    return Finding("prefect server", True, "answers")


def _guarded(look: Callable[[], Finding]) -> Finding:
    """A look that fails because of an earlier finding is itself a finding."""
    try:
        return look()
    except Exception as error:
        return Finding(
            look.__name__.strip("_").replace("_", " "),
            False,
            f"{type(error).__name__}: {error}",
            "Mend what is wrong above first",
        )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
