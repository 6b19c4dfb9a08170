"""A model that was taught tasks answers for the one it is told; every other answers all alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from schemas.errors import CheckpointError
from schemas.records import Prompts

_IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
_PROMPTS = Prompts(
    torch.zeros(2, dtype=torch.int64), torch.tensor([[[20.0, 30]], [[90.0, 60]]]), torch.ones(2, 1)
)


def _taught(tmp_path: Path, name: str, task_prompt: torch.Tensor) -> str:
    path = tmp_path / f"{name}-taught.safetensors"
    save_file(
        {**load_file(MODELS[name].path), "task_prompt": task_prompt},
        path,
        {"architecture": name, "image_size": str(load_segmenter(name).image_size)},
    )
    return str(path)


@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
def test_a_task_changes_the_answer_of_a_model_that_was_taught_it(tmp_path: Path, name: str) -> None:
    task_prompt = torch.zeros(4, 256)
    task_prompt[2] = torch.randn(256, generator=torch.Generator().manual_seed(0))
    plain, taught = load_segmenter(name), load_segmenter(_taught(tmp_path, name, task_prompt))
    embedding = plain.embed([_IMAGE])
    told = {
        task: taught.decode(embedding, _PROMPTS, task=task).logits_NMhw for task in ("unspecified", "entity")
    }
    torch.testing.assert_close(told["unspecified"], plain.decode(embedding, _PROMPTS).logits_NMhw)
    assert (told["entity"] - told["unspecified"]).abs().max() > 0.1


def test_a_model_that_was_taught_none_answers_all_tasks_alike() -> None:
    plain = load_segmenter("sam-nano")
    embedding = plain.embed([_IMAGE])
    torch.testing.assert_close(
        plain.decode(embedding, _PROMPTS, task="part").logits_NMhw,
        plain.decode(embedding, _PROMPTS).logits_NMhw,
    )
    with pytest.raises(ValueError, match=r"unspecified, salient, entity, part"):
        plain.decode(embedding, _PROMPTS, task="thing")


def test_a_task_prompt_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"task_prompt has shape \(3, 256\)"):
        load_segmenter(_taught(tmp_path, "sam-nano", torch.zeros(3, 256)))
