"""Pseudo-labels for a shard of images: read, mask, score, commit."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from engine.generate import generate_masks, mask_rows
from engine.models.segmenter import Segmenter
from engine.pool import prefetch
from engine.store import DoneIndex, Store
from schemas.errors import ConfigError, ImageError
from schemas.records import PoolImage, PoolItem
from schemas.settings import GenerateSettings, PoolSettings
from schemas.tables import MASKS

OnImage = Callable[[int, int, int], None]


@dataclass
class ShardReport:
    """What labelling a shard came to. `errors` counts unusable images by kind; `reused` images had their
    masks in the store already, under another name."""

    images: int = 0
    masks: int = 0
    reused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Pseudolabeller:
    """One model with its settings, writing to one store. Holds the model; label shards with it one after another."""

    def __init__(
        self,
        segmenter: Segmenter,
        store: Store,
        generate: GenerateSettings,
        pool: PoolSettings,
        *,
        batch_size: int = 4,
    ) -> None:
        self._segmenter = segmenter
        self._store = store
        self._generate = generate
        self._pool = pool
        self._batch_size = batch_size
        self._done: DoneIndex | None = None

    def find_done(self, *, retry_errors: bool = False) -> DoneIndex:
        """What the store holds of this model and these settings.

        Args:
            retry_errors: leave out images that could not be used, so that they are tried again.
        """
        self._done = self._store.done(
            self._segmenter.model_id, self._generate.canonical(), retry_errors=retry_errors
        )
        return self._done

    def commit_model(self) -> None:
        """Put the model's row into the `models` table."""
        model = self._segmenter
        self._store.commit_model(
            {
                "model": model.model_id,
                "name": model.name,
                "version": model.version,
                "package": model.package,
                "source": model.source,
                "sha256": model.sha256,
                "parameters": model.parameters,
                "image_size": model.image_size,
            }
        )

    def label(self, items: Sequence[PoolItem], on_image: OnImage | None = None) -> ShardReport:
        """Label the images and commit them with their masks as one shard.

        Args:
            on_image: called with (images, masks, errors) done since the last call.

        Raises:
            TransientError: the pool or the store failed in passing; nothing was committed.
            ConfigError: the device has too little memory, or the store cannot be written.
        """
        began = time.monotonic()
        report = ShardReport()
        image_rows: list[dict[str, Any]] = []
        mask_rows_: list[dict[str, Any]] = []
        seen: dict[str, dict[str, Any]] = {}
        tell = on_image or (lambda images, masks, errors: None)
        for batch in _batches(prefetch(items, self._pool), self._batch_size):
            fresh: dict[str, PoolImage] = {}
            for outcome in batch:
                if isinstance(outcome, tuple):
                    item, error = outcome
                    report.errors[error.kind] += 1
                    image_rows.append(self._error_row(item, error))
                elif outcome.image_id not in seen:
                    fresh[outcome.image_id] = outcome
            known = self._done.find_content(list(fresh)) if self._done else {}
            seen.update(known)
            report.reused += len(known)
            new = [image for image_id, image in fresh.items() if image_id not in known]
            for image, masks in zip(new, self._make_masks(new), strict=True):
                rows = mask_rows(
                    masks,
                    image_id=image.image_id,
                    model=self._segmenter.model_id,
                    image_size=image.pixels.shape[:2],
                )
                mask_rows_.extend(rows)
                report.masks += len(rows)
                seen[image.image_id] = {"n_masks": len(rows), "attempt": None}
            for outcome in batch:
                if not isinstance(outcome, tuple):
                    image_rows.append(self._image_row(outcome, seen[outcome.image_id]))
            failed = sum(isinstance(outcome, tuple) for outcome in batch)
            report.images += len(batch)
            tell(len(batch), sum(seen[i.image_id]["n_masks"] for i in new), failed)
        columns = [f for f in MASKS if f.name not in ("model", "attempt")]
        tables = {"masks": pa.Table.from_pylist(mask_rows_, schema=pa.schema(columns))}
        self._store.commit_shard(self._segmenter.model_id, pa.Table.from_pylist(image_rows), tables)
        report.seconds = time.monotonic() - began
        return report

    def _make_masks(self, images: list[PoolImage]) -> list[Any]:
        import torch

        try:
            return (
                generate_masks(self._segmenter, [image.pixels for image in images], self._generate)
                if images
                else []
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The device ran out of memory with {len(images)} images at once. Use a smaller --batch-size, "
                "a smaller model, or --device cpu."
            ) from error

    def _image_row(self, image: PoolImage, known: dict[str, Any]) -> dict[str, Any]:
        height, width = image.pixels.shape[:2]
        return {
            **self._item_row(image.item),
            "image_id": image.image_id,
            "file_bytes": image.file_bytes,
            "width": width,
            "height": height,
            "mode": image.mode,
            "n_masks": known["n_masks"],
            "attempt": known["attempt"],
        }

    def _error_row(self, item: PoolItem, error: ImageError) -> dict[str, Any]:
        return {**self._item_row(item), "n_masks": 0, "error_kind": error.kind, "error": str(error)}

    def _item_row(self, item: PoolItem) -> dict[str, Any]:
        return {
            "image_id": None,
            "uri": item.uri,
            "fingerprint": item.fingerprint,
            "file_bytes": item.file_bytes,
            "width": None,
            "height": None,
            "mode": None,
            "n_masks": 0,
            "error_kind": None,
            "error": None,
            "settings": self._generate.canonical(),
            "attempt": None,
        }


def _batches(outcomes: Iterable[Any], size: int) -> Iterator[list[Any]]:
    outcomes = iter(outcomes)
    while batch := list(itertools.islice(outcomes, size)):
        yield batch
