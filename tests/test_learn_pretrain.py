"""Training the small models: what may be learnt from, a kill on the way, and how sam2-mini begins."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.learn.curriculum import Batches, Recipe, curriculum, describe_data, read_sources
from engine.learn.data import read_coco
from engine.learn.losses import dice_loss, focal_loss, mask_iou
from engine.learn.pretrain import train
from engine.learn.rounds import _next_prompt
from engine.learn.splits import split_groups
from engine.learn.trainee import describe_start, small_model, warm_start
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from schemas.errors import ConfigError

ROOT = Path(__file__).parents[1]
TINY = Recipe("sam-nano", steps=4, images=1, masks=2)


def learnt_names(data: list[Path]) -> set[str]:
    sources = read_sources(data)
    return {image.name for image in (*sources.dense, *sources.photos)}


def test_what_is_kept_out_is_never_learnt_from(shared_data: Path) -> None:
    kept_out = json.loads((ROOT / "weights" / "kept-out.json").read_text())
    folders = {name: shared_data / name for name in kept_out}
    learnt = learnt_names(list(folders.values()))
    for name, folder in folders.items():
        training, rest = split_groups(read_coco(folder))
        assert sorted(image.name for image in rest) == kept_out[name], "the list names the split"
        assert not learnt & {image.name for image in rest}
        unknown = [i.name for i in training if i.modality.startswith(("purple_", "bright_1024"))]
        assert not learnt & set(unknown)
        assert len(learnt & {image.name for image in training}) == len(training) - len(unknown)


def test_an_image_on_the_list_stays_kept_out_when_its_set_grows(shared_data: Path, tmp_path: Path) -> None:
    """And nothing else of the set is judged by: the shipped weights learnt from it."""
    content = json.loads((shared_data / "everyday" / "annotations.json").read_text())
    for image in content["images"]:
        image["group"] = f"a{image['file_name']}"
    last = max(image["id"] for image in content["images"])
    extra = [{**content["images"][0], "id": last + n, "group": f"z{n}"} for n in range(1, 40)]
    first = next(a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"])
    content["images"] += extra
    content["annotations"] += [{**first, "image_id": image["id"]} for image in extra]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    for item in {image["file_name"] for image in content["images"]}:
        (tmp_path / item).parent.mkdir(exist_ok=True)
        (tmp_path / item).symlink_to((shared_data / "everyday" / item).resolve())
    kept_out = set(json.loads((ROOT / "weights" / "kept-out.json").read_text())["everyday"])
    assert {image.name for image in split_groups(read_coco(tmp_path))[1]} == kept_out
    assert not learnt_names([tmp_path]) & kept_out


@pytest.mark.slow
def test_a_run_killed_on_the_way_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # sums in one order
    # The views are drawn here; in the run that is killed by a process of their own.
    undisturbed = load_file(train(TINY, [], tmp_path / "undisturbed", workers=0))
    folder = tmp_path / "killed"
    options = {"steps": 4, "images": 1, "masks": 2, "workers": 1, "save-every": 1}
    command = [sys.executable, "-m", "engine.learn.pretrain", "sam-nano", "--folder", str(folder)]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not (folder / "last.pt").exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it was killed before its end"
    done = torch.load(folder / "last.pt", weights_only=True)["step"]
    assert 1 <= done < 4
    resumed = load_file(train(TINY, [], folder, workers=0))
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_a_run_killed_between_its_last_checkpoint_and_its_weights_still_writes_them(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=1)
    weights = train(recipe, [], tmp_path, workers=0)
    expected = load_file(weights)
    weights.unlink()
    assert train(recipe, [], tmp_path, workers=0) == weights
    assert all(torch.equal(expected[name], tensor) for name, tensor in load_file(weights).items())


def test_another_start_or_recipe_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=1)
    train(recipe, [], tmp_path, workers=0)
    with pytest.raises(ConfigError, match="another run"):
        train(replace(recipe, rate=1e-5), [], tmp_path, workers=0)
    with pytest.raises(ConfigError, match="another run"):
        train(recipe, [], tmp_path, start=MODELS["sam-nano"].path, workers=0)


def test_sam2_mini_begins_as_good_as_sam_nano_ended() -> None:
    nano, mini = small_model("sam-nano"), small_model("sam2-mini")
    nano.net.load_state_dict(load_file(MODELS["sam-nano"].path))
    warm_start(mini.net, MODELS["sam-nano"].path)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 256, 256))).float()
    prompt = {
        "points": torch.tensor([[[100.0, 80.0]]]),
        "labels": torch.ones(1, 1, dtype=torch.int64),
        "boxes": None,
        "masks": None,
    }
    with torch.inference_mode():
        said = []
        for model in (nano, mini):
            embedding, fine = model.encode(pixels, torch.ones(1, 1, 256, 256))
            said.append(model.decode(embedding, fine, prompt))
    (logits, iou), (mini_logits, mini_iou) = said
    assert logits.std() > 0.5
    assert (logits - mini_logits).abs().max() < 1e-4
    assert (iou - mini_iou).abs().max() < 1e-5


def test_a_model_that_starts_from_its_own_kind_takes_everything() -> None:
    mini = small_model("sam2-mini")
    given = load_file(MODELS["sam2-mini"].path)
    assert warm_start(mini.net, MODELS["sam2-mini"].path) == len(given)
    assert all(torch.equal(value, given[name].float()) for name, value in mini.net.state_dict().items())


def test_shipped_weights_say_what_they_learnt_from() -> None:
    for name in ("sam-nano", "sam2-mini"):
        about = describe_start(MODELS[name].path)
        assert about is not None
        assert about["recipe"]["model"] == name
        assert about["recipe"]["start"]["recipe"]["model"] == "sam-nano"
        assert about["recipe"]["labelled_images"] > 0
        assert about["sha256"] == load_segmenter(name, device="cpu").sha256


@pytest.mark.parametrize("name", ["sam-nano", "sam2-mini"])
def test_prompts_of_several_images_are_answered_as_one_by_one(name: str) -> None:
    model = small_model(name)
    warm_start(model.net, MODELS[name].path)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 256, 256))).float()
    points, labels = torch.tensor([[[100.0, 80.0], [20, 200]]] * 3), torch.tensor([[1, 0]] * 3)
    boxes, masks = torch.tensor([[30.0, 40, 150, 120]] * 3), torch.zeros(3, 1, 64, 64)
    masks[..., 10:30, 10:30] = 5
    order = torch.tensor([2, 0, 2])
    with torch.inference_mode():
        embedding, fine = model.encode(pixels, torch.ones(3, 1, 256, 256))
        for with_points, with_boxes, with_masks in ((1, 0, 0), (0, 1, 0), (1, 1, 1)):
            prompt = {
                "points": points if with_points else None,
                "labels": labels if with_points else None,
                "boxes": boxes if with_boxes else None,
                "masks": masks if with_masks else None,
            }
            together, _ = model.decode(embedding, fine, {**prompt, "images": order})
            for place, image in enumerate(order.tolist()):
                one = {key: None if value is None else value[:1] for key, value in prompt.items()}
                own = slice(image, image + 1)
                alone, _ = model.decode(embedding[own], [level[own] for level in fine], one)
                assert (together[place] - alone[0]).abs().max() < 1e-3
            assert (together[0] - together[1]).abs().max() > 0.1, "the images differ"


def test_views_weigh_alike_and_are_prompted_inside_their_masks() -> None:
    recipe = replace(TINY, images=6, masks=4)
    batches = Batches(recipe, read_sources([]), curriculum(384, 0.3), letterbox=True)
    for examples in (batches[0], batches[1]):
        share_of_view = torch.zeros(6).index_add(0, examples.view_M, examples.weight_M)
        assert torch.allclose(share_of_view, torch.full((6,), 1 / 6))
        for share_1hw, points_P2, (x0, y0, x1, y1) in zip(
            examples.share_M1hw, examples.points_MP2, examples.boxes_M4, strict=True
        ):
            columns, rows = (points_P2 / 4).long().T
            assert (share_1hw[0, rows, columns] > 0).all(), "points lie in the mask"
            assert x0 < x1
            assert y0 < y1


def test_a_correction_lies_where_the_mask_is_wrong_and_says_what_is_right() -> None:
    target = torch.zeros(3, 1, 16, 16)
    target[0, 0, 4:12, 4:12] = 1
    target[1, 0, 4:12, 4:12] = 1
    target[2, 0, 7, 2:14] = 0.3  # thin: no cell is covered by half
    logits = torch.where(target > 0, 5.0, -5.0)
    logits[0, 0, 4:12, 4:8] = -5  # missed
    logits[1, 0, 0:4, 0:4] = 5  # too much
    logits[2] = -5
    valid = torch.ones_like(target)
    valid[:, :, 12:] = 0
    logits[:, :, 12:] = 5  # padding is never wrong
    prompt = {"points": None, "labels": None, "boxes": torch.zeros(3, 4), "masks": None}
    for seed in range(20):
        made = _next_prompt(torch.Generator().manual_seed(seed), prompt, logits, target, valid)
        (column, row), *_ = cells = ((made["points"][:, 0] + 0.5) // 4).long().tolist()
        assert 4 <= column < 8
        assert 4 <= row < 12
        assert max(cells[1]) < 4
        assert cells[2][1] == 7
        assert made["labels"][:, 0].tolist() == [1, 0, 1]


def test_sam2_mini_learns_too(tmp_path: Path) -> None:
    start = MODELS["sam2-mini"].path
    recipe = Recipe("sam2-mini", steps=1, images=2, masks=2, dense=0.0)
    made, given = load_file(train(recipe, [], tmp_path, start=start, workers=0)), load_file(start)
    for part in ("image_encoder", "sam_mask_decoder", "sam_prompt_encoder"):
        assert any(not torch.equal(made[name], given[name]) for name in made if name.startswith(part)), part


def test_scenes_do_not_count_as_labelled_images() -> None:
    assert describe_data(read_sources([]))["labelled_images"] == 0


def test_losses_are_lowest_for_the_mask_itself() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:6, 2:6] = 1
    right, wrong = 20 * target - 10, 20 * target.roll(3, -1) - 10
    for loss in (focal_loss, dice_loss):
        assert loss(right, target) < 0.01 < loss(wrong, target)
    assert mask_iou(right, target) == 1
    assert mask_iou(wrong, target) == pytest.approx(4 / 28)  # one of four columns in common
