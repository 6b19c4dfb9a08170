"""Tokens of labelled images, kept in a store: what heads are fitted to, without running a model again."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from engine.learn.automatic_rows import AUTOMATIC
from engine.learn.data import LabelledImage
from engine.learn.gap_targets import TargetMaker
from engine.models.segmenter import Segmenter
from engine.store import Store
from engine.store.image_rows import IMAGE_ROWS, image_row
from engine.uncertainty.features import FEATURES
from schemas.records import PoolItem
from schemas.token_tables import TOKENS

_SHARD = 16

_TOKEN_ROWS = pa.schema([f for f in TOKENS if f.name not in ("model", "attempt")])


@dataclass(frozen=True)
class Samples:
    """Samples of one model as arrays: N prompts, M = 3 outputs of each.

    Attributes:
        data_N, group_N: set and group of each sample's image; groups carry their set's name, so none is in two sets.
        central_N: whether the prompt is the object's central one.
        automatic_N: whether it is a point of the grid whose masks labelling keeps. Then `iou_nearest_NM` is finite for
            those masks alone, and what presumes that an object was meant is NaN.
        inputs_NMI: IoU token, the output's own mask token, features; fp32.
        sam_score_NM, entropy_NM, iou_NM, iou_nearest_NM: see the `tokens` table.
        iou_dense_N, iou_larger_N: what a fix gives; NaN where there is no larger model.
        entropies: the Monte-Carlo entropies by name (`H_Theta` …); NaN where not asked for.
    """

    data_N: np.ndarray
    group_N: np.ndarray
    central_N: np.ndarray
    automatic_N: np.ndarray
    inputs_NMI: np.ndarray
    sam_score_NM: np.ndarray
    entropy_NM: np.ndarray
    iou_NM: np.ndarray
    iou_nearest_NM: np.ndarray
    iou_dense_N: np.ndarray
    iou_larger_N: np.ndarray
    entropies: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.data_N)

    def of_groups(self, groups: AbstractSet[str]) -> Samples:
        """The samples of these groups (as in `group_N`)."""
        return self.pick(np.flatnonzero(np.isin(self.group_N, sorted(groups))))

    def pick(self, index_K: np.ndarray) -> Samples:
        """The samples at these positions."""
        arrays = {
            item.name: getattr(self, item.name)[index_K]
            for item in fields(Samples)
            if item.name != "entropies"
        }
        return Samples(**arrays, entropies={name: values[index_K] for name, values in self.entropies.items()})


def collect_tokens(
    store: Store,
    sets: Mapping[str, Sequence[LabelledImage]],
    segmenter: Segmenter,
    maker: TargetMaker,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Samples of labelled images: those that the store holds are read, the others are made and committed first.

    Killed at any moment, what was committed is not made again.

    Args:
        store: where they are kept; one of its own, for its `images` rows say what is done of labelled images.
        sets: labelled images by name of their set; one that is in several counts in each.
        segmenter: whose tokens they are.
        maker: makes the rows; other settings of it make other rows, beside these.
        progress: called with (images done, images in all).
    """
    described = {**maker.describe(), "features": FEATURES}
    settings = json.dumps(described, sort_keys=True)
    # Rows with baselines serve those who ask without.
    ways = list(dict.fromkeys([settings, json.dumps({**described, "baselines": True}, sort_keys=True)]))
    images = [(name, image, _items(image, ways)) for name, of in sets.items() for image in of]
    ids = [image_id for _, _, items in images for image_id in items]
    there = {known for way in ways for known in store.find_done(segmenter.model_id, way).find_content(ids)}
    groups_of: dict[str, dict[str, str]] = {}
    missing: dict[PoolItem, tuple[str, LabelledImage]] = {}
    for name, image, items in images:
        image_id = next((known for known in items if known in there), next(iter(items)))
        groups_of.setdefault(image_id, {}).setdefault(name, image.group)
        if image_id not in there:
            missing[items[image_id]] = image_id, image
    finished = len(images) - len(missing)
    for shard in _chunks(list(missing), _SHARD):
        image_rows, rows = [], []
        for item in shard:
            image_id, image = missing[item]
            known = {"image_id": image_id, "data": next(iter(groups_of[image_id]))}
            rows += [
                {**row, **known, "sample_id": _sample_id(image_id, row)} for row in maker.make_rows(image)
            ]
            image_rows.append(image_row(item, settings, image_id=image_id))
            finished += 1
            if progress:
                progress(finished, len(images))
        store.commit_shard(
            segmenter.model_id,
            pa.Table.from_pylist(image_rows, IMAGE_ROWS),
            {"tokens": pa.Table.from_pylist(rows, _TOKEN_ROWS)},
        )
    return _read(store, segmenter.model_id, groups_of)


def join_samples(parts: Sequence[Samples]) -> Samples:
    """Samples of several sets, one after another."""
    first = parts[0]
    arrays = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(Samples)
        if item.name != "entropies"
    }
    entropies = {name: np.concatenate([part.entropies[name] for part in parts]) for name in first.entropies}
    return Samples(**arrays, entropies=entropies)


def _read(store: Store, model: str, groups_of: Mapping[str, Mapping[str, str]]) -> Samples:
    """Samples of these images in a fixed order; `groups_of` gives the group in each set by image_id."""

    def read(snapshot: Any) -> pa.Table:
        return snapshot.con.sql(
            "FROM tokens WHERE model = $1 AND list_contains($2, image_id) ORDER BY sample_id",
            params=[model, list(groups_of)],
        ).to_arrow_table()

    table = store.read(read)
    # An image of several sets counts in each of them, in the group that it has there today.
    groups = [groups_of[image_id] for image_id in table["image_id"].to_pylist()]
    table = table.take(np.repeat(np.arange(len(table)), [len(of) for of in groups]))
    n = len(table)
    prompt_N = np.array(table["prompt"].to_pylist(), str)
    iou_token_NC = _matrix(table, "iou_token", n, 1)
    tokens_N4C = _matrix(table, "mask_tokens", n, 4)
    features_NMF = np.nan_to_num(_matrix(table, "features", n, 3))
    inputs_NMI = np.concatenate(
        [np.repeat(iou_token_NC, 3, 1), tokens_N4C[:, 1:], features_NMF], 2, dtype=np.float32
    )
    return Samples(
        data_N=np.array([name for of in groups for name in of], str),
        group_N=np.array([f"{name}/{group}" for of in groups for name, group in of.items()], str),
        central_N=prompt_N == "central",
        automatic_N=prompt_N == AUTOMATIC,
        inputs_NMI=inputs_NMI,
        sam_score_NM=_matrix(table, "sam_score", n, 3)[..., 0],
        entropy_NM=_matrix(table, "entropy", n, 3)[..., 0],
        iou_NM=_matrix(table, "iou", n, 3)[..., 0],
        iou_nearest_NM=_matrix(table, "iou_nearest", n, 3)[..., 0],
        iou_dense_N=_column(table, "iou_dense"),
        iou_larger_N=_column(table, "iou_larger"),
        entropies={name: _column(table, name.lower()) for name in ("H_Y", "H_A", "H_Xp", "H_Theta")},
    )


def _matrix(table: pa.Table, name: str, rows: int, parts: int) -> np.ndarray:
    """A list column as fp32, rows x parts x the rest."""
    values = table[name].combine_chunks()
    flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(rows, parts, -1) if rows else np.zeros((0, parts, 1), np.float32)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy().astype(np.float64)


def _items(image: LabelledImage, ways: Sequence[str]) -> dict[str, PoolItem]:
    """What the image is called in the store, by image_id: one item for each way (settings) of making its rows.

    It is known by its labels and what is in its file, wherever that lies. Another way, or other pixels under the
    same labels, is another item beside this one.
    """
    fingerprint = image.fingerprint  # reads the file: once a call
    items = {}
    for way in ways:
        made = hashlib.blake2b(way.encode(), digest_size=4).hexdigest()
        text = f"{image.digest}/{made}/{image.name}\0{fingerprint}"
        image_id = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        items[image_id] = PoolItem(f"{fingerprint}/{made}/{image.name}", fingerprint)
    return items


def _sample_id(image_id: str, row: dict[str, Any]) -> str:
    """Identity of a sample: the same image, object and point give the same 32 hex digits."""
    text = f"{image_id}\n{row['object']}\n{row['point_x'].hex()}\n{row['point_y'].hex()}\n{row['prompt']}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _chunks(items: Sequence[PoolItem], size: int) -> Iterator[list[PoolItem]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
