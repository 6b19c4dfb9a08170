"""Images of the pool that were deleted, moved or replaced after they were labelled: learning goes on without them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from store_rows import MODEL, image_row, mask_rows, tables_of
from triage_rows import label_row

from engine.judging import judge_version
from engine.learn.answers import is_kept_out, read_lessons
from engine.learn.data import scene_images
from engine.learn.finetuning import finetune
from engine.learn.image_loaders import FileLoader, PoolLoader
from engine.learn.training_images import TrainingImage, human_images
from engine.masks.map_crop import MapCrop
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.pool import hash_image
from engine.scenes import make_scene
from engine.store import Store
from schemas.errors import ConfigError
from schemas.settings import FinetuneSettings

ROOT = Path(__file__).parents[1]
TINY = FinetuneSettings(steps=4, images=2, masks=2, rounds=3, check_every=2, rate=1e-3)


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture
def pool(tmp_path: Path) -> list[TrainingImage]:
    """Five scenes as images of a pool with masks of the model."""
    unsure = np.zeros((32, 32), np.uint8)
    made = []
    for image in human_images(scene_images(range(965_000, 965_005), 128)):
        path = tmp_path / f"{image.group}.png"
        Image.fromarray(image.load()).save(path)
        image_id = hash_image(path.read_bytes())
        masks = tuple(
            replace(mask, task=0, uncertainty=MapCrop((0, 0, 128, 128), unsure)) for mask in image.masks
        )
        loader = PoolLoader(image_id, ((f"file://{path}", "as it was"),))
        made.append(TrainingImage(image_id, image_id, False, masks, loader))
    return made


@pytest.fixture(scope="module")
def human() -> list[TrainingImage]:
    return human_images(scene_images(range(966_000, 966_003), 128))


def path_of(image: TrainingImage, copy: int = 0) -> Path:
    assert isinstance(image.load, PoolLoader)
    return Path(image.load.copies[copy][0].removeprefix("file://"))


@pytest.mark.parametrize("train", ["decoder", "all"])
def test_images_deleted_from_the_pool_are_learnt_from_no_more_and_the_others_are(
    nano: Segmenter,
    human: list[TrainingImage],
    pool: list[TrainingImage],
    train: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = TINY.model_copy(update={"train": train, "human_share": 0.0})
    for image in pool[:3]:
        path_of(image).unlink()
    with caplog.at_level(logging.WARNING, "engine.learn"):
        whole = finetune(nano, human, pool, settings)
    assert {image.key for image in pool[:3]} >= set(whole.lost) != set()
    [warned] = [record for record in caplog.records if record.name.startswith("engine.learn")]
    assert "cannot be learnt from" in warned.getMessage(), "once, not for each of them"

    class KilledError(Exception):
        pass

    def kill(done: int, *_: object) -> None:
        if done == 3:
            raise KilledError

    checkpoint = tmp_path / "run.checkpoint"
    with pytest.raises(KilledError):
        finetune(nano, human, pool, settings, checkpoint=checkpoint, progress=kill)
    resumed = finetune(nano, human, pool, settings, checkpoint=checkpoint)
    assert all(torch.equal(whole.weights[name], value) for name, value in resumed.weights.items())
    assert resumed.lost == whole.lost, "what was lost before the kill is remembered"


def test_people_labelled_images_of_the_pool_that_are_gone(nano: Segmenter, pool: list[TrainingImage]) -> None:
    """Their answers cannot teach any more; those about the other images do. Some were held out to judge by."""
    answered = [replace(image, human=True) for image in pool]
    for image in pool[:3]:
        path_of(image).unlink()
    result = finetune(nano, answered, [], TINY)
    assert set(result.lost) <= {image.key for image in pool[:3]}
    assert result.history[-1]["step"] == 4
    for image in pool[3:]:
        path_of(image).write_bytes(b"another file took its place")
    with pytest.raises(ConfigError, match=r"Too few images of the pool .* 5 cannot.*label the pool"):
        finetune(nano, answered, [], TINY)


def test_a_labelled_file_that_is_gone_is_not_passed_over(
    nano: Segmenter, human: list[TrainingImage], tmp_path: Path
) -> None:
    """People gave these labels on purpose: they are told."""
    gone = [replace(image, load=FileLoader(tmp_path / "gone.png")) for image in human]
    with pytest.raises(ConfigError, match=r"gone\.png cannot be read"):
        finetune(nano, gone, [], TINY)


def test_a_moved_image_is_learnt_from_where_its_copy_lies(
    nano: Segmenter, human: list[TrainingImage], pool: list[TrainingImage]
) -> None:
    moved = []
    for image in pool:
        assert isinstance(image.load, PoolLoader)
        uri, fingerprint = image.load.copies[0]
        loader = replace(image.load, copies=((f"{uri}.old.png", fingerprint), (uri, fingerprint)))
        moved.append(replace(image, load=loader))
    result = finetune(nano, human, moved, TINY)
    expected = finetune(nano, human, pool, TINY)
    assert result.lost == []
    assert all(torch.equal(expected.weights[name], value) for name, value in result.weights.items())


@pytest.fixture
def answered(tmp_path: Path) -> tuple[Store, dict[str, Path]]:
    """A store in which people drew a mask in each of ten pictures, and the pictures by image_id; some are kept out."""
    store, paths = Store(str(tmp_path / "masks")), {}
    for seed in range(10):
        path = tmp_path / f"{seed}.png"
        Image.fromarray(make_scene(seed, 64).image[:48]).save(path)
        row = image_row(f"file://{path}", n_masks=1, image_id=hash_image(path.read_bytes()))
        store.commit_shard(MODEL, *tables_of([row]))
        [mask] = mask_rows(row, "first")
        store.append("labels", [label_row(mask, "correct", area=50)])
        paths[row["image_id"]] = path
    return store, paths


def test_a_version_is_judged_by_the_answers_whose_pictures_are_still_there(
    answered: tuple[Store, dict[str, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    store, paths = answered
    kept_out = [image_id for image_id in paths if is_kept_out(image_id)]
    assert len(kept_out) > 1
    paths[kept_out[0]].unlink()
    judge_version(store, "sam2-mini", [], name="sam-nano", device="cpu")
    [row] = store.query("SELECT numbers FROM promotions").to_pylist()
    assert json.loads(row["numbers"])["images"] == {"answers": len(kept_out) - 1}
    assert "1 images that people answered for are left out" in caplog.text
    for image_id in kept_out[1:]:
        paths[image_id].unlink()
    with pytest.raises(ConfigError, match=r"None of the images .* Bring them back"):
        judge_version(store, "sam2-mini", [], name="sam-nano", device="cpu")


@pytest.mark.slow
def test_whoever_fine_tunes_is_told_of_lost_images_and_that_nothing_kept_the_model_from_forgetting(
    nano: Segmenter, answered: tuple[Store, dict[str, Path]], tmp_path: Path
) -> None:
    store, paths = answered
    learnt = [image_id for image_id in paths if not is_kept_out(image_id)]
    row = image_row(f"file://{paths[learnt[0]]}", n_masks=1, image_id=learnt[0])
    store.commit_shard(nano.model_id, *tables_of([row]))  # of its own images people have labelled all
    for image_id in learnt[2:]:
        paths[image_id].unlink()
    command = [sys.executable, "-m", "flows.cli", "finetune", "--store", store.files.label, "--no-refit"]
    command += ["--out", str(tmp_path / "models")]
    command += ["--steps", "4", "--images", "2", "--masks", "1", "--rounds", "2"]
    tuned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert tuned.returncode == 0, tuned.stderr
    assert "images of the pool could not be opened: others were learnt from" in tuned.stderr
    assert "Nothing kept the model from forgetting" in tuned.stderr


def test_heads_and_refiner_are_fitted_to_the_answers_whose_pictures_are_still_there(
    answered: tuple[Store, dict[str, Path]],
) -> None:
    store, paths = answered
    gone = next(iter(paths))
    paths[gone].unlink()
    assert {image.name for image in read_lessons([], store)["answers"]} == set(paths)
    assert {image.name for image in read_lessons([], store, openable=True)["answers"]} == {*paths} - {gone}
    for path in paths.values():
        path.unlink(missing_ok=True)
    assert read_lessons([], store, openable=True) == {}
