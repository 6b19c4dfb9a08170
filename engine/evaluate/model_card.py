"""The model cards of the weights that ship: what they learnt from, and one-click IoU on what they did not.

python -m engine.evaluate.model_card sam-nano --data FOLDER… --card weights/sam-nano.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.evaluate.points import PointResult, evaluate_points
from engine.learn.data import SCENE_EVALUATION_SEEDS, LabelledImage, read_coco, scene_images, spread_evenly
from engine.learn.splits import split_groups
from engine.models.allocator import keep_freed_memory
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError

_SEEN = ("labelled", "everyday")  # folders whose first four fifths are training data; all else is unseen


def evaluation_sets(
    data: Iterable[Path], images: int, masks_per_image: int
) -> dict[str, list[LabelledImage]]:
    """Kept-out images by name of the set; nuclei split into the modalities that were learnt and the unknown ones.

    Args:
        images: at most so many images of a set, evenly spread.
        masks_per_image: at most so many masks of an image, evenly spread, so that a crowd does not outweigh the rest.

    Raises:
        ConfigError: what is given is no folder, or two have one name; a set is known by its folder's name.
    """
    sets: dict[str, list[LabelledImage]] = {}
    for folder in data:
        if not folder.is_dir() or folder.name in sets:
            raise ConfigError(
                f"{folder} is no folder, or the second one of that name. Give COCO folders of different names."
            )
        everything = read_coco(folder)
        kept_out = split_groups(everything)[1] if folder.name in _SEEN else everything
        if folder.name == "labelled":
            sets["nuclei, fluorescence"] = [i for i in kept_out if i.modality.startswith("fluo")]
            sets["nuclei, unknown modalities"] = [i for i in everything if not i.modality.startswith("fluo")]
        else:
            sets[folder.name] = kept_out
    sets["procedural scenes"] = scene_images(SCENE_EVALUATION_SEEDS[:images], 384)
    return {
        name: [
            _thin(image, masks_per_image) for image in spread_evenly([i for i in chosen if i.masks], images)
        ]
        for name, chosen in sets.items()
    }


def measure(segmenter: Segmenter, sets: dict[str, list[LabelledImage]]) -> dict[str, dict[str, float]]:
    """One-click figures of each set: images, masks, mean IoU of the best of three and of the one the model picks."""
    from rich.progress import track

    return {
        name: _summary(images, evaluate_points(segmenter, track(images, name)))
        for name, images in sets.items()
        if images
    }


def _thin(image: LabelledImage, most: int) -> LabelledImage:
    return replace(image, masks=tuple(spread_evenly(image.masks, most)))


def _summary(images: list[LabelledImage], results: list[PointResult]) -> dict[str, float]:
    return {
        "images": len(images),
        "masks": len(results),
        "best_of_three": round(float(np.mean([r.best_iou for r in results])), 4),
        "picked": round(float(np.mean([r.picked_iou for r in results])), 4),
        "score_error": round(float(np.mean([abs(r.picked_score - r.picked_iou) for r in results])), 4),
    }


_CARD = """# {name}

{what}

| | |
|---|---|
| package | {package} ({architecture}) |
| parameters | {parameters:.1f} M, {megabytes:.0f} MB as fp16 safetensors |
| input | {image_size} x {image_size} pixels, masks at {grid} x {grid} |
| version | `{version}` (first digits of the file's SHA-256) |
| licence | Apache-2.0 |

## What it learnt from
Procedural scenes of this project (exact masks of whole things, their parts and the salient one) and {labelled_images} labelled images:
fluorescence images of the 2018 Data Science Bowl nuclei (CC0) and COCO images with instance masks (annotations CC BY 4.0).
Of both sets the last fifth of the groups, listed in `kept-out.json`, was never shown; nor were the nuclei
of purple tissue and bright field, nor any other set in the table. Recipe:

```json
{recipe}
```

## One click, three masks
The click is the mask pixel farthest from the boundary; IoU at the image's full resolution, mean over masks (at most
{masks_per_image} an image, and at most {most_images} images a set, evenly spread). "picked" is the output the model scores best, "score error" the mean distance
between that score and its IoU.

| set | seen in training | images | masks | best of three | picked | score error |
|---|---|---|---|---|---|---|
{rows}

## What it is for
Trying gapmap without a download or a GPU, tests, and pools that look like what it learnt from. It is small and learnt from little: for
photographs in general an official checkpoint is better by far. Its scores are its own, uncalibrated.

Made with `python -m engine.evaluate.model_card {name} --data … --card weights/{name}.md`; trained with `make weights`.
"""
_WHAT = {
    "sam-nano": "The default: segment-anything's decoder behind a small convolutional encoder.",
    "sam2-mini": "sam2's classes with high-resolution features on a deeper trunk: what uncertain work is escalated to.",
}
_SEEN_SETS = {
    "nuclei, fluorescence": "other groups",
    "everyday": "other images",
    "procedural scenes": "other seeds",
}


def render_card(
    segmenter: Segmenter, figures: dict[str, dict[str, float]], images: int, masks_per_image: int
) -> str:
    """The card as Markdown: what the model is, what it learnt from, and the figures of `measure`."""
    from safetensors import safe_open

    path = MODELS[segmenter.name].path
    with safe_open(path, framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    rows = [
        f"| {name} | {_SEEN_SETS.get(name, 'no')} | {f['images']} | {f['masks']} | {f['best_of_three']:.3f} | {f['picked']:.3f} |"
        f" {f['score_error']:.3f} |"
        for name, f in figures.items()
    ]
    return _CARD.format(
        name=segmenter.name,
        what=_WHAT[segmenter.name],
        package=segmenter.package,
        architecture="ConvTrunk, see engine/models/nano.py",
        parameters=segmenter.parameters / 1e6,
        megabytes=path.stat().st_size / 1e6,
        image_size=segmenter.image_size,
        grid=segmenter.grid_size,
        version=segmenter.version,
        recipe=json.dumps(recipe, indent=1),
        labelled_images=recipe["labelled_images"],
        most_images=images,
        masks_per_image=masks_per_image,
        rows="\n".join(rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="registry name, or a checkpoint (without --card)")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="COCO folders to evaluate on")
    parser.add_argument("--images", type=int, default=60, help="at most so many of each set")
    parser.add_argument("--masks-per-image", type=int, default=20)
    parser.add_argument("--card", type=Path, help="write the Markdown card here")
    arguments = parser.parse_args()
    keep_freed_memory()
    segmenter = load_segmenter(arguments.model)
    figures = measure(segmenter, evaluation_sets(arguments.data, arguments.images, arguments.masks_per_image))
    for name, row in figures.items():
        print(f"{name:28s} {row}")
    if arguments.card:
        arguments.card.write_text(
            render_card(segmenter, figures, arguments.images, arguments.masks_per_image)
        )


if __name__ == "__main__":
    main()
