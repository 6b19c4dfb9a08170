"""The labelled images that heads and refiners are fitted to: COCO sets, people's answers, and procedural scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.learn.answers import read_lessons
from engine.learn.data import LabelledImage, make_head_scenes
from engine.learn.splits import learnable_images
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from engine.store import Store

SCENES = "scenes"
"""What the set of procedural scenes is called."""
_SCENE_SIZE = 384


@dataclass(frozen=True)
class FittingSets:
    """By name of their set.

    Attributes:
        labelled: all images of the sets and of the store's answers, those that are kept out among them.
        learnt: those of them that may be learnt from, and the scenes.
    """

    labelled: dict[str, list[LabelledImage]]
    learnt: dict[str, list[LabelledImage]]


def read_fitting_sets(
    data: Sequence[Path],
    store: Store | None,
    scenes: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> FittingSets:
    """Read what to fit to, without answers whose images are gone.

    Args:
        data: COCO files or their folders.
        store: holds people's answers; None for none.
        scenes: procedural scenes, besides.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        ConfigError: a file cannot be read, there is nothing to fit to, or a set has no image that may be learnt from.
    """
    labelled = read_lessons(data, store, openable=True)
    if not labelled and not scenes:
        raise ConfigError(
            "There is nothing to fit to. Give labelled images (--data FOLDER), a --store with answers, or --scenes 500."
        )
    learnt = {name: learnable_images(images) for name, images in labelled.items()}
    for name, images in learnt.items():
        if name == SCENES:
            raise ConfigError(
                f"The set {name!r} is called as procedural scenes are. Rename it, or leave it out."
            )
        if not images:
            raise ConfigError(
                f"The set {name!r} has no labelled image that may be learnt from. Rename it, or leave it out."
            )
    if scenes:
        tell = partial(progress, "painting scenes") if progress else None
        learnt[SCENES] = make_head_scenes(scenes, _SCENE_SIZE, tell)
    return FittingSets(labelled, learnt)


def choose_output(out: Path | None, beside: Path | None, option: str, *, replace: bool) -> Path:
    """Where what is fitted is to be written: `out`, else the file beside the weights.

    Args:
        out: asked for.
        beside: where label looks for it; None for weights at a URL.
        option: of label, that names another file.
        replace: write over `beside` where it is there.

    Raises:
        ConfigError: there is no such place, or a file that every later run would miss.
    """
    path = out or beside
    if path is None:
        raise ConfigError("The weights lie at a URL. Say where the file is to be written: --out FILE")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}. Make it, or name another --out.")
    if out is None and path.exists() and not replace:
        raise ConfigError(
            f"{path} is there already, and label uses it. Name another file (--out FILE) and give it to label with {option}, "
            "or write over it: --replace"
        )
    return path
