"""Which labelled images are never learnt from, so that models can be judged by them.

Splits go by image group, and a group's place in one is that of its own name: however a set of several groups grows, one that may be learnt
from is never judged by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from engine.learn.data import LabelledImage

KEPT_OUT_SHARE = 0.2
_UNKNOWN = ("purple_", "bright_1024")  # modalities that the active-learning loop must discover by itself
_LISTED = Path(__file__).parents[2] / "weights" / "kept-out.json"


def split_groups(images: Iterable[LabelledImage]) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """(may be learnt from, kept out) of one set.

    Kept out are groups whose name has a hash in the lowest fifth, or where none has the group of the lowest, and groups with an image
    that says so itself. A set of one group may be learnt from whole. Of a set that the shipped weights learnt from or are measured on it is the groups
    that `weights/kept-out.json` lists, no more and no less.
    """
    images = list(images)
    kept_out = _find_kept_out(images)
    return [i for i in images if i.group not in kept_out], [i for i in images if i.group in kept_out]


def keep_out_everywhere(sets: Mapping[str, Sequence[LabelledImage]]) -> dict[str, list[LabelledImage]]:
    """The same sets, of whose images those that any of them keeps out are kept out of all, with the images of their groups.

    The same image is one with the same file, whatever it is called. Files of labelled sets are read for it where another set has an
    image of the same size, and not decoded; one that cannot be read is passed over: whoever needs it says so.
    """
    marked = {name: list(images) for name, images in sets.items()}
    contents = _identify(marked)
    known = 0
    while True:
        # Said of whole groups, and of those that are kept out already: what is marked beside them changes nothing for them.
        for name, images in marked.items():
            kept_out = _find_kept_out(images)
            marked[name] = [replace(i, kept_out=True) if i.group in kept_out else i for i in images]
        shared = {
            content
            for name, images in marked.items()
            for image, content in zip(images, contents[name], strict=True)
            if image.kept_out and content
        }
        if len(shared) == known:
            return marked
        known = len(shared)
        for name, images in marked.items():
            marked[name] = [
                replace(image, kept_out=True) if content in shared else image
                for image, content in zip(images, contents[name], strict=True)
            ]


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
    if any(of <= names for of in lists):  # its other groups may have been learnt from already
        return said
    place = {image.group: _hash_group(image.group) for image in images if image.kept_out is None}
    if len({image.group for image in images}) == 1:
        return said
    hashed = {group for group, value in place.items() if value < KEPT_OUT_SHARE}
    return said | hashed or set(sorted(place, key=lambda group: place[group])[:1])


def _identify(sets: Mapping[str, Sequence[LabelledImage]]) -> dict[str, list[str | None]]:
    """What the file of each image is called in a pool; None for one that no other set can have."""
    having: dict[tuple[int, int], set[str]] = {}
    for name, images in sets.items():
        for image in images:
            having.setdefault(image.masks[0].size, set()).add(name)
    return {
        name: [image.content if len(having[image.masks[0].size]) > 1 else None for image in images]
        for name, images in sets.items()
    }


def _hash_group(group: str) -> float:
    """0..1, the same for a name for ever."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") / 2**64


@cache
def _read_listed() -> tuple[frozenset[str], ...]:
    """By set that the shipped weights learnt from or are measured on, the names of the images that are kept out."""
    return tuple(frozenset(names) for names in json.loads(_LISTED.read_text()).values())
