"""The tasks that send masks to people and fetch their answers: tried again where the server failed in passing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks.retrying import may_help_to_retry

if TYPE_CHECKING:
    from engine.review.pull import PullReport
    from engine.review.push import PushReport
    from engine.review.queue import ReviewQueue
    from engine.store import Store
    from schemas.settings import AcquisitionSettings

LABELS_RETURNED = "gapmap.labels.returned"
"""The event that tells of new answers."""
SECRET = "label-studio-api-key"
"""Name of the Prefect secret that holds the token, where LABEL_STUDIO_API_KEY does not."""


def find_token() -> str | None:
    """Token of Label Studio from the environment, else from Prefect's secret; None where neither is there."""
    if token := os.environ.get("LABEL_STUDIO_API_KEY"):
        return token
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(SECRET).get())  # type: ignore[union-attr]
    except ValueError:  # no such block
        return None


@task(
    name="push-masks",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def push(
    store: Store,
    queue: ReviewQueue,
    budget: int,
    acquisition: AcquisitionSettings,
    model: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> PushReport:
    """See `engine.review.push.push_masks`; answers that it fetches are told as an event."""
    from engine.review.push import push_masks

    log = get_run_logger()

    def pulled(fetched: PullReport) -> None:
        log.info("%d answers: %s", fetched.answers, dict(fetched.verdicts))
        _tell(store, fetched)

    report = push_masks(
        store, queue, budget, acquisition=acquisition, model=model, progress=progress, pulled=pulled
    )
    log.info(
        "%d masks in %d items sent, %d wait, %d items renewed, %d closed",
        report.masks,
        report.items,
        report.waiting,
        report.renewed,
        report.closed,
    )
    for name, why in report.left_out:
        log.warning("%s is left out: %s", name, why)
    return report


@task(
    name="pull-answers",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def pull(store: Store, queue: ReviewQueue, progress: Callable[[int], None] | None = None) -> PullReport:
    """See `engine.review.pull.pull_answers`; new answers are told as an event."""
    from engine.review.pull import pull_answers

    report = pull_answers(store, queue, progress=progress)
    get_run_logger().info("%d answers: %s", report.answers, dict(report.verdicts))
    if report.strangers:
        get_run_logger().warning("%d tasks among the answers were never sent to this queue", report.strangers)
    if report.answers:
        _tell(store, report)
    return report


def _tell(store: Store, report: PullReport) -> None:
    from prefect.events import emit_event

    payload: dict[str, Any] = {"answers": report.answers, "verdicts": dict(report.verdicts)}
    payload |= {"store": store.files.label, "queue": report.queue}
    emit_event(
        event=LABELS_RETURNED,
        resource={"prefect.resource.id": "gapmap.labels", "prefect.resource.name": report.queue},
        payload=payload,
    )
