"""Reading why a model is unsure: the released heads as released, our own bound to one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.models.loading import load_segmenter
from engine.uncertainty.head_files import find_heads, read_heads, read_released, write_heads
from engine.uncertainty.heads import HeadSet, Pairing, subtract_ious
from schemas.errors import CheckpointError, ConfigError
from schemas.records import MaskEvidence, Siblings

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
    offset = torch.tensor([0.5 if name.endswith("_gap") else 0.0 for name in names])
    return HeadSet(names, weights, torch.ones(len(names)), offset, Pairing.own, "sam-nano@0123456789ab")


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


def test_members_of_a_set_are_averaged() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(16, 512), (16, 16), (2, 16)]
    weights = tuple(
        (torch.randn(3, o, i, generator=generator) * 0.2, torch.randn(3, o, generator=generator))
        for o, i in shapes
    )
    scale, offset = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])
    heads = HeadSet(("task_gap", "iou"), weights, scale, offset, Pairing.own, "m@0")
    iou_token, mask_tokens = random_tokens(4)
    alone = [
        replace(heads, weights=tuple((w[m : m + 1], b[m : m + 1]) for w, b in weights)).score(
            iou_token, mask_tokens
        )
        for m in range(3)
    ]
    assert torch.allclose(heads.score(iou_token, mask_tokens), sum(alone) / 3, atol=1e-6)
    assert (alone[0] - alone[1]).abs().max() > 0.01
    gap, iou = heads.score(iou_token, mask_tokens)
    assert gap.min() >= -1
    assert gap.max() <= 1
    assert iou.min() >= 0


def test_heads_written_and_read_again_say_the_same(tmp_path: Path) -> None:
    heads = replace(
        random_heads("task_gap", "iou"), knots_2Q=torch.tensor([[0.1, 0.9], [0.2, 0.8]]), larger="big@1"
    )
    path = tmp_path / "x.heads.safetensors"
    again = write_heads(heads, path)
    assert (again.names, again.pairing, again.model_id, again.larger) == (
        heads.names, heads.pairing, heads.model_id, heads.larger,
    )  # fmt: skip
    assert len(again.version) == 12
    tokens = random_tokens(3)
    assert torch.allclose(again.score(*tokens), heads.score(*tokens), atol=2e-3), "weights are kept as fp16"
    assert torch.equal(read_heads(path).score(*tokens), again.score(*tokens))
    assert torch.equal(again.knots_2Q, heads.knots_2Q)


def test_scores_of_kept_masks_are_those_of_their_own_outputs() -> None:
    heads = replace(
        random_heads("task_gap", "iou"), knots_2Q=torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.6, 0.6]])
    )
    iou_token, mask_tokens = random_tokens(4)
    output = torch.tensor([0, 2, 1, 2])
    nothing = torch.zeros(4)
    siblings = Siblings(
        torch.arange(4), iou_token, mask_tokens, torch.rand(4, 3), torch.randn(4, 3, 8, 8).half()
    )
    scores = heads.score_masks(MaskEvidence(siblings, output, nothing, nothing, nothing, nothing))
    every = heads.score(iou_token, mask_tokens)[:, torch.arange(4), output]
    assert torch.allclose(scores["task_gap"], every[0], atol=1e-6)
    expected = np.interp(every[1].numpy(), [0, 0.5, 1], [0.1, 0.6, 0.6])
    assert np.abs(scores["predicted_iou"].numpy() - expected).max() < 1e-6
    assert set(scores) == {"task_gap", "predicted_iou"}, "a gap without a head is not made up"


def test_gaps_are_also_differences_of_iou() -> None:
    values = {name: torch.tensor([value]) for name, value in (("iou_meant", 0.4), ("iou_best", 0.7))}
    assert subtract_ious(values).keys() == {"task_gap"}
    assert subtract_ious(values)["task_gap"].item() == pytest.approx(0.3)


def test_heads_of_another_model_are_refused() -> None:
    heads = random_heads("task_gap")
    heads.check_model("sam-nano@0123456789ab")
    with pytest.raises(
        ConfigError,
        match=r"fitted to sam-nano@0123456789ab and say nothing of sam-nano@ffff.*fit-heads.*none",
    ):
        heads.check_model("sam-nano@ffff")


def test_the_shipped_heads_are_those_of_the_shipped_models() -> None:
    for name in ("sam-nano", "sam2-mini"):
        segmenter = load_segmenter(name, device="cpu")
        heads = find_heads(segmenter)
        assert heads is not None
        assert heads.model_id == segmenter.model_id
        assert find_heads(segmenter, "none") is None
    assert find_heads(load_segmenter("sam-nano", device="cpu")).larger == segmenter.model_id


def test_a_file_that_holds_no_heads_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="no head that can be read"):
        read_released({"model_gap": tmp_path / "x.pth"})
    with pytest.raises(CheckpointError, match="no head set"):
        read_heads(tmp_path / "x.pth")
