"""Labelled images as a user has them: a folder with a COCO file."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from engine.learn.data import scene_images


def write_coco(folder: Path, seeds: range) -> Path:
    """A COCO folder of procedural scenes, 128 pixels wide."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, scene in enumerate(scene_images(seeds, 128)):
        Image.fromarray(scene.load()).save(folder / f"{number:02}.png")
        images.append({"id": number, "file_name": f"{number:02}.png", "height": 128, "width": 128})
        for mask in scene.masks:
            rle = {"size": mask.rle["size"], "counts": mask.rle["counts"].decode()}  # type: ignore[attr-defined]
            annotations.append(
                {"id": len(annotations), "image_id": number, "segmentation": rle, "task": mask.task}
            )
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder
