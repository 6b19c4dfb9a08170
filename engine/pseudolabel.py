"""Pseudo-labels for a shard of images: read, mask, score, commit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from engine.mask_maker import MaskMaker
from engine.models.export import describe_model
from engine.pool import Outcome, prefetch
from engine.store import DoneIndex, LostMasksError, Store
from engine.store.image_rows import IMAGE_ROWS, image_row
from schemas.errors import ConfigError, ImageError, TransientError
from schemas.records import PoolImage, PoolItem
from schemas.settings import PoolSettings

OnImage = Callable[[int, int, int], None]

_REMEMBERED = 200_000


@dataclass
class ShardReport:
    """What labelling a shard came to. `errors` counts unusable images by kind, `failed` names them, each with its
    reason; `reused` images had their masks in the store already, under another name."""

    images: int = 0
    masks: int = 0
    reused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)


class _Place(NamedTuple):
    """How many masks a content has, and the attempt they lie in: None for the shard in the making."""

    n_masks: int
    attempt: str | None


@dataclass
class _Shard:
    """A shard in the making. `known` says, for each content, where its masks lie."""

    image_rows: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    known: dict[str, _Place] = field(default_factory=dict)
    report: ShardReport = field(default_factory=ShardReport)


class Pseudolabeller:
    """One model with its settings, writing to one store: label shards with it one after another.

    It remembers the contents it has masked, so that a copy in a later shard is not masked again: about 220
    bytes each, up to two hundred thousand of them; then the store is asked what it holds, which takes 65.

    Args:
        maker: makes the rows.
        store: where they go.
        pool: how large a file may be.
        batch_size: images read, embedded and decoded together.
    """

    def __init__(
        self,
        maker: MaskMaker,
        store: Store,
        pool: PoolSettings,
        *,
        batch_size: int = 4,
    ) -> None:
        self._maker = maker
        self._store = store
        self._pool = pool
        self._batch_size = batch_size
        self._done: DoneIndex | None = None
        self._retry_errors = False
        self._last_read: PoolItem | None = None
        # What is newer than `_done`: contents committed since, and None for those whose masks are gone.
        self._since: dict[str, _Place | None] = {}

    def find_done(self, *, retry_errors: bool = False) -> DoneIndex:
        """What the store holds of this model and these settings.

        Args:
            retry_errors: leave out images that could not be used, so that they are tried again.
        """
        self._retry_errors = retry_errors
        self._done = None  # the old one makes room first
        self._done = self._store.find_done(
            self._maker.model_id, self._maker.settings, retry_errors=retry_errors
        )
        self._since.clear()
        return self._done

    def find_pending(self, items: Sequence[PoolItem]) -> list[PoolItem]:
        """Those of a batch that the store did not hold when it was last asked."""
        done = self._done if self._done is not None else self.find_done(retry_errors=self._retry_errors)
        return done.pending(items)

    def record_model(self) -> None:
        """Put the model's row into the `models` table."""
        self._store.record_model(describe_model(self._maker.segmenter))

    def label(
        self,
        items: Sequence[PoolItem],
        on_image: OnImage | None = None,
        *,
        give_up: bool = False,
        elsewhere: Sequence[PoolItem] = (),
    ) -> ShardReport:
        """Label the images and commit them with their masks as one shard.

        Args:
            on_image: called with (images, masks, errors) done since the last call; with negative numbers
                when the shard fails, so that a retry does not count twice.
            give_up: record files that the storage keeps failing for as `unreachable`. When it fails for all
                of them, only if what was read last can still be read, or, of a run that has read nothing,
                one of `elsewhere`: a storage that is away tells nothing of its files.
            elsewhere: a few files of the pool from all over it.

        Raises:
            TransientError: the pool or the store failed in passing; nothing was committed.
            ConfigError: the device has too little memory, or the store cannot be written.
        """
        if len(self._since) >= _REMEMBERED:
            self.find_done(retry_errors=self._retry_errors)
        while True:
            try:
                return self._label_shard(items, on_image, give_up, elsewhere)
            except LostMasksError as error:  # of copies, since they were looked up: mask them here
                self._since.update(dict.fromkeys(error.image_ids))

    def _label_shard(
        self,
        items: Sequence[PoolItem],
        on_image: OnImage | None,
        give_up: bool,
        elsewhere: Sequence[PoolItem],
    ) -> ShardReport:
        shard = _Shard()
        try:
            for batch in _batches(prefetch(items, self._pool, give_up=give_up), self._batch_size):
                counts = self._label_batch(batch, shard)
                if on_image:
                    on_image(*counts)
            report = shard.report
            if report.errors["unreachable"] == report.images > 0 and not self._can_read(items, elsewhere):
                raise TransientError(
                    "The pool's storage fails for every image of the shard, and no other file of it could be read. Run it again later."
                )
            images = pa.Table.from_pylist(shard.image_rows, IMAGE_ROWS)
            tables = {name: pa.concat_tables(parts) for name, parts in shard.tables.items()}
            attempt = self._store.commit_shard(self._maker.model_id, images, tables)
        except BaseException:
            if on_image:
                on_image(-shard.report.images, -shard.report.masks, -shard.report.errors.total())
            raise
        for image_id, place in shard.known.items():
            if place.attempt is None:
                self._since[image_id] = _Place(place.n_masks, attempt)
        return report

    def _can_read(self, failed: Sequence[PoolItem], elsewhere: Sequence[PoolItem]) -> bool:
        """Whether the storage answers for other files than those it failed for."""
        if self._last_read:
            others = [self._last_read]
        else:
            uris = {item.uri for item in failed}
            others = [item for item in elsewhere if item.uri not in uris]
        try:
            outcomes = prefetch(others, self._pool, give_up=True)
            return any(isinstance(of, PoolImage) or of[1].kind != "unreachable" for of in outcomes)
        except ConfigError:  # it refuses the credentials, so it is there
            return True

    def _label_batch(self, batch: list[Outcome], shard: _Shard) -> tuple[int, int, int]:
        """Add a batch to the shard; returns (images, masks, errors). Equal contents are masked once."""
        read = [outcome for outcome in batch if isinstance(outcome, PoolImage)]
        failed = [outcome for outcome in batch if not isinstance(outcome, PoolImage)]
        if read:
            self._last_read = read[-1].item
        fresh = {image.image_id: image for image in reversed(read) if image.image_id not in shard.known}
        elsewhere = self._find_committed(fresh)
        new = [image for image_id, image in fresh.items() if image_id not in elsewhere]
        made = self._maker.make([(image.image_id, image.pixels) for image in new])
        for image, tables in zip(new, made, strict=True):
            for name, table in tables.items():
                shard.tables.setdefault(name, []).append(table)
            shard.known[image.image_id] = _Place(len(tables["masks"]), None)
        shard.known.update(elsewhere)
        shard.image_rows += [self._image_row(image, shard.known[image.image_id]) for image in read]
        shard.image_rows += [self._error_row(item, error) for item, error in failed]
        counts = len(batch), sum(len(tables["masks"]) for tables in made), len(failed)
        shard.report.images += counts[0]
        shard.report.masks += counts[1]
        shard.report.reused += len(read) - len(new)
        shard.report.errors.update(error.kind for _, error in failed)
        shard.report.failed += [(item.uri, str(error)) for item, error in failed]
        return counts

    def _find_committed(self, image_ids: Iterable[str]) -> dict[str, _Place]:
        """Where the masks of contents lie that were committed before this run or by it."""
        places = {image_id: self._since[image_id] for image_id in image_ids if image_id in self._since}
        if self._done:
            rest = [image_id for image_id in image_ids if image_id not in places]
            for image_id, row in self._done.find_content(rest).items():
                places[image_id] = _Place(row["n_masks"], row["attempt"])
        return {image_id: place for image_id, place in places.items() if place is not None}

    def _image_row(self, image: PoolImage, known: _Place) -> dict[str, Any]:
        height, width = image.pixels.shape[:2]
        return image_row(
            image.item,
            self._maker.settings,
            image_id=image.image_id,
            file_bytes=image.file_bytes,
            width=width,
            height=height,
            mode=image.mode,
            n_masks=known.n_masks,
            attempt=known.attempt,
        )

    def _error_row(self, item: PoolItem, error: ImageError) -> dict[str, Any]:
        return image_row(item, self._maker.settings, error_kind=error.kind, error=str(error))


def _batches(outcomes: Iterable[Any], size: int) -> Iterator[list[Any]]:
    outcomes = iter(outcomes)
    while batch := list(itertools.islice(outcomes, size)):
        yield batch
