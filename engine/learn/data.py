"""Labelled images for training and evaluation: COCO files and procedural scenes as one kind of record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from engine.learn.coco_file import read_coco_file
from engine.learn.image_loaders import ArrayLoader, FileLoader, PoolLoader, place_file
from engine.scenes import make_scene
from schemas.errors import ConfigError

T = TypeVar("T")

SCENE_EVALUATION_SEEDS = range(200)  # training draws its seeds from 1,000,000 on
_SCENE_TRAINING_SEED = 1_000_000
_SCENE_HEADS_SEED = 2_000_000  # scenes that no model was trained on


@dataclass(frozen=True)
class LabelledMask:
    """A human or exact mask: COCO compressed RLE, its area in pixels, and its task (salient, entity, part)."""

    rle: dict[str, object]
    area: int
    task: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.rle["size"]  # type: ignore[misc]
        return int(height), int(width)  # type: ignore[has-type]

    @property
    def plain_rle(self) -> dict[str, object]:
        """The run lengths as JSON has them, whether they came from there, from polygons or from an array."""
        counts = self.rle["counts"]
        return {"size": self.rle["size"], "counts": counts.decode() if isinstance(counts, bytes) else counts}

    def decode(self) -> np.ndarray:
        """bool HW."""
        return coco_mask.decode(self.rle).astype(bool)


@dataclass(frozen=True)
class LabelledImage:
    """An image with its masks. `load` gives uint8 HW3 RGB; images of one `group` are never split.

    `kept_out` says for ever whether it may be learnt from; where it is None, `split_groups` decides. `rejected` has the run lengths of
    masks that people took away: what is like them is of no object.
    """

    name: str
    group: str
    modality: str
    masks: tuple[LabelledMask, ...]
    load: Callable[[], np.ndarray] = field(repr=False)
    kept_out: bool | None = None
    rejected: tuple[str, ...] = ()

    @cached_property
    def boxes_M4(self) -> np.ndarray:
        """Boxes of the masks as xyxy (exclusive), int, image pixels."""
        xywh = coco_mask.toBbox([mask.rle for mask in self.masks]).astype(int)
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)

    @cached_property
    def digest(self) -> str:
        """Hash of the masks, 16 hex digits: the same labels are known wherever their file lies."""
        text = "\n".join([*(str(mask.plain_rle) for mask in self.masks), *self.rejected])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def content(self) -> str | None:
        """What its file is called in a pool, see `hash_image`; None where it has none, or one that cannot be read: whoever needs it
        says so."""
        try:
            return self.load.image_id if isinstance(self.load, FileLoader | PoolLoader) else None
        except ConfigError:
            return None

    @property
    def digests(self) -> frozenset[str]:
        """By any of which it is known again: its `digest`, in another file, and its `content`, with other masks."""
        return frozenset(of for of in (self.digest, self.content) if of)

    @property
    def fingerprint(self) -> str:
        """Changes when the masks change, or what is in the file of the pixels; the same wherever that lies.

        Raises:
            ConfigError: the file cannot be read.
        """
        return f"{self.digest}-{self.load.digest}" if isinstance(self.load, FileLoader) else self.digest

    @property
    def key(self) -> str:
        """Which image with which masks: its `fingerprint` (raises as that does) with its name, which tells scenes and images of the
        pool apart."""
        return f"{self.name}/{self.fingerprint}"

    def preload(self) -> LabelledImage:
        """The same with its pixels in memory."""
        return replace(self, load=ArrayLoader(self.load()))


def read_coco(annotations: str | Path) -> list[LabelledImage]:
    """Images of a COCO file that have masks, in file order; `file_name` is a path, relative to the file's folder or absolute, or a URL
    that fsspec opens.

    Segmentations may be compressed RLE, uncompressed RLE or polygons; crowds are left out, and annotations without a mask, whose number
    is said. Masks are of the upright picture, which people see, whatever its EXIF orientation.

    Raises:
        ConfigError: the file is missing or is no COCO file, an image or an annotation in it is damaged, or masks of one image have
            different sizes.
    """
    path = Path(annotations)
    if path.is_dir():
        path = path / "annotations.json"
    images = []
    for record, found in read_coco_file(path):
        masks, name = tuple(LabelledMask(*mask) for mask in found), record["file_name"]
        images.append(
            LabelledImage(
                name=name,
                group=str(record.get("group", name)),
                modality=str(record.get("modality", "")),
                masks=masks,
                load=FileLoader(place_file(path.parent, name), masks[0].size),
            )
        )
    return images


def read_sets(data: Iterable[Path]) -> dict[str, list[LabelledImage]]:
    """Images of COCO files or their folders, by the folder's name.

    Raises:
        ConfigError: a file is missing or no COCO file, or two folders have one name.
    """
    sets: dict[str, list[LabelledImage]] = {}
    for path in data:
        name = (path if path.is_dir() else path.parent).resolve().name
        if name in sets:
            raise ConfigError(f"Two sets are called {name!r}. Give COCO folders of different names.")
        sets[name] = read_coco(path)
    return sets


def leave_out_groups(images: Iterable[LabelledImage], digests: AbstractSet[str]) -> list[LabelledImage]:
    """Images of groups without any image that has one of these digests. Reads the files."""
    images = list(images)
    taken = {image.group for image in images if not image.digests.isdisjoint(digests)}
    return [image for image in images if image.group not in taken]


def spread_evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread, in their order."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def draw_training_scene(rng: np.random.Generator, size: int, layout: str | None = None) -> LabelledImage:
    """A procedural scene, never one of the evaluation or of the heads."""
    return _scene_image(int(rng.integers(_SCENE_TRAINING_SEED, _SCENE_HEADS_SEED)), size, layout)


def make_head_scenes(
    count: int, size: int, progress: Callable[[int, int], None] | None = None
) -> list[LabelledImage]:
    """`count` procedural scenes that neither training nor evaluation draws; see `scene_images`."""
    scenes = scene_images(range(_SCENE_HEADS_SEED, _SCENE_HEADS_SEED + count), size, progress)
    return [scene for scene in scenes if scene.masks]


def scene_images(
    seeds: Sequence[int], size: int, progress: Callable[[int, int], None] | None = None
) -> list[LabelledImage]:
    """Procedural scenes as labelled images, held in memory; `modality` is the layout.

    Args:
        size: height and width, pixels.
        progress: called with (scenes done, scenes in all).
    """
    painted = []
    # Not by processes: a forked one may inherit the held lock of one of the many threads here, and a fresh one takes as long to
    # begin as fifty scenes take.
    for done, seed in enumerate(seeds, 1):
        painted.append(_scene_image(seed, size))
        if progress:
            progress(done, len(seeds))
    return painted


def _scene_image(seed: int, size: int, layout: str | None = None) -> LabelledImage:
    scene = make_scene(seed, size, layout)
    masks = tuple(
        LabelledMask(coco_mask.encode(np.asfortranarray(m.mask, np.uint8)), int(m.mask.sum()), m.task)
        for m in scene.masks
    )
    return LabelledImage(f"scene-{seed}", f"scene-{seed}", scene.layout, masks, ArrayLoader(scene.image))
