"""The main job as a Prefect flow: a pool of images in, masks with scores in the store.

The store alone says what is done: a run lists the pool, leaves out what is committed, and labels the
rest shard by shard, one task run a shard. Started again after whatever interruption, it goes on.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import BaseModel, Field

from schemas.records import PoolItem
from schemas.settings import GenerateSettings, PoolSettings
from tasks.label_shard import label_shard
from tasks.progress import RunProgress
from tasks.results import publish_results

_LISTED_AT_ONCE = 10_000
_FAILED_TOLD = 3
_SPREAD = 16  # files that tell whether the pool's storage answers: one round of reading from far away


class RunSummary(BaseModel):
    """What a run did. `errors` counts this run's failed images by kind, `failed` has the first few with their reasons;
    `reused` had their masks already (the same bytes under another name); `seconds` it took to label, by the clock."""

    model: str
    store: str
    images: int = 0
    masks: int = 0
    reused: int = 0
    errors: dict[str, int] = {}
    failed: list[tuple[str, str]] = []
    done_before: int = 0
    seconds: float = 0.0
    shards: int = 0


@flow(name="pseudolabel", persist_result=False)
def pseudolabel(
    pool: Annotated[
        str,
        Field(min_length=1, description="folder, bucket or list of images: any fsspec URL, globs allowed"),
    ],
    store: Annotated[str, Field(min_length=1, description="where the tables go: a folder or any fsspec URL")],
    model: Annotated[
        str,
        Field(
            description="registry name (gapmap models), path or URL of a checkpoint, or current:NAME = the version in use"
        ),
    ] = "sam-nano",
    generate: Annotated[
        GenerateSettings | None, Field(description="generator settings; what is not set is the model's own")
    ] = None,
    files: Annotated[
        PoolSettings | None, Field(description="which files are images, and how large one may be")
    ] = None,
    shard_size: Annotated[int, Field(ge=1, le=4096, description="images committed together")] = 64,
    batch_size: Annotated[int, Field(ge=1, le=256, description="images encoded together")] = 4,
    limit: Annotated[
        int | None, Field(ge=1, description="stop after this many images; the next run goes on")
    ] = None,
    device: Annotated[
        str | None, Field(description="cuda, cuda:N, mps or cpu; best there is if not given")
    ] = None,
    retry_errors: Annotated[
        bool, Field(description="try images again that earlier runs could not read")
    ] = False,
    heads: Annotated[
        str | None,
        Field(
            description="file or URL of the heads that score the masks, or none; those beside the weights if not given"
        ),
    ] = None,
    maps: Annotated[
        str | None,
        Field(
            description="file or URL of the refiner that draws uncertainty maps, self (the model itself) or none; the "
            "refiner beside the weights, else self, if not given"
        ),
    ] = None,
) -> RunSummary:
    """Label every image of the pool that the store does not hold yet for this model and these settings.

    Storage credentials come from the environment or fsspec's own configuration, never from parameters:
    Prefect keeps parameters in its database. A path that is not absolute is taken from where the flow runs: of
    a deployment, the checkout.
    """
    from engine.mask_maker import MaskMaker
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.pool import check_addresses, list_pool
    from engine.promotion import resolve_model
    from engine.pseudolabel import Pseudolabeller
    from engine.store import Store
    from engine.uncertainty.head_files import find_heads
    from engine.uncertainty.refiner_files import find_refiner

    check_addresses(pool=pool, store=store, model=model, heads_file=heads, refiner_file=maps)
    keep_freed_memory()
    log = get_run_logger()
    files = files or PoolSettings()
    target = Store(store)
    segmenter = load_segmenter(resolve_model(target, model), device=device)
    maker = MaskMaker(
        segmenter,
        generate or GenerateSettings(),
        find_heads(segmenter, _fetch(heads)),
        find_refiner(segmenter, _fetch(maps)),
    )
    labeller = Pseudolabeller(maker, target, files, batch_size=batch_size)
    labeller.find_done(retry_errors=retry_errors)

    # The pool is listed twice, so that a pool of any size has a known end without being held in memory.
    listed = total = 0
    spread: list[PoolItem] = []
    for batch in _batches(list_pool(pool, files)):
        listed += len(batch)
        total += len(labeller.find_pending(batch))
        spread = _draw([*spread, *batch])
    to_do = min(total, limit) if limit else total
    log.info(
        "%d images listed, %d done before, %d to do with %s",
        listed,
        listed - total,
        to_do,
        segmenter.model_id,
    )
    progress = RunProgress(to_do, listed - total, log.info)
    labeller.record_model()
    summary = RunSummary(model=segmenter.model_id, store=target.files.label, done_before=listed - total)
    errors: Counter[str] = Counter()
    batches = _batches(list_pool(pool, files))
    pending = itertools.chain.from_iterable(labeller.find_pending(batch) for batch in batches)
    work = itertools.islice(pending, limit)
    while shard := list(itertools.islice(work, shard_size)):
        report = label_shard(summary.shards, shard, labeller, progress, spread)
        errors.update(report.errors)
        summary.failed = [*summary.failed, *report.failed][:_FAILED_TOLD]
        summary.shards += 1
        summary.images += report.images
        summary.masks += report.masks
        summary.reused += report.reused
        if summary.shards % 20 == 1:
            progress.publish()
    summary.errors = dict(errors)
    if summary.images:
        progress.advance()  # the bar ends with the same speed
    summary.seconds = progress.seconds
    progress.publish()
    publish_results(target, summary.model_dump())
    return summary


def _fetch(address: str | None) -> str | None:
    """What is at a URL as a local file; all else as it is."""
    from engine.models.download import local_copy

    return str(local_copy(address)) if address and "://" in address else address


def _draw(items: Iterable[PoolItem]) -> list[PoolItem]:
    """A few items from all over the pool: as good as drawn at random, and drawn from those drawn before they are the same."""
    return heapq.nsmallest(_SPREAD, items, key=lambda item: zlib.crc32(item.uri.encode()))


def _batches(items: Iterable[PoolItem]) -> Iterator[list[PoolItem]]:
    items = iter(items)
    while batch := list(itertools.islice(items, _LISTED_AT_ONCE)):
        yield batch
