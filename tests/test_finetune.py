"""Fine-tuning: certain pixels teach, people's tasks are told, nothing is lost in a kill, and processes share the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.learn.data import scene_images
from engine.learn.distillation import EncodedImage, distil
from engine.learn.finetuning import Finetuned, finetune
from engine.learn.lessons import Lessons
from engine.learn.losses import dice_loss, focal_loss
from engine.learn.prompt_rounds import PromptDrawer, Taught, teach
from engine.learn.trainee import PromptedModel
from engine.learn.training_images import TrainingImage, draw_targets, human_images
from engine.masks.map_crop import MapCrop
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError
from schemas.settings import FinetuneSettings

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT.parent / "shared" / "reference" / "sum_losses.npz"
TINY = FinetuneSettings(steps=4, images=2, masks=2, rounds=3, check_every=2, rate=1e-3)


@pytest.fixture(scope="module", params=["sam-nano", "sam2-mini"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return load_segmenter(request.param, device="cpu")


@pytest.fixture(scope="module")
def human() -> list[TrainingImage]:
    return human_images(scene_images(range(960_000, 960_005), 128))


@pytest.fixture(scope="module")
def pseudo(human: list[TrainingImage]) -> list[TrainingImage]:
    """The same scenes as if the model had made the masks: the left half of each map is unsure."""
    unsure = np.zeros((32, 32), np.uint8)
    unsure[:, :16] = 255
    made = []
    for image in human[:3]:
        masks = tuple(
            type(mask)(mask.counts, mask.size, 0, MapCrop((0, 0, 128, 128), unsure)) for mask in image.masks
        )
        made.append(TrainingImage(f"pool-{image.key}", image.group, False, masks, image.load))
    return made


@pytest.mark.skipif(
    not REFERENCE.exists(), reason="the published code's values lie beside this checkout only"
)
def test_losses_are_those_of_the_published_code() -> None:
    values = {name: torch.from_numpy(value) for name, value in np.load(REFERENCE).items()}
    logits, target, certainty = values["logits"], values["target"], 1 - values["uncertainty"]
    assert torch.allclose(focal_loss(logits, target)[:, 0], values["focal_none_map_zero"], atol=1e-6)
    assert torch.allclose(focal_loss(logits, target, certainty)[:, 0], values["focal_map"], atol=1e-6)
    assert torch.allclose(dice_loss(logits, target)[:, 0], values["dice_no_map"], atol=1e-6)
    for cut in (0.5, 0.6):
        loss = dice_loss(logits, target, certainty > cut)[:, 0]
        assert torch.allclose(loss, values[f"dice_map_certainty_gt_{cut}"], atol=1e-6)


def test_the_score_of_a_pseudo_label_is_taught_over_all_of_its_cells() -> None:
    """Else a mask that is right where it is certain would be told that it is right, and one without a certain cell that it is not."""
    share = torch.zeros(1, 1, 32, 32)
    share[..., 8:24, 8:24] = 1
    logits_MOhw = torch.where(share > 0, 5.0, -5.0).repeat(1, 4, 1, 1)
    logits_MOhw[..., 8:16] = -5  # half of it is missing, where the map is unsure
    certain = torch.ones_like(share)
    certain[..., :16] = 0
    for certainty in (certain, torch.zeros_like(share)):
        taught = Taught(share, certainty, torch.zeros(1, dtype=torch.int64))
        _, _, iou_M = teach(logits_MOhw, torch.zeros(1, 4), taught, TINY)
        assert iou_M == pytest.approx(0.5)


def test_points_of_pseudo_labels_lie_where_the_map_is_certain() -> None:
    share = torch.zeros(1, 1, 32, 32)
    share[..., 8:24, 8:24] = 1
    certainty = torch.zeros_like(share)
    certainty[..., 16:] = 1
    taught = Taught(share, certainty, torch.zeros(1, dtype=torch.int64))
    drawn, anywhere = [], []
    for seed in range(100):
        for settings, points in (
            (TINY, drawn),
            (TINY.model_copy(update={"uncertainty_sampling": False}), anywhere),
        ):
            drawer = PromptDrawer(taught, 4, settings, np.random.default_rng(seed))
            points.append(drawer.first(point=True)["points"][0, 0])  # type: ignore[index]
    x, y = torch.stack(drawn).T
    assert x.min() > 63
    assert x.max() < 96
    assert 31 < y.min() < 40
    assert torch.stack(anywhere)[:, 0].min() < 60
    drawer = PromptDrawer(taught, 4, TINY, np.random.default_rng(0))
    first = drawer.first(point=True)
    wrong_left = -torch.ones_like(share)
    wrong_left[..., 16:] = torch.where(share > 0, 1.0, -1.0)[..., 16:]
    again = drawer.correct(wrong_left)
    points, labels = again["points"], again["labels"]
    assert points is not None
    assert labels is not None
    assert first["points"] is not None
    assert torch.equal(points[:, 1], first["points"][:, 0]), (
        "no certain error is left: the last point once more"
    )
    assert torch.equal(labels, torch.ones(1, 2, dtype=torch.int64))


def test_a_first_click_lies_near_the_middle_more_often_than_not() -> None:
    share = torch.zeros(1, 1, 40, 40)
    share[..., 4:36, 4:36] = 1
    taught = Taught(share, None, torch.zeros(1, dtype=torch.int64))
    depths = []
    for seed in range(200):
        first = PromptDrawer(taught, 1, TINY, np.random.default_rng(seed)).first(point=True)["points"]
        assert first is not None
        x, y = (first[0, 0] + 0.5).tolist()
        depths.append(min(x - 4, 36 - x, y - 4, 36 - y))
    assert min(depths) > 0, "inside"
    # Anywhere alike, a quarter of the points would be deeper than half of the greatest depth.
    assert 0.35 < np.mean(np.array(depths) > 8) < 0.75
    assert min(depths) < 3, "near the edge, too"


def test_a_correction_lies_in_the_middle_of_the_largest_error_more_often_than_not() -> None:
    share = torch.zeros(1, 1, 40, 40)
    share[..., 4:36, 4:36] = 1
    taught = Taught(share, None, torch.zeros(1, dtype=torch.int64))
    logits = torch.where(share > 0, 5.0, -5.0)
    logits[..., 10:20, 10:20] = -5  # a hole
    logits[..., 4:36, 36:38] = 5  # and a seam of two thirds of its area that is drawn too far
    holes, deep = [], []
    for seed in range(200):
        drawer = PromptDrawer(taught, 1, TINY, np.random.default_rng(seed))
        drawer.first(point=True)
        corrected = drawer.correct(logits)
        assert corrected["points"] is not None
        assert corrected["labels"] is not None
        x, y = (corrected["points"][0, 1] + 0.5).tolist()
        holes.append(int(corrected["labels"][0, 1]))
        assert holes[-1] == (10 <= x <= 20 and 10 <= y <= 20)
        deep.append(holes[-1] and min(x - 10, 20 - x, y - 10, 20 - y) > 2.5)
    # Anywhere alike, six of ten points would be in the hole, and a quarter of those deep in it.
    assert 0.75 < np.mean(holes) < 0.95
    assert np.mean(deep) > 0.3


def test_the_task_is_told_in_the_first_round_of_peoples_masks_alone() -> None:
    share = torch.ones(1, 1, 8, 8)
    entity = torch.tensor([2])

    def told(settings: FinetuneSettings, certainty: torch.Tensor | None) -> list[bool]:
        drawer = PromptDrawer(Taught(share, certainty, entity), 4, settings, np.random.default_rng(0))
        return [
            prompt["tasks"] is not None
            for prompt in (drawer.first(), drawer.correct(-share), drawer.repeat(-share))
        ]

    every, none = (TINY.model_copy(update={"task_prompt": when}) for when in ("every", "none"))
    assert told(TINY, None) == [True, False, False]
    assert told(every, None) == [True, True, True]
    assert told(none, None) == [False, False, False]
    assert told(TINY, share) == [False, False, False], "nobody knows what a pseudo-label is"


def test_a_map_is_laid_on_the_grid_where_its_mask_is(
    segmenter: Segmenter, pseudo: list[TrainingImage]
) -> None:
    targets = draw_targets(segmenter, pseudo[0])
    side = segmenter.grid_size
    assert targets.share_Mhw.shape[1:] == (side, side)
    assert targets.certainty_Mhw[:, :, : side // 2 - 3].max() < 0.01
    assert targets.certainty_Mhw[:, :, side // 2 + 3 :].min() > 0.99


@pytest.mark.parametrize("train", ["decoder", "all", "adapters"])
def test_what_is_asked_to_learn_learns_and_nothing_else(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage], train: str
) -> None:
    settings = TINY.model_copy(update={"train": train, "steps": 2})
    result = finetune(segmenter, human, pseudo, settings)
    before = segmenter.model.state_dict()
    changed = {name for name, value in result.weights.items() if not torch.equal(value, before[name])}
    assert result.weights.keys() == before.keys(), "a plain model, whatever learnt"
    assert changed or result.step == 0
    last = _last(segmenter, human, pseudo, settings)
    changed = {name for name, value in last.weights.items() if not torch.equal(value, before[name])}
    in_encoder = {name for name in changed if name.startswith(("image_encoder", "no_mem_embed"))}
    assert changed - in_encoder
    if train == "decoder":
        assert not in_encoder
    if train == "all":
        assert in_encoder
    assert last.task_prompt_4C is not None
    assert not last.task_prompt_4C[0].any(), "unspecified stays nothing"


def test_where_people_did_not_label_the_model_answers_more_as_before(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage]
) -> None:
    """Clicks all over an image that the fine-tuning saw without masks of people: how far have the answers moved?"""
    moved = {}
    for weight in (0.0, 10.0):
        settings = TINY.model_copy(update={"steps": 12, "distillation": weight})
        learnt = deepcopy(segmenter.model)
        learnt.load_state_dict(_last(segmenter, human, pseudo, settings).weights)
        answers = [_answer_grid(model, segmenter, pseudo[0]) for model in (segmenter.model, learnt)]
        moved[weight] = float((answers[0] - answers[1]).abs().mean())
    assert 0 < moved[10.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("train", ["decoder", "all"])
def test_an_image_without_a_mask_holds_the_model_to_what_it_said(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage], train: str
) -> None:
    """In a pool most images may have no mask that is certain; there is where it would forget unseen."""
    empty = [replace(image, masks=()) for image in pseudo]
    moved = {}
    for weight in (1e-6, 10.0):
        settings = TINY.model_copy(update={"steps": 12, "distillation": weight, "train": train})
        learnt = deepcopy(segmenter.model)
        learnt.load_state_dict(_last(segmenter, human, empty, settings).weights)
        answers = [_answer_grid(model, segmenter, empty[0]) for model in (segmenter.model, learnt)]
        moved[weight] = float((answers[0] - answers[1]).abs().mean())
    assert 0 < moved[10.0] < 0.7 * moved[1e-6]
    with pytest.raises(ConfigError, match="nothing to learn"):
        finetune(segmenter, [], empty, TINY)


def test_where_people_have_answered_the_model_is_free_to_answer_otherwise(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage]
) -> None:
    answered = [replace(image, answered=True) for image in pseudo]
    held = TINY.model_copy(update={"distillation": 10.0})
    free = TINY.model_copy(update={"distillation": 0.0})
    weights = [_last(segmenter, human, answered, settings).weights for settings in (held, free)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_model_that_has_not_changed_has_nothing_to_give_back(segmenter: Segmenter) -> None:
    model = PromptedModel(segmenter.model, segmenter.package)
    pixels = torch.rand(1, 3, segmenter.image_size, segmenter.image_size) * 255
    with torch.no_grad():
        seen = EncodedImage(model, *model.encode(pixels, torch.ones_like(pixels[:, :1])))
        extent = (segmenter.grid_size, segmenter.grid_size / 2)
        rng, plain = np.random.default_rng(0), torch.autocast("cpu", enabled=False)
        apart = distil(seen, seen, extent, 4.0, rng, plain)
    assert float(apart) == pytest.approx(0, abs=1e-5)


def _answer_grid(net: torch.nn.Module, segmenter: Segmenter, image: TrainingImage) -> torch.Tensor:
    """Probabilities that a model gives to 16 clicks."""
    model = PromptedModel(net, segmenter.package)
    side = segmenter.image_size
    pixels = torch.from_numpy(image.load()).permute(2, 0, 1)[None].float()
    pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear")
    places_4 = (torch.arange(4) + 0.5) * side / 4
    clicks = torch.cartesian_prod(places_4, places_4)[:, None]
    prompt = {"points": clicks, "labels": torch.ones(16, 1, dtype=torch.int64), "boxes": None, "masks": None}
    with torch.no_grad():
        features, fine = model.encode(pixels, torch.ones_like(pixels[:, :1]))
        return model.decode(features, fine, prompt)[0].sigmoid()


def _last(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage], settings: FinetuneSettings
) -> Finetuned:
    """A run whose last weights count: with fewer than four groups nothing is held out."""
    return finetune(segmenter, human[:3], pseudo, settings)


def test_a_run_that_was_killed_ends_as_an_undisturbed_one(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage], tmp_path: Path
) -> None:
    undisturbed = _last(segmenter, human, pseudo, TINY)

    class KilledError(Exception):
        pass

    def kill(done: int, *_: object) -> None:
        if done == 3:
            raise KilledError

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(KilledError):
        finetune(segmenter, human[:3], pseudo, TINY, checkpoint=checkpoint, progress=kill)
    done: list[int] = []
    resumed = finetune(
        segmenter, human[:3], pseudo, TINY, checkpoint=checkpoint, progress=lambda at, *_: done.append(at)
    )
    assert done == [3, 4], "on from the checkpoint after two updates"
    assert all(torch.equal(undisturbed.weights[name], value) for name, value in resumed.weights.items())
    with pytest.raises(ConfigError, match="another run"):
        finetune(segmenter, human[:2], pseudo, TINY, checkpoint=checkpoint)


@pytest.mark.parametrize("what", ["mended", "mapped anew", "answered", "of another group"])
def test_a_run_is_not_gone_on_with_once_the_models_own_masks_are_others(
    what: str, human: list[TrainingImage], pseudo: list[TrainingImage], tmp_path: Path
) -> None:
    nano, checkpoint = load_segmenter("sam-nano", device="cpu"), tmp_path / "run.pt"
    settings = TINY.model_copy(update={"steps": 1, "images": 1, "masks": 1})
    finetune(nano, human[:3], pseudo, settings, checkpoint=checkpoint)
    first, *others = pseudo
    mask = first.masks[0]
    of = mask.uncertainty
    assert of is not None
    changed = {
        "mended": {"masks": (replace(mask, counts=first.masks[1].counts), *first.masks[1:])},
        "mapped anew": {
            "masks": (replace(mask, uncertainty=MapCrop(of.frame, of.values_hw.T)), *first.masks[1:])
        },
        "answered": {"answered": True},
        "of another group": {"group": "another"},
    }
    with pytest.raises(ConfigError, match="another run"):
        finetune(nano, human[:3], [replace(first, **changed[what]), *others], settings, checkpoint=checkpoint)
    finetune(nano, human[:3], pseudo, settings, checkpoint=checkpoint)


def test_a_run_that_gains_nothing_ends_early_with_the_model_as_it_was(
    segmenter: Segmenter, human: list[TrainingImage], pseudo: list[TrainingImage]
) -> None:
    settings = TINY.model_copy(update={"steps": 12, "patience": 2, "rate": 1e-12})
    result = finetune(segmenter, human, pseudo, settings)
    assert [look["step"] for look in result.history] == [0, 2, 4, 6, 8], (
        "patience counts from half of the updates on"
    )
    assert result.step == 0


def test_the_best_look_of_the_second_half_counts(
    segmenter: Segmenter,
    human: list[TrainingImage],
    pseudo: list[TrainingImage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = iter([0.5, 0.9, 0.9, 0.6, 0.7, 0.6, 0.65])
    monkeypatch.setattr(Lessons, "judge", lambda *_: next(looks))
    result = finetune(segmenter, human, pseudo, TINY.model_copy(update={"steps": 6, "check_every": 1}))
    assert result.step == 4


def test_nothing_to_learn_from_is_told(segmenter: Segmenter) -> None:
    with pytest.raises(ConfigError, match="nothing to learn from"):
        finetune(segmenter, [], [], TINY)


_SCRIPT = """
import sys, torch
from torch import distributed
from safetensors.torch import save_file
from engine.learn.data import scene_images
from engine.learn.finetuning import finetune
from engine.learn.processes import find_place
from engine.learn.training_images import human_images
from engine.models.loading import load_segmenter
from schemas.settings import FinetuneSettings
torch.set_num_threads(1)
several = distributed.is_torchelastic_launched()
if several:
    distributed.init_process_group("gloo")
human = human_images(scene_images(range(960_000, 960_003), 128))
settings = FinetuneSettings.model_validate_json(sys.argv[1])
made = finetune(load_segmenter(sys.argv[3], device="cpu"), human, [], settings)
if find_place()[0] == 0:
    save_file(made.weights, sys.argv[2])
if several:
    distributed.destroy_process_group()
"""


def _run_processes(count: int, folder: Path, text: str, *arguments: object) -> None:
    """Run a script in a folder: in several processes of torchrun, or in one without it."""
    script = folder / "run.py"
    script.write_text(text)
    # In fp32: bf16 would round a difference in the order of sums to one that Adam makes much of.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    run = subprocess.run(
        [sys.executable, *(torchrun if count > 1 else []), script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
def test_two_processes_learn_what_one_does(name: str, tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"steps": 2})
    learnt = {}
    for processes in (1, 2):
        written = tmp_path / f"{processes}.safetensors"
        _run_processes(processes, tmp_path, _SCRIPT, settings.model_dump_json(), written, name)
        learnt[processes] = load_file(written)
    before = load_segmenter(name, device="cpu").model.state_dict()
    still, two_still = (
        {at for at, value in learnt[count].items() if torch.equal(value, before[at])} for count in (1, 2)
    )
    assert still <= two_still, "what nothing is learnt about does not decay"
    names = [name for name in learnt[2] if learnt[2][name].is_floating_point()]
    apart, moved = (
        torch.cat([(learnt[1][name] - other[name]).flatten() for name in names]).norm()
        for other in (learnt[2], before)
    )
    assert moved > 0
    assert apart < 0.01 * moved, "but for the order of sums, which Adam makes much of where gradients vanish"


_LOSING_SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from torch import distributed
from engine.learn.data import scene_images
from engine.learn.finetuning import finetune
from engine.learn.image_loaders import PoolLoader
from engine.learn.training_images import TrainingImage, human_images
from engine.models.loading import load_segmenter
from engine.pool import hash_image
from schemas.settings import FinetuneSettings
torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
scenes = human_images(scene_images(range(960_000, 960_004), 128))
human = []
for place, scene in enumerate(scenes):
    path = Path(f"{rank}-{place}.png").resolve()
    Image.fromarray(scene.load()).save(path)
    image_id = hash_image(path.read_bytes())
    if rank == 1:
        path.unlink()
    human.append(replace(scene, load=PoolLoader(image_id, ((path.as_uri(), ""),))))
own = [replace(scene, key=f"own-{scene.key}", human=False) for scene in scenes]
made = finetune(load_segmenter("sam-nano", device="cpu"), human, own, FinetuneSettings.model_validate_json(sys.argv[1]))
Path(f"{rank}.json").write_text(json.dumps(made.history))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_of_which_one_cannot_open_the_held_out_images_stop_together(tmp_path: Path) -> None:
    changes = {"steps": 8, "check_every": 1, "patience": 2, "rate": 1e-12, "human_share": 0.0}
    settings = TINY.model_copy(update=changes)
    _run_processes(2, tmp_path, _LOSING_SCRIPT, settings.model_dump_json())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[0]["iou"] > 0
    assert len(first) < 9, "nothing is gained: they end early"
