"""Which labelled images are never learnt from, so that models can be judged by them.

Splits go by image group, and a group's place in one is that of its own name: however a set of several groups grows, one that may be learnt
from is never judged by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from engine.learn.data import LabelledImage

KEPT_OUT_SHARE = 0.2
_UNKNOWN = ("purple_", "bright_1024")  # modalities that the active-learning loop must discover by itself
_LISTED = Path(__file__).parents[2] / "weights" / "kept-out.json"


def split_groups(images: Iterable[LabelledImage]) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """(may be learnt from, kept out) of one set.

    Kept out are groups whose name has a hash in the lowest fifth, or where none has the group of the lowest, and groups with an image
    that says so itself. A set of one group may be learnt from whole. Of a set that the shipped weights learnt from it is the groups that
    `weights/kept-out.json` lists, no more and no less.
    """
    images = list(images)
    kept_out = _find_kept_out(images)
    return [i for i in images if i.group not in kept_out], [i for i in images if i.group in kept_out]


def learnable_images(images: Iterable[LabelledImage]) -> list[LabelledImage]:
    """Those of a set that may be learnt from: without its kept-out groups and without the unknown modalities."""
    return [image for image in split_groups(images)[0] if not image.modality.startswith(_UNKNOWN)]


def split_unknown(name: str, images: Iterable[LabelledImage]) -> dict[str, list[LabelledImage]]:
    """Images of a set, those of modalities that are to stay unknown apart; sets without images are left out."""
    images = list(images)
    unknown = [image for image in images if image.modality.startswith(_UNKNOWN)]
    known = [image for image in images if not image.modality.startswith(_UNKNOWN)]
    return {key: of for key, of in ((name, known), (f"{name}, unknown modalities", unknown)) if of}


def _find_kept_out(images: Sequence[LabelledImage]) -> set[str]:
    """The groups of one set that are kept out."""
    names, lists = {image.name for image in images}, _read_listed()
    listed = frozenset().union(*lists)
    said = {image.group for image in images if image.kept_out or image.name in listed}
    if any(of <= names for of in lists):  # all its other groups were learnt from before the weights shipped
        return said
    place = {image.group: _hash_group(image.group) for image in images if image.kept_out is None}
    if len({image.group for image in images}) == 1:
        return said
    hashed = {group for group, value in place.items() if value < KEPT_OUT_SHARE}
    return said | hashed or set(sorted(place, key=lambda group: place[group])[:1])


def _hash_group(group: str) -> float:
    """0..1, the same for a name for ever."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") / 2**64


@cache
def _read_listed() -> tuple[frozenset[str], ...]:
    """By set that the shipped weights learnt from, the names of the images that they did not."""
    return tuple(frozenset(names) for names in json.loads(_LISTED.read_text()).values())
