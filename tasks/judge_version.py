"""The task that judges a fine-tuned version, and puts it into use where it passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from tasks.label_shard import DEVICE_LIMIT
from tasks.progress import tell_steps

if TYPE_CHECKING:
    from engine.store import Store


@task(name="judge-version", cache_policy=NO_CACHE, persist_result=False)
def judge_version(
    store: Store, weights: str, data: Sequence[Path], name: str, images: int | None, device: str | None
) -> dict[str, Any]:
    """See `engine.judging.judge_version`; whether it was promoted, why, and the numbers.

    Where nothing can be kept out to judge on, it is not promoted.
    """
    from engine.judging import judge_version as judge
    from schemas.errors import ConfigError

    with concurrency(DEVICE_LIMIT, occupy=1, strict=False):
        try:
            verdict = judge(store, weights, data, name=name, images=images, device=device, progress=tell_steps)
        except ConfigError as error:
            get_run_logger().warning("not promoted: %s", error)
            return {"promoted": False, "reason": str(error)}
    get_run_logger().info("%s: %s", "promoted" if verdict.passed else "refused", verdict.reason)
    return {"promoted": verdict.passed, "reason": verdict.reason, "differences": verdict.numbers}
