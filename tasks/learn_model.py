"""The task that fine-tunes a model: long, killed at will, gone on with from its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.tasks import exponential_backoff

from tasks.label_shard import DEVICE_LIMIT
from tasks.retrying import may_help_to_retry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engine.finetune import FinetunedModel
    from engine.learn.data import LabelledImage
    from engine.models.segmenter import Segmenter
    from engine.store import Store
    from schemas.settings import FinetuneSettings


@task(
    name="learn-model",
    retries=3,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=may_help_to_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def learn_model(
    segmenter: Segmenter,
    sets: Mapping[str, Sequence[LabelledImage]],
    store: Store | None,
    settings: FinetuneSettings,
    out: Path,
    most_uncertain: float,
    answered_until: datetime | None,
    anew: bool = False,
) -> FinetunedModel:
    """Fine-tune, and record the new version in the store; see `engine.finetune.finetune_model`.

    The checkpoint is left, for the caller to remove when there is nothing more to do. With `anew`, one of other labels or settings
    is removed: nobody is there who could decide.
    """
    from engine.finetune import finetune_model
    from engine.learn.checkpoints import StaleCheckpointError
    from tasks.progress import tell_steps

    log = get_run_logger()
    artifact = create_progress_artifact(
        0.0, key="learning", description=f"fine-tuning of {segmenter.model_id}"
    )
    told = -1.0

    def progress(done: int, total: int, looked: dict[str, float]) -> None:
        nonlocal told
        how = f"loss {looked['loss']:.3f}" if looked["step"] else ""
        tell_steps(
            done, total, how + (f", held-out IoU {looked['iou']:.3f}" if how and looked["iou"] else "")
        )
        if looked["step"] != told:
            told = looked["step"]
            update_progress_artifact(artifact, 100 * done / total)  # type: ignore[arg-type]
            log.info(
                "update %d of %d: loss %.3f, held-out IoU %.3f", done, total, looked["loss"], looked["iou"]
            )

    def learn() -> FinetunedModel:
        return finetune_model(
            segmenter,
            sets,
            store,
            settings,
            out,
            most_uncertain=most_uncertain,
            answered_until=answered_until,
            progress=progress,
        )

    with concurrency(DEVICE_LIMIT, occupy=1, strict=False):
        try:
            made = learn()
        except StaleCheckpointError as error:
            if not anew:
                raise
            log.warning("%s was of other labels or settings: it begins anew", error.path)
            error.path.unlink()
            made = learn()
    if store is not None:
        store.record_model(made.record)
    update_progress_artifact(artifact, 100.0)  # type: ignore[arg-type]
    return made
