"""The tasks of triage: decide on all masks, and mend a shard of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.tasks import exponential_backoff

from tasks.label_shard import DEVICE_LIMIT
from tasks.retrying import may_help_to_retry

if TYPE_CHECKING:
    from engine.store import Store
    from engine.triage.costs import Costs
    from engine.triage.mending import RepairReport
    from engine.triage.repair import Mender
    from engine.triage.shard_reader import ShardReader
    from engine.triage.triage import DecisionTotal


@task(
    name="triage-masks",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def triage_masks(
    store: Store,
    model: str,
    costs: Costs,
    remedies: tuple[str, ...],
    progress: Callable[[int, int], None] | None = None,
) -> list[DecisionTotal]:
    """See `engine.triage.triage.triage_masks`."""
    from engine.triage.triage import triage_masks as decide

    totals = decide(store, model, costs, remedies, progress=progress)
    get_run_logger().info("%s", ", ".join(f"{of.decision} {of.masks}" for of in totals))
    return totals


@task(
    name="mend-shard",
    task_run_name="mend-{number}",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def mend_shard(
    number: int, reader: ShardReader, image_ids: Sequence[str], menders: Mapping[str, Mender]
) -> RepairReport:
    """See `engine.triage.mending.mend_images`."""
    from engine.triage.mending import mend_images

    with concurrency(DEVICE_LIMIT, occupy=1, strict=False):
        report = mend_images(reader, image_ids, menders)
    for name, why in report.left_out:
        get_run_logger().warning("%s is left out: %s", name, why)
    return report
