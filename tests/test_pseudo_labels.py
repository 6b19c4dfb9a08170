"""What a run takes of a pool of any size: as many images as it may draw, the same ones every time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from review_sides import disk, label_pool, write_pool
from store_rows import MODEL, commit, content_id, image_row, mask_rows, tables_of
from triage_rows import label_row

from engine.learn.answers import is_kept_out
from engine.learn.data import LabelledImage
from engine.learn.image_loaders import FileLoader
from engine.learn.training_images import TrainingImage, pseudo_labelled_images
from engine.masks.rle import encode_masks
from engine.pool import hash_image
from engine.store import Store
from schemas.errors import ConfigError
from schemas.tables import MAPS

_MAPS = pa.schema([f for f in MAPS if f.name not in ("model", "attempt")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Twelve images with three masks each and their maps, and thirty in which nothing was found; in shards of seven."""
    store = Store(str(tmp_path / "masks"))
    images = [image_row(f"file:///pool/{n:02}.png", n_masks=3 if n < 12 else 0) for n in range(42)]
    for start in range(0, len(images), 7):
        rows, tables = tables_of(images[start : start + 7])
        about = {"x0": 0, "y0": 0, "x1": 16, "y1": 12, "rows": 2, "columns": 2, "values": b"\0\0\0\0"}
        masks = [mask for image in images[start : start + 7] for mask in mask_rows(image, "first")]
        maps = [{**about, **{k: m[k] for k in ("mask_id", "image_id")}, "map_source": "self"} for m in masks]
        store.commit_shard(MODEL, rows, {**tables, "maps": pa.Table.from_pylist(maps, _MAPS)})
    return store


def keys(images: list[TrainingImage]) -> list[str]:
    return [image.key for image in images]


def told(images: list[TrainingImage]) -> list[tuple[str, list[str], bool]]:
    return [(image.key, [mask.counts for mask in image.masks], image.answered) for image in images]


def test_a_run_takes_no_more_of_a_pool_than_it_may_draw(store: Store) -> None:
    everything = pseudo_labelled_images(store, MODEL)
    assert len(everything) == 42
    assert sum(len(image.masks) for image in everything) == 36
    some = pseudo_labelled_images(store, MODEL, images=5)
    assert told(some) == told([of for of in everything if of.key in keys(some)]), "with all their masks"
    with_masks = [image for image in some if image.masks]
    assert len(with_masks) == 5, "as many to learn from, however few of the pool they are"
    assert 5 <= len(some) <= 10
    assert told(pseudo_labelled_images(store, MODEL, images=5)) == told(some)
    assert keys(pseudo_labelled_images(store, MODEL, images=5, seed=1)) != keys(some)
    assert told(pseudo_labelled_images(store, MODEL, images=42)) == told(everything)


def test_what_is_left_out_takes_no_place_of_those_that_are_drawn(store: Store, tmp_path: Path) -> None:
    some = pseudo_labelled_images(store, MODEL, images=5)
    answered = next(image for image in some if image.masks)
    for mask in mask_rows(image_row(f"file:///pool/{_number(answered):02}.png"), "first"):
        store.append("labels", [label_row(mask, "correct")])
    path = tmp_path / "labelled.png"
    path.write_bytes(b"a picture")
    commit(store, ["file:///pool/again.png"], content="again", n_masks=0, image_id=hash_image(b"a picture"))
    labelled = [LabelledImage("labelled.png", "labelled", "", (), FileLoader(path))]
    left = pseudo_labelled_images(store, MODEL, labelled=labelled, images=5)
    assert answered.key not in keys(left)
    assert sum(bool(image.masks) for image in left) == 5
    everything = pseudo_labelled_images(store, MODEL, labelled=labelled)
    assert hash_image(b"a picture") not in keys(everything)
    assert len(everything) == 41


def _number(image: TrainingImage) -> int:
    return next(n for n in range(42) if content_id(f"file:///pool/{n:02}.png") == image.key)


def test_what_people_answered_of_one_version_does_not_teach_the_next(tmp_path: Path) -> None:
    store, pool = Store(str(tmp_path / "masks")), write_pool(tmp_path / "pool", 12)
    old, following = label_pool(store, pool), "nano@ffffffffffff"
    kept_out = [of for of in old.values() if is_kept_out(of[0]["image_id"])]
    learnt = [of for of in old.values() if of not in kept_out]
    assert kept_out
    silent = learnt.pop()
    for gone, changed, skipped, _ in learnt + kept_out:
        smaller = {"rle": encode_masks(disk(1, 5)[None])[0], "height": 96, "width": 128}
        store.append(
            "labels",
            [
                label_row(gone, "no object"),
                label_row(changed, "fixed", **smaller),
                label_row(skipped, "skipped"),
            ],
        )
    label_pool(store, pool, model=following, tag="second")  # the same shapes once more
    images = pseudo_labelled_images(store, following)
    assert {image.key for image in images} == {of[0]["image_id"] for of in [*learnt, silent]}, (
        "nor do images that versions are judged by"
    )
    taught = {(image.key, mask.counts) for image in images for mask in image.masks}
    left = [row for of in learnt for row in of[2:]] + silent
    assert taught == {(row["image_id"], row["rle"]) for row in left}
    assert [image.key for image in images if not image.answered] == [silent[0]["image_id"]]


def test_masks_without_maps_say_what_to_do(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "masks"))
    commit(store, ["file:///pool/0.png"])
    with pytest.raises(ConfigError, match="no uncertainty maps"):
        pseudo_labelled_images(store, MODEL)
