"""The task that judges a fine-tuned version, and puts it into use where it passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.tasks import exponential_backoff

from tasks.label_shard import DEVICE_LIMIT
from tasks.progress import tell_steps
from tasks.retrying import may_help_to_retry

if TYPE_CHECKING:
    from engine.store import Store


@task(
    name="judge-version",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def judge_version(
    store: Store,
    model: str,
    weights: str,
    data: Sequence[Path],
    name: str,
    images: int | None,
    device: str | None,
) -> dict[str, Any]:
    """See `engine.judging.judge_version`; whether it was promoted, why, and the numbers.

    What was decided already is not decided again. Where nothing can be kept out to judge on, it is not promoted; all else that is
    in the way can be mended, and judging tried again.
    """
    from engine.judging import NothingKeptOutError
    from engine.judging import judge_version as judge
    from engine.promotion import find_current, find_decision

    if decided := find_decision(store, name, model):  # a run that was killed had come so far
        numbers = json.loads(decided["numbers"] or "{}").get("differences", [])
        if decided["action"] != "refused" and find_current(store, name).model != model:
            return {"promoted": False, "reason": "it was promoted and put back", "differences": numbers}
        promoted = decided["action"] != "refused"
        return {"promoted": promoted, "reason": decided["reason"], "differences": numbers}

    with concurrency(DEVICE_LIMIT, occupy=1, strict=False):
        try:
            verdict = judge(
                store, weights, data, name=name, images=images, device=device, progress=tell_steps
            )
        except NothingKeptOutError as error:
            get_run_logger().warning("not promoted: %s", error)
            return {"promoted": False, "reason": str(error)}
    get_run_logger().info("%s: %s", "promoted" if verdict.passed else "refused", verdict.reason)
    return {"promoted": verdict.passed, "reason": verdict.reason, "differences": verdict.numbers}
