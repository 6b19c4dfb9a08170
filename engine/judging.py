"""Judge a version of a model on what is kept out of labelled sets and of people's answers, and decide whether it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.evaluate.gate import Verdict
from engine.evaluate.interactive import choose_images
from engine.learn.answers import leave_out_lost, read_every_set
from engine.learn.data import LabelledImage
from engine.learn.splits import split_groups
from engine.models.loading import load_segmenter
from engine.promotion import find_current, promote_model
from engine.store import Store
from schemas.errors import ConfigError

_UNJUDGED = """
    FROM (FROM models WHERE parent IS NOT NULL AND name = split_part($parent, '@', 1) ORDER BY created_at DESC LIMIT 1)
    WHERE parent = $parent AND json_exists(data, '$.human.answers') AND model NOT IN (SELECT model FROM promotions)
    AND model NOT IN (SELECT model FROM rounds WHERE step = 'promote')
"""


class NothingKeptOutError(ConfigError):
    """No labelled image is kept out of learning, so that nothing can be judged by."""


def kept_out_sets(store: Store, data: Sequence[Path]) -> dict[str, list[LabelledImage]]:
    """By name of their set, labelled images that no model learns from.

    Raises:
        NothingKeptOutError: there are none.
        ConfigError: a COCO file cannot be read.
    """
    sets = read_every_set(data, store)
    if not sets:
        raise NothingKeptOutError("There is nothing to judge on. Give labelled images: --data FOLDER")
    held = {name: split_groups(of)[1] for name, of in sets.items()}
    if not any(held.values()):
        raise NothingKeptOutError(
            "The sets have too few groups of images to keep any out. Give sets of two groups or more."
        )
    return {name: of for name, of in held.items() if of}


def find_unjudged(store: Store, parent: str) -> dict[str, Any] | None:
    """Of the versions that learnt from people's answers the newest, as its row of `models`, if nobody has judged it yet, and no
    round tried in vain.

    Args:
        parent: that it has to come from, name@version; of another's child nothing is said.

    Returns None also where its weights are gone, or something else of the same name was fine-tuned later.
    """
    rows = store.read(lambda snapshot: snapshot.rows(_UNJUDGED, {"parent": parent}))
    return rows[0] if rows and Path(rows[0]["source"]).is_file() else None


def judge_version(
    store: Store,
    version: str,
    data: Sequence[Path],
    *,
    name: str | None = None,
    images: int | None = None,
    masks: int = 20,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """See `engine.promotion.promote_model`.

    Args:
        version: weights of the new version, path or URL.
        data: COCO sets to judge on, beside the answers of the store.
        name: the model it is a version of; what its file is called, if None.
        images, masks: of a set and of an image, at most.
        progress: called with (images done, images in all), of both models.

    Images of the pool that are gone since people answered for them are left out.

    Raises:
        NothingKeptOutError: there is nothing to judge on.
        ConfigError: a labelled file cannot be read, the weights are gone, or the version is in use already.
    """
    held = leave_out_lost(choose_images(kept_out_sets(store, data), images, masks))
    if not held:
        raise ConfigError(
            f"None of the images of {store.files.label} to judge on can be opened. Bring them back, or give labelled images: "
            "--data FOLDER"
        )
    new = load_segmenter(version, device=device)
    present = load_segmenter(find_current(store, name or new.name).source, device=device)

    def tell(model: str, done: int, total: int) -> None:
        if progress:
            progress(done + total * (model == present.model_id), 2 * total)

    return promote_model(store, new, present, held, name=name or new.name, progress=tell)
