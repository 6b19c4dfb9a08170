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

from engine.learn.data import LabelledImage
from engine.learn.gap_targets import TargetMaker
from engine.models.segmenter import Segmenter
from engine.store import Store
from engine.store.image_rows import IMAGE_ROWS, image_row
from engine.uncertainty.features import FEATURES
from schemas.records import PoolItem
from schemas.tables import TOKENS

_SHARD = 16

_TOKEN_ROWS = pa.schema([f for f in TOKENS if f.name not in ("model", "attempt")])


@dataclass(frozen=True)
class Samples:
    """Samples of one model as arrays: N prompts, M = 3 outputs of each.

    Attributes:
        data_N, group_N: set and group of each sample's image; groups carry their set's name, so none is in two sets.
        central_N: whether the prompt is the object's central one.
        inputs_NMI: IoU token, the output's own mask token, features; fp32.
        sam_score_NM, entropy_NM, iou_NM, iou_nearest_NM: see the `tokens` table.
        iou_dense_N, iou_larger_N: what a fix gives; NaN where there is no larger model.
        entropies: the Monte-Carlo entropies by name (`H_Theta` …); NaN where not asked for.
    """

    data_N: np.ndarray
    group_N: np.ndarray
    central_N: np.ndarray
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
        sets: labelled images by name of their set.
        segmenter: whose tokens they are.
        maker: makes the rows; other settings of it make the rows anew.
        progress: called with (images done, images in all).
    """
    described = {**maker.describe(), "features": FEATURES}
    settings = json.dumps(described, sort_keys=True)
    # Rows with baselines serve those who ask without, and may not be hidden by rows that have less.
    also = [settings, json.dumps({**described, "baselines": True}, sort_keys=True)]
    work = {_item(image): (name, image) for name, images in sets.items() for image in images}
    missing = list(work)
    for made_with in dict.fromkeys(also):
        missing = store.find_done(segmenter.model_id, made_with).pending(missing)
    finished = len(work) - len(missing)
    for shard in _chunks(missing, _SHARD):
        images, rows = [], []
        for item in shard:
            name, image = work[item]
            image_id = _image_id(item)
            for row in maker.make_rows(image):
                identity = _sample_id(image_id, row)
                rows.append({**row, "image_id": image_id, "sample_id": identity, "data": name})
            images.append(image_row(item, settings, image_id=image_id))
            finished += 1
            if progress:
                progress(finished, len(work))
        store.commit_shard(
            segmenter.model_id,
            pa.Table.from_pylist(images, IMAGE_ROWS),
            {"tokens": pa.Table.from_pylist(rows, _TOKEN_ROWS)},
        )
    return _read(store, segmenter.model_id, also, {_image_id(item): name for item, (name, _) in work.items()})


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


def _read(store: Store, model: str, settings: Sequence[str], set_of: Mapping[str, str]) -> Samples:
    """Samples of these images, whose set is given by image_id; in a fixed order."""

    def read(snapshot: Any) -> pa.Table:
        return snapshot.con.sql(
            """SELECT t.* FROM tokens t SEMI JOIN (FROM images WHERE model = $1 AND list_contains($2, settings)) i
            ON t.image_id = i.image_id WHERE t.model = $1 AND list_contains($3, t.image_id) ORDER BY sample_id""",
            params=[model, list(settings), list(set_of)],
        ).to_arrow_table()

    table = store.read(read)
    n = len(table)
    text = {name: np.array(table[name].to_pylist(), object).astype(str) for name in ("group", "prompt")}
    text["data"] = np.array([set_of[image_id] for image_id in table["image_id"].to_pylist()], str)
    iou_token_NC = _matrix(table, "iou_token", n, 1)
    tokens_N4C = _matrix(table, "mask_tokens", n, 4)
    features_NMF = _matrix(table, "features", n, 3)
    inputs_NMI = np.concatenate(
        [np.repeat(iou_token_NC, 3, 1), tokens_N4C[:, 1:], features_NMF], 2, dtype=np.float32
    )
    return Samples(
        data_N=text["data"],
        group_N=np.char.add(np.char.add(text["data"], "/"), text["group"]),
        central_N=text["prompt"] == "central",
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


def _item(image: LabelledImage) -> PoolItem:
    # An image is known by its labels, whatever its set is called.
    return PoolItem(f"{image.digest}/{image.name}", image.fingerprint)


def _image_id(item: PoolItem) -> str:
    return hashlib.blake2b(f"{item.uri}\0{item.fingerprint}".encode(), digest_size=16).hexdigest()


def _sample_id(image_id: str, row: dict[str, Any]) -> str:
    """Identity of a sample: the same image, object and point give the same 32 hex digits."""
    text = f"{image_id}\n{row['object']}\n{row['point_x'].hex()}\n{row['point_y'].hex()}\n{row['prompt']}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _chunks(items: Sequence[PoolItem], size: int) -> Iterator[list[PoolItem]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
