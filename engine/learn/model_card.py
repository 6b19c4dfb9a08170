"""The model cards of the weights that ship: what they learnt from, and one-click IoU on what they did not.

python -m engine.learn.model_card weights/sam-nano.safetensors --data FOLDER…
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from engine.evaluate.points import PointResult, evaluate_points
from engine.learn.data import SCENE_EVALUATION_SEEDS, LabelledImage, read_coco, scene_images, split_groups
from engine.models.registry import load_segmenter
from engine.models.segmenter import Segmenter

_SEEN = ("labelled", "everyday")  # folders whose first four fifths are training data; all else is unseen


def evaluation_sets(data: Iterable[Path], masks_per_image: int) -> dict[str, list[LabelledImage]]:
    """Kept-out images by name of the set; nuclei split into the modalities that were learnt and the unknown ones.

    Args:
        masks_per_image: at most so many masks of an image, evenly spread, so that a crowd does not outweigh the rest.
    """
    sets: dict[str, list[LabelledImage]] = {}
    for folder in data:
        images = read_coco(folder)
        kept_out = split_groups(images)[1] if folder.name in _SEEN else images
        if folder.name == "labelled":
            sets["nuclei, fluorescence"] = [i for i in kept_out if i.modality.startswith("fluo")]
            sets["nuclei, unknown modalities"] = [i for i in images if not i.modality.startswith("fluo")]
        else:
            sets[folder.name] = kept_out
    sets["procedural scenes"] = scene_images(SCENE_EVALUATION_SEEDS, 384)
    return {
        name: [_thin(image, masks_per_image) for image in images if image.masks]
        for name, images in sets.items()
    }


def measure(segmenter: Segmenter, sets: dict[str, list[LabelledImage]]) -> dict[str, dict[str, float]]:
    """One-click figures of each set: images, masks, mean IoU of the best of three and of the one the model picks."""
    return {
        name: _summary(images, evaluate_points(segmenter, images)) for name, images in sets.items() if images
    }


def write_kept_out(data: Iterable[Path], path: Path) -> None:
    """List the images that no shipped weights have learnt from, by folder."""
    listing = {}
    for folder in data:
        if folder.name in _SEEN:
            name = f"{folder.parent.name}/{folder.name}" if folder.name == "labelled" else folder.name
            listing[name] = sorted(image.name for image in split_groups(read_coco(folder))[1])
    path.write_text(json.dumps(listing, indent=1) + "\n")


def _thin(image: LabelledImage, most: int) -> LabelledImage:
    if len(image.masks) <= most:
        return image
    chosen = np.linspace(0, len(image.masks) - 1, most).round().astype(int)
    return LabelledImage(
        image.name, image.group, image.modality, tuple(image.masks[i] for i in chosen), image.load
    )


def _summary(images: list[LabelledImage], results: list[PointResult]) -> dict[str, float]:
    return {
        "images": len(images),
        "masks": len(results),
        "best_of_three": round(float(np.mean([r.best_iou for r in results])), 4),
        "picked": round(float(np.mean([r.picked_iou for r in results])), 4),
        "score_error": round(float(np.mean([abs(r.picked_score - r.picked_iou) for r in results])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="registry name or checkpoint")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="COCO folders to evaluate on")
    parser.add_argument("--masks-per-image", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    segmenter = load_segmenter(arguments.weights)
    figures = measure(segmenter, evaluation_sets(arguments.data, arguments.masks_per_image))
    for name, row in figures.items():
        print(f"{name:28s} {row}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"model": segmenter.model_id, "parameters": segmenter.parameters, "one_click": figures},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
