"""Sets that share images: what one of them keeps out to judge by is learnt from no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from coco_folder import write_coco
from PIL import Image
from store_rows import MODEL, image_row, mask_rows, tables_of
from triage_rows import label_row

from engine.judging import kept_out_sets
from engine.learn.answers import ANSWERS, is_kept_out, read_lessons
from engine.learn.curriculum import read_sources
from engine.learn.data import LabelledImage, read_coco
from engine.learn.image_loaders import FileLoader, PoolLoader
from engine.learn.splits import keep_out_everywhere, learnable_images, split_groups
from engine.pool import hash_image
from engine.store import Store, export_coco


def content(image: LabelledImage) -> str:
    assert isinstance(image.load, FileLoader | PoolLoader)
    return image.load.image_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """People drew a mask in each of twenty pictures."""
    store = Store(str(tmp_path / "masks"))
    (tmp_path / "pool").mkdir()
    for seed in range(20):
        path = tmp_path / "pool" / f"{seed:02}.png"
        pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        row = image_row(f"file://{path}", n_masks=1, image_id=hash_image(path.read_bytes()))
        store.commit_shard(MODEL, *tables_of([row]))
        store.append("labels", [label_row(mask_rows(row, "first")[0], "correct", area=50)])
    return store


def test_an_export_of_the_answers_teaches_nothing_that_a_version_is_judged_by(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "export").mkdir()
    export_coco(store, str(tmp_path / "export" / "annotations.json"))
    data = [tmp_path / "export"]
    alone = split_groups(read_coco(data[0]))[1]
    learnt = {content(i) for of in read_lessons(data, store).values() for i in learnable_images(of)}
    judged = kept_out_sets(store, data)
    assert judged.keys() == {"export", ANSWERS}
    contents = {content(image) for of in judged.values() for image in of}
    assert {content(image) for image in alone} < contents, "those of its own and those of the answers"
    assert any(is_kept_out(image_id) for image_id in contents)
    assert learnt
    assert not learnt & contents
    assert len(learnt | contents) == 20


def test_of_two_folders_that_share_pictures_neither_teaches_what_the_other_keeps_out(tmp_path: Path) -> None:
    one = write_coco(tmp_path / "one", range(940_000, 940_010))
    other = shutil.copytree(one, tmp_path / "other")
    annotations = other / "annotations.json"
    records = json.loads(annotations.read_text())
    for record in records["images"]:  # other names, and groups of two
        new = f"renamed-{record['file_name']}"
        (other / record["file_name"]).rename(other / new)
        record |= {"file_name": new, "group": f"pair {record['id'] // 2}"}
    annotations.write_text(json.dumps(records))
    sets = keep_out_everywhere({path.name: read_coco(path) for path in (one, other)})
    learnt = {content(image) for of in sets.values() for image in learnable_images(of)}
    kept_out = {name: split_groups(of)[1] for name, of in sets.items()}
    assert learnt
    assert not learnt & {content(image) for of in kept_out.values() for image in of}
    assert len(kept_out["one"]) == len(kept_out["other"]), "whole groups, in the other set as well"
    shown = {image.name for image in read_sources([one, other]).photos}
    assert shown == {image.name for of in sets.values() for image in learnable_images(of)}


def test_a_picture_that_nobody_can_read_hides_no_other(tmp_path: Path) -> None:
    """Whoever has to open it is told; what only lies beside it is of no matter."""
    one = write_coco(tmp_path / "one", range(940_000, 940_003))
    other = shutil.copytree(one, tmp_path / "other")
    sets = {path.name: read_coco(path) for path in (one, other)}
    [kept_out] = split_groups(sets["one"])[1]
    (other / next(image.name for image in sets["other"] if image.name != kept_out.name)).unlink()
    held = kept_out_sets(Store(str(tmp_path / "masks")), [one, other])
    assert {image.name for of in held.values() for image in of} == {kept_out.name}
    assert all(image.load().any() for of in held.values() for image in of)
