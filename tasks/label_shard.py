"""The task that labels one shard of images: the unit that is retried, limited and committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff

from tasks.retrying import may_help_to_retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.pseudolabel import Pseudolabeller, ShardReport
    from schemas.records import PoolItem
    from tasks.progress import RunProgress

DEVICE_LIMIT = "gapmap-device"
"""Name of the global concurrency limit that keeps runs from sharing a device; without such a limit there is none."""

_RETRIES = 4


@task(
    name="label-shard",
    task_run_name="shard-{number}",
    retries=_RETRIES,
    retry_delay_seconds=exponential_backoff(5),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,  # the store says what is done, nothing else does
    persist_result=False,
)
def label_shard(
    number: int,
    items: list[PoolItem],
    labeller: Pseudolabeller,
    progress: RunProgress,
    elsewhere: Sequence[PoolItem] = (),
) -> ShardReport:
    """Label the images of one shard and commit them; killed or failed, nothing of it is visible.

    On the last try, files that the storage keeps failing for are recorded as `unreachable`, so that bad
    addresses do not hold up what is listed behind them; `elsewhere` tells them from a storage that is away.

    Raises:
        TransientError: the pool, the store or the device failed in passing; tried again.
        GapmapError: anything else that trying again would not mend.
    """
    last_try = (task_run.run_count or 1) > _RETRIES
    with concurrency(DEVICE_LIMIT, occupy=1, strict=False):
        return labeller.label(items, on_image=progress.advance, give_up=last_try, elsewhere=elsewhere)
