"""The task that gives a new version a refiner and heads of its own."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.tasks import exponential_backoff

from schemas.fitting_settings import HeadSettings, RefinerSettings
from tasks.label_shard import DEVICE_LIMIT
from tasks.progress import tell_steps
from tasks.retrying import may_help_to_retry


@task(
    name="refit-version",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def refit_version(
    weights: Path,
    data: list[Path],
    store: str | None,
    refiner_steps: int,
    scenes: int,
    larger: str | None,
    device: str | None,
    kept_since: float,
) -> None:
    """A refiner and heads of a new version, beside its weights: its tokens mean something else than its parent's.

    Those that were written from `kept_since` on, seconds since the epoch, stay as they are.
    """
    from engine.fitted_heads import make_heads
    from engine.fitted_refiner import make_refiner
    from engine.learn.checkpoints import StaleCheckpointError
    from engine.store import Store
    from engine.uncertainty.head_files import SUFFIX as HEADS
    from engine.uncertainty.refiner_files import SUFFIX as REFINER

    def progress(what: str, done: int, total: int) -> None:
        tell_steps(done, total, what)

    def is_kept(suffix: str) -> bool:
        path = weights.with_name(weights.stem + suffix)
        return path.is_file() and path.stat().st_mtime >= kept_since

    def fit_refiner() -> None:
        settings = RefinerSettings(steps=refiner_steps)
        made = make_refiner(
            model, data, answers, scenes, settings, replace=True, device=device, progress=progress
        )
        log.info("refiner: %s, held-out IoU %.3f to %.3f", made.path, made.fit.iou_before, made.fit.iou_after)

    log = get_run_logger()
    model, answers = str(weights), Store(store) if store else None
    with concurrency(DEVICE_LIMIT, occupy=1, strict=False):
        if not is_kept(REFINER):
            try:
                fit_refiner()
            except StaleCheckpointError as error:  # more was answered since it was killed
                error.path.unlink()
                fit_refiner()
        if not is_kept(HEADS):
            tokens = Store(str(weights.parent / "tokens"))
            settings = HeadSettings()
            heads, _ = make_heads(
                model,
                larger,
                data,
                answers,
                scenes,
                tokens,
                settings,
                replace=True,
                device=device,
                progress=progress,
            )
            log.info("heads: %s", heads)
