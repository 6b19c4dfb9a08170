"""Labelled images for training and evaluation: COCO files and procedural scenes as one kind of record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from pycocotools import mask as coco_mask

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
    """Images of a COCO file, in file order; `file_name` is a path, relative to the file's folder or absolute, or a URL that fsspec opens.

    Segmentations may be compressed RLE, uncompressed RLE or polygons; crowds are left out. Masks are of the upright picture, which
    people see, whatever its EXIF orientation.

    Raises:
        ConfigError: the file is missing or is no COCO file, or masks of one image have different sizes.
    """
    path = Path(annotations)
    if path.is_dir():
        path = path / "annotations.json"
    try:
        content = json.loads(path.read_text())
        records = {record["id"]: record for record in content["images"]}
        masks: dict[int, list[LabelledMask]] = {key: [] for key in records}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                record = records[annotation["image_id"]]
                rle = _as_rle(annotation["segmentation"], record["height"], record["width"])
                masks[record["id"]].append(
                    LabelledMask(rle, int(coco_mask.area(rle)), annotation.get("task", "entity"))
                )
        sizes = {key: {mask.size for mask in of} for key, of in masks.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a readable COCO file ({error!r}); give a JSON with images and annotations."
        ) from error
    for key, several in sizes.items():
        if len(several) > 1:
            raise ConfigError(
                f"{path}: masks of {records[key]['file_name']} have different sizes (height, width): {sorted(several)}. "
                "Give all of them the picture's."
            )
    return [
        LabelledImage(
            name=record["file_name"],
            group=str(record.get("group", record["file_name"])),
            modality=str(record.get("modality", "")),
            masks=tuple(masks[key]),
            load=FileLoader(place_file(path.parent, record["file_name"]), masks[key][0].size),
        )
        for key, record in records.items()
        if masks[key]
    ]


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


def make_head_scenes(count: int, size: int, workers: int) -> list[LabelledImage]:
    """`count` procedural scenes that neither training nor evaluation draws."""
    scenes = scene_images(range(_SCENE_HEADS_SEED, _SCENE_HEADS_SEED + count), size, workers)
    return [scene for scene in scenes if scene.masks]


def scene_images(seeds: Iterable[int], size: int, workers: int = 1) -> list[LabelledImage]:
    """Procedural scenes as labelled images, held in memory; `modality` is the layout."""
    seeds = list(seeds)
    from rich.progress import track

    if workers <= 1:
        return [_scene_image(seed, size) for seed in seeds]
    with ProcessPoolExecutor(workers) as pool:
        painted = pool.map(_scene_image, seeds, [size] * len(seeds), chunksize=16)
        return list(track(painted, "painting scenes", total=len(seeds)))


def _scene_image(seed: int, size: int, layout: str | None = None) -> LabelledImage:
    scene = make_scene(seed, size, layout)
    masks = tuple(
        LabelledMask(coco_mask.encode(np.asfortranarray(m.mask, np.uint8)), int(m.mask.sum()), m.task)
        for m in scene.masks
    )
    return LabelledImage(f"scene-{seed}", f"scene-{seed}", scene.layout, masks, ArrayLoader(scene.image))


def _as_rle(segmentation: object, height: int, width: int) -> dict[str, object]:
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation  # type: ignore[return-value]
