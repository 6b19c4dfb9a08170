"""Loading a model by name, path or URL."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.models.architecture import build_model, recognise
from engine.models.cache import file_sha256
from engine.models.checkpoint import Checkpoint, fill, read_checkpoint
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from schemas.errors import CheckpointError, ConfigError

REPO_ROOT = Path(__file__).resolve().parents[1]

# Of the published models, counted from their checkpoints' papers and configurations.
PARAMETERS = {
    "sam-vit-b": 93_735_472,
    "sam-vit-l": 312_342_832,
    "sam-vit-h": 641_090_608,
    "sam2-tiny": 38_945_986,
    "sam2-small": 46_043_842,
    "sam2-base-plus": 80_833_666,
    "sam2-large": 224_430_130,
    "sam2.1-tiny": 38_962_498,
    "sam2.1-small": 46_060_354,
    "sam2.1-base-plus": 80_850_178,
    "sam2.1-large": 224_446_642,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAPMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def nano() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("sam-nano")


def save(model: torch.nn.Module, path: Path, **metadata: str) -> Path:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path, metadata=metadata)
    else:
        torch.save(model.state_dict(), path)
    return path


def on_no_memory(name: str) -> torch.nn.Module:
    """The model without its weights; sam2's encoder reads numbers back while it is built, so not it."""
    if MODELS[name].package == "sam2":
        return build_model(name)
    with torch.device("meta"):
        return build_model(name)


def test_every_official_checkpoint_has_a_name_an_address_and_a_checksum() -> None:
    official = [entry for entry in MODELS.values() if entry.kind == "official"]
    assert {entry.name for entry in official} == set(PARAMETERS)
    for entry in official:
        assert entry.url.startswith("https://dl.fbaipublicfiles.com/segment_anything")
        assert entry.sha256 is not None
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.size_bytes is not None
        # fp32 weights and little else: a size copied to the wrong row would not fit.
        assert 0.99 < entry.size_bytes / (4 * PARAMETERS[entry.name]) < 1.01
    assert len({entry.sha256 for entry in official}) == len({entry.url for entry in official}) == 11


@pytest.mark.parametrize("name", [n for n in PARAMETERS if not n.endswith("large")])
def test_a_name_builds_its_architecture_and_is_recognised_from_it(name: str) -> None:
    model = on_no_memory(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert recognise(Checkpoint(Path("any.pt"), model.state_dict(), {})) == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam2-large", "sam2.1-large"])
def test_a_large_name_builds_its_architecture_and_is_recognised_from_it(name: str) -> None:
    test_a_name_builds_its_architecture_and_is_recognised_from_it(name)


@pytest.mark.parametrize("name", [n for n, entry in MODELS.items() if entry.kind == "shipped"])
def test_what_we_ship_is_recognised_without_metadata(name: str) -> None:
    assert recognise(Checkpoint(Path("any.pt"), build_model(name).state_dict(), {})) == name


@pytest.mark.parametrize("wrong", ["sam-vit-x", "sam_vit_b", "SAM2.1-tiny", "sam2.1_hiera_tiny"])
def test_a_wrong_name_suggests_the_nearest(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'sam.*Known: .*path or URL"):
        load_segmenter(wrong)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_path_loads_whatever_the_format(nano: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    path = save(nano, tmp_path / f"my weights{suffix}")
    segmenter = load_segmenter(path, device="cpu")
    assert segmenter.model_id == f"my-weights@{file_sha256(path)[:12]}"
    assert segmenter.source == str(path)
    assert segmenter.package == "segment-anything"
    for name, weight in segmenter.model.state_dict().items():
        assert torch.equal(weight, nano.state_dict()[name])
    assert not any(p.requires_grad for p in segmenter.model.parameters())


def test_weights_under_a_model_key_load(nano: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({"model": nano.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    assert load_segmenter(tmp_path / "w.pt", device="cpu").name == "w"


def test_a_checkpoint_in_a_bucket_loads(nano: torch.nn.Module, tmp_path: Path) -> None:
    path = save(nano, tmp_path / "tuned.safetensors")
    url = "memory://bucket/tuned.safetensors"
    with fsspec.open(url, "wb") as file:
        file.write(path.read_bytes())
    segmenter = load_segmenter(url, device="cpu")
    assert segmenter.name == "tuned"
    assert segmenter.source == url


def test_the_file_says_its_own_architecture_and_input_size(tmp_path: Path) -> None:
    model = build_model("sam2-mini", image_size=256)
    path = save(model, tmp_path / "w.safetensors", architecture="sam2-mini", image_size="256")
    segmenter = load_segmenter(path, device="cpu")
    assert segmenter.package == "sam2"
    assert segmenter.image_size == 256
    assert segmenter.grid_size == 64
    assert segmenter.embed([np.zeros((30, 50, 3), np.uint8)]).features_BCHW.shape == (1, 256, 16, 16)


def test_half_precision_weights_are_widened(nano: torch.nn.Module, tmp_path: Path) -> None:
    half = {name: weight.half() for name, weight in nano.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    model = load_segmenter(tmp_path / "half.safetensors", device="cpu").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
def test_what_we_ship_loads_by_name(name: str) -> None:
    if not MODELS[name].path.is_file():
        pytest.skip(f"{MODELS[name].path} is not there yet: make weights")
    segmenter = load_segmenter(name, device="cpu")
    assert segmenter.name == name
    assert segmenter.source == f"weights/{name}.safetensors"
    assert segmenter.package == MODELS[name].package


def test_missing_shipped_weights_say_how_to_get_them(tmp_path: Path) -> None:
    """A checkout without its weights folder."""
    for floor in ("engine", "schemas"):
        shutil.copytree(REPO_ROOT / floor, tmp_path / floor)
    code = "from engine.models.loading import load_segmenter; load_segmenter('sam-nano')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"CheckpointError: {tmp_path}/weights/sam-nano.safetensors is missing" in done.stderr
    assert "make weights" in done.stderr


def test_an_official_file_off_line_says_where_to_put_it(cache: Path) -> None:
    """No address is reachable through a proxy that does not exist."""
    code = "from engine.models.loading import load_segmenter; load_segmenter('sam-vit-b')"
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "TransientError: https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in done.stderr
    )
    assert str(cache / "models" / "sam_vit_b_01ec64.pth") in done.stderr


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "it-was-run"
    torch.save({"model": Malice(marker)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malice(marker), protocol=2))
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert marker.exists(), "the file is not malicious after all"
    marker.unlink()
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="refused"):
            load_segmenter(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5], ids=["empty", "ten bytes", "half"])
def test_a_damaged_file_is_a_checkpoint_error(
    nano: torch.nn.Module, tmp_path: Path, suffix: str, keep: float
) -> None:
    path = save(nano, tmp_path / f"w{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    with pytest.raises(CheckpointError, match="w" + suffix):
        load_segmenter(path)


def test_a_file_without_weights_is_a_checkpoint_error(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no weights"):
        load_segmenter(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        read_checkpoint(tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_segmenter(tmp_path / "missing.pt")


def test_an_unknown_architecture_is_a_checkpoint_error(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="fits no known architecture"):
        load_segmenter(tmp_path / "w.pt")


def test_weights_that_do_not_fit_name_what_differs(nano: torch.nn.Module, tmp_path: Path) -> None:
    weights = dict(nano.state_dict())
    weights["mask_decoder.hf_token.weight"] = torch.zeros(1, 256)
    del weights["mask_decoder.iou_token.weight"]
    weights["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 128)
    save_file(weights, tmp_path / "w.safetensors", metadata={"architecture": "sam-nano"})
    with pytest.raises(CheckpointError) as error:
        load_segmenter(tmp_path / "w.safetensors")
    for part in (
        "1 missing (mask_decoder.iou_token.weight)",
        "1 unexpected (mask_decoder.hf_token.weight)",
        "prompt_encoder.no_mask_embed.weight (1, 128) instead of (1, 256)",
    ):
        assert part in str(error.value)


def test_weights_of_another_model_name_the_one_they_fit(nano: torch.nn.Module) -> None:
    other = Checkpoint(Path("w.pt"), build_model("sam2-mini").state_dict(), {})
    with pytest.raises(CheckpointError, match="look like the weights of 'sam2-mini'"):
        fill(nano, other, looks_like=recognise(other))


def test_a_vit_takes_no_other_input_size() -> None:
    with pytest.raises(ConfigError, match="1024 pixels alone"):
        build_model("sam-vit-b", image_size=512)


@pytest.mark.slow
def test_sam2_builds_in_threads_while_hydra_is_in_use(tmp_path: Path) -> None:
    """Somebody else's hydra application must not notice, nor be in the way."""
    code = """
import threading
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
initialize_config_dir(__import__("sys").argv[1], version_base=None)
before = GlobalHydra.instance().hydra
from engine.models.architecture import build_model
built = []
threads = [threading.Thread(target=lambda: built.append(build_model("sam2.1-tiny"))) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(built) == 3
assert GlobalHydra.instance().hydra is before
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPO_ROOT, check=True)


def test_the_registry_is_light_to_import() -> None:
    code = """
import sys
import engine.models.registry
heavy = {"torch", "sam2", "segment_anything", "hydra", "torchvision", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, check=True)


def test_models_load_in_threads(nano: torch.nn.Module, tmp_path: Path) -> None:
    path = save(nano, tmp_path / "w.safetensors")
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(load_segmenter(path, device="cpu").model_id))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 3
    assert len(set(ids)) == 1
