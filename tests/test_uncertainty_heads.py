"""Reading why a model is unsure: the released heads as released, our own bound to one model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.uncertainty.heads import HeadSet, Pairing, read_heads, read_released, write_heads
from schemas.errors import CheckpointError, ConfigError

RELEASED = ("model_gap", "prompt_gap", "task_gap", "iou_unsupervised")


def random_heads(*names: str) -> HeadSet:
    generator = torch.Generator().manual_seed(0)
    shapes = [(512, 512), (512, 512), (1, 512)]
    weights = tuple(
        (
            torch.randn(len(names), o, i, generator=generator) * 0.06,
            torch.randn(len(names), o, generator=generator),
        )
        for o, i in shapes
    )
    return HeadSet(
        names, weights, torch.tensor([0.5, 0.0])[: len(names)], Pairing.own, "sam-nano@0123456789ab"
    )


def random_tokens(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 256, generator=generator), torch.randn(n, 4, 256, generator=generator)


def test_the_released_heads_say_what_their_authors_code_says(shared_data: Path) -> None:
    reference = shared_data.parent / "reference"
    heads = read_released({name: reference / "usam-sam2.1" / f"{name}.pth" for name in RELEASED})
    tokens = np.load(reference / "usam_scores.npz")
    value_KNM = heads.score(torch.from_numpy(tokens["iou_token"]), torch.from_numpy(tokens["mask_tokens"]))
    for name, value_NM in zip(heads.names, value_KNM, strict=True):
        assert np.abs(value_NM.numpy() - tokens[name]).max() <= 1e-5, name


def test_all_heads_at_once_say_what_each_says_alone() -> None:
    heads = random_heads("task_gap", "iou")
    iou_token, mask_tokens = random_tokens(5)
    value_KNM = heads.score(iou_token, mask_tokens)
    assert value_KNM.shape == (2, 5, 3)
    assert value_KNM.std() > 0.01
    for k in range(2):
        layers = torch.nn.Sequential()
        for index, (weight_KOI, bias_KO) in enumerate(heads.weights):
            linear = torch.nn.Linear(*weight_KOI.shape[:0:-1])
            linear.weight.data, linear.bias.data = weight_KOI[k], bias_KO[k]
            layers.extend([linear] + [torch.nn.ReLU()] * (index < 2))
        for output in range(3):
            alone = layers(torch.cat([iou_token, mask_tokens[:, 1 + output]], 1)).sigmoid()[:, 0]
            assert torch.allclose(value_KNM[k, :, output], alone - heads.offset_K[k], atol=1e-6)
    assert heads.score(*random_tokens(0)).shape == (2, 0, 3)


def test_heads_written_and_read_again_are_the_same(tmp_path: Path) -> None:
    heads = random_heads("task_gap", "iou")
    write_heads(heads, tmp_path / "heads.safetensors")
    again = read_heads(tmp_path / "heads.safetensors")
    assert (again.names, again.pairing, again.model_id) == (heads.names, heads.pairing, heads.model_id)
    tokens = random_tokens(3)
    assert torch.equal(again.score(*tokens), heads.score(*tokens))


def test_heads_of_another_model_are_refused() -> None:
    heads = random_heads("task_gap")
    heads.check_model("sam-nano@0123456789ab")
    with pytest.raises(ConfigError, match="fitted to sam-nano@0123456789ab and say nothing of sam-nano@ffff"):
        heads.check_model("sam-nano@ffff")


def test_a_file_that_holds_no_heads_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="no head that can be read"):
        read_released({"model_gap": tmp_path / "x.pth"})
    with pytest.raises(CheckpointError, match="no head set"):
        read_heads(tmp_path / "x.pth")
