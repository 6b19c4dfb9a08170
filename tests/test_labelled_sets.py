"""Labelled sets as users have them: with empty masks, wrong sizes, missing files and few groups."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from coco_folder import write_coco
from PIL import Image
from sample_rows import make_samples

from engine.evaluate.uncertainty import evaluate_uncertainty
from engine.fitted_heads import make_heads
from engine.learn.checkpoints import StaleCheckpointError
from engine.learn.data import leave_out_groups, read_coco
from engine.learn.finetuning import finetune
from engine.learn.fitting_sets import read_fitting_sets
from engine.learn.gap_targets import TargetMaker
from engine.learn.head_fitting import fit_heads
from engine.learn.image_loaders import FileLoader
from engine.learn.learnable import make_learner
from engine.learn.lessons import Lessons
from engine.learn.perceptron import FitSettings
from engine.learn.refiner_fitting import fit_refiner
from engine.learn.splits import learnable_images
from engine.learn.training_images import human_images
from engine.models.loading import load_segmenter
from engine.scenes import make_scene
from engine.store import Store
from engine.uncertainty.head_files import fitted_digests
from schemas.errors import ConfigError
from schemas.fitting_settings import HeadSettings, RefinerSettings
from schemas.settings import FinetuneSettings

FAST = FitSettings(members=1, hidden=16, epochs=3)


def change(folder: Path, **changes: object) -> Path:
    """Change the first image's record, or its first annotation's `segmentation`."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    first = content["images"][0]
    if "segmentation" in changes:
        annotation = next(a for a in content["annotations"] if a["image_id"] == first["id"])
        annotation["segmentation"] = changes.pop("segmentation")
    first |= changes
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set", range(950_000, 950_002))


def test_a_mask_without_pixels_asks_nothing(folder: Path) -> None:
    nano = load_segmenter("sam-nano", device="cpu")
    whole = len(TargetMaker(nano, None, points=1, automatic=0).make_rows(read_coco(folder)[0]))
    change(folder, segmentation=[[5.0, 5.0, 5.0, 5.0, 5.0, 5.0]])
    image = read_coco(folder)[0]
    assert all(mask.area for mask in image.masks)
    assert len(TargetMaker(nano, None, points=1, automatic=0).make_rows(image)) == whole - 1


def test_masks_of_another_size_than_the_image_are_told(folder: Path) -> None:
    nano = load_segmenter("sam-nano", device="cpu")
    Image.open(folder / "00.png").resize((64, 100)).save(folder / "00.png")
    with pytest.raises(ConfigError, match=r"00\.png is 64 x 100 pixels, but its masks are for 128 x 128"):
        TargetMaker(nano, None, automatic=0).make_rows(read_coco(folder)[0])


@pytest.fixture
def wide(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A folder with one picture, 90 x 60 as it is stored, and its pixels; the mask is for 90 x 60."""
    Image.fromarray(make_scene(3, 90).image[:60]).save(tmp_path / "00.png")
    mask = {"image_id": 0, "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]}
    content = {
        "images": [{"id": 0, "file_name": "00.png", "height": 60, "width": 90}],
        "annotations": [mask],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path, np.asarray(Image.open(tmp_path / "00.png"))


def test_a_picture_is_seen_upright_as_the_people_who_labelled_it_saw_it(
    wide: tuple[Path, np.ndarray],
) -> None:
    folder, pixels = wide
    turn = Image.Exif()
    turn[0x0112] = 6
    Image.fromarray(pixels).save(folder / "00.png", exif=turn)
    with pytest.raises(
        ConfigError, match=r"00\.png is 60 x 90 pixels, but .* for 90 x 60\. .*exiftool -Orientation="
    ):
        read_coco(folder)[0].load()
    change(folder, height=90, width=60)
    assert np.array_equal(read_coco(folder)[0].load(), np.rot90(pixels, -1))
    turn[0x0112] = 1
    Image.fromarray(pixels).save(folder / "00.png", exif=turn)
    with pytest.raises(ConfigError, match=r"00\.png is 90 x 60 pixels, but .* 60 x 90\. Mend the COCO"):
        read_coco(folder)[0].load()


def test_labelled_pictures_are_decoded_as_the_pool_is(wide: tuple[Path, np.ndarray]) -> None:
    folder, pixels = wide
    grey = np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) + 1000
    Image.fromarray(grey).save(folder / "00.png")
    seen = read_coco(folder)[0].load()
    assert (seen.min(), seen.max()) == (0, 255)
    assert len(np.unique(seen)) == 256, "16 bits are brought down to 8, not cut off"
    cut_out = np.dstack([pixels, np.full((60, 90), 255, np.uint8)])
    cut_out[:10] = 0
    Image.fromarray(cut_out).save(folder / "00.png")
    seen = read_coco(folder)[0].load()
    assert (seen[:10] == 255).all(), "on white, as a browser shows it"
    assert np.array_equal(seen[10:], pixels[10:])


def test_pictures_that_no_decoder_takes_are_named(wide: tuple[Path, np.ndarray]) -> None:
    folder, _ = wide
    whole = (folder / "00.png").read_bytes()
    bomb = Image.new("1", (30_000, 30_000))
    bomb.save(folder / "00.png")
    with pytest.raises(ConfigError, match=r"00\.png is 30000 x 30000 pixels, but its masks are for 90 x 60"):
        read_coco(folder)[0].load()
    for damaged in (whole[:2000], b"<html>not found</html>", whole[:60] + b"0" * 500 + whole[560:]):
        (folder / "00.png").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"00\.png cannot be read .*take it out of its COCO file"):
            read_coco(folder)[0].load()


def test_a_set_that_is_called_as_procedural_scenes_are_has_to_be_renamed(folder: Path) -> None:
    """Scenes would take its place unseen."""
    named = folder.rename(folder.with_name("scenes"))
    with pytest.raises(ConfigError, match="'scenes' is called as procedural scenes are"):
        read_fitting_sets([named], None, 3)


def test_scenes_are_painted_without_a_fork_and_whoever_waits_is_told_beside_the_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A flow has many threads: one of them may hold a lock that a forked process would wait for."""
    monkeypatch.delattr("os.fork")
    told: list[tuple[str, int, int]] = []
    sets = read_fitting_sets([], None, 2, lambda *how: told.append(how))
    assert len(sets.learnt["scenes"]) == 2
    assert told == [("painting scenes", 1, 2), ("painting scenes", 2, 2)]
    assert capfd.readouterr().out == ""


def test_masks_of_one_picture_have_one_size(folder: Path) -> None:
    change(folder, segmentation={"size": [64, 64], "counts": [0, 64, 4032]})
    with pytest.raises(ConfigError, match=r"00\.png have different sizes .*\(64, 64\), \(128, 128\)"):
        read_coco(folder)


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    image = read_coco(folder)[0]
    (folder / "00.png").unlink()
    for use in (image.load, lambda: image.fingerprint):
        with pytest.raises(ConfigError, match=r"00\.png .*take it out of its COCO file"):
            use()


def test_an_image_is_known_by_its_labels_however_they_are_written(folder: Path) -> None:
    """Fitted images are left out of an evaluation though their set was exported anew elsewhere."""
    before = read_coco(folder)
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        rle = annotation["segmentation"]
        annotation["segmentation"] = {"counts": rle["counts"], "size": rle["size"]}
    path.write_text(json.dumps(content))
    after = read_coco(folder)
    assert [image.digest for image in after] == [image.digest for image in before]
    assert leave_out_groups(after, {before[0].digest}) == after[1:]


@pytest.mark.parametrize("kept_by", ["its file", "its masks"])
def test_an_image_that_was_learnt_from_is_not_judged_by_when_its_masks_or_its_file_change(
    kept_by: str, folder: Path
) -> None:
    fitted = read_coco(folder)[0].digests
    if kept_by == "its file":
        path = folder / "annotations.json"
        content = json.loads(path.read_text())
        first = next(a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"])
        content["annotations"].remove(first)
        path.write_text(json.dumps(content))
    else:
        Image.open(folder / "00.png").save(folder / "00.png", compress_level=1)
    now = read_coco(folder)
    assert leave_out_groups(now, fitted) == now[1:]


def test_heads_write_down_the_files_and_the_masks_that_they_were_fitted_to(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", range(950_000, 950_008))
    settings = HeadSettings(objects=2, automatic=0)
    path, _ = make_heads(
        "sam-nano",
        None,
        [folder],
        None,
        0,
        Store(str(tmp_path / "tokens")),
        settings,
        out=tmp_path / "h.safetensors",
    )
    learnt = learnable_images(read_coco(folder))
    assert fitted_digests(path) == {of for image in learnt for of in (image.digest, image.content)}


def share_masks(folder: Path) -> Path:
    """Give every image the masks of the first, as labelled frames of one resting camera have them."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    first = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    content["annotations"] = [{**a, "image_id": image["id"]} for image in content["images"] for a in first]
    path.write_text(json.dumps(content))
    return folder


def test_images_with_equal_masks_are_learnt_from_with_their_own_pixels(folder: Path) -> None:
    nano, settings = load_segmenter("sam-nano", device="cpu"), FinetuneSettings(masks=2)
    one, other = human_images(read_coco(share_masks(folder)))
    model = make_learner(nano, settings)
    alone = Lessons(nano, model, settings).judge([other])
    lessons = Lessons(nano, model, settings)
    assert lessons.judge([one]) != alone
    assert lessons.judge([other]) == alone


@pytest.mark.parametrize("learner", ["model", "refiner"])
def test_pictures_replaced_under_the_same_labels_make_another_run(learner: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", range(950_000, 950_004))
    nano, checkpoint = load_segmenter("sam-nano", device="cpu"), tmp_path / "run.checkpoint"

    def learn() -> None:
        images = read_coco(folder)
        if learner == "model":
            settings = FinetuneSettings(steps=1, images=1, masks=1, rounds=1)
            finetune(nano, human_images(images), [], settings, checkpoint=checkpoint)
        else:
            fit_refiner(nano, images, RefinerSettings(steps=1, images=1, masks=1), checkpoint=checkpoint)

    learn()
    learn()
    Image.open(folder / "03.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "03.png")
    with pytest.raises(StaleCheckpointError, match="another run"):
        learn()


def test_a_labelled_file_is_read_once_to_tell_it_from_others(folder: Path) -> None:
    image = read_coco(folder)[0]
    assert isinstance(image.load, FileLoader)
    names = image.key, image.load.image_id
    (folder / "00.png").unlink()
    assert names == (image.key, image.load.image_id)


def test_sets_of_one_group_are_fitted_to_but_cannot_calibrate() -> None:
    samples = make_samples(400)
    groups = {f"cells/{i}" for i in range(6)} | {"cars/0"}
    some = samples.of_groups(groups)
    assert fit_heads(some, "m@0", "l@0", FAST, calibrate_on=["cells"]).calibrated_on[0] > 0
    with pytest.raises(ConfigError, match="cars have no mask to calibrate on"):
        fit_heads(some, "m@0", "l@0", FAST, calibrate_on=["cars"])
    alone = samples.of_groups({"cells/0", "cars/0"})
    with pytest.raises(ConfigError, match="at least 5 groups"):
        fit_heads(alone, "m@0", "l@0", FAST)


def test_what_cannot_be_told_is_none_in_the_tables_and_valid_json() -> None:
    samples = make_samples(400)
    heads = fit_heads(samples, "m@0", "l@0", FAST).heads
    same = samples.iou_NM[np.arange(len(samples)), samples.sam_score_NM.argmax(1)]
    no_gain = type(samples)(**{**samples.__dict__, "iou_larger_N": same.astype(float)})
    result = evaluate_uncertainty([(no_gain, heads)])
    assert result["relative_auc"]["model"]["delta_star"] == {"mean": None, "std": None}
    assert not re.search("NaN", json.dumps(result, allow_nan=False))
