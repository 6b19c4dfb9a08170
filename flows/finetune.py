"""Fine-tuning as a Prefect flow: labels and pseudo-labels in, a new version of the model with heads and refiner out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed
from pydantic import BaseModel, Field

from schemas.fitting_settings import REFIT_SCENES, REFIT_STEPS
from schemas.settings import FinetuneSettings
from tasks.learn_model import learn_model
from tasks.refit_version import refit_version

if TYPE_CHECKING:
    from engine.store import Store


class FinetuneSummary(BaseModel):
    """What came of it: the new model, where it lies, how the held-out groups were told before and after, and what was amiss."""

    model: str
    parent: str
    weights: str
    step: int
    held_out_iou: tuple[float, float]
    warnings: list[str] = []


@flow(name="finetune", persist_result=False)
def finetune(
    out: Annotated[str, Field(min_length=1, description="folder of the model's versions")],
    data: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            description="labelled images: COCO files or their folders; what people answered is in the store"
        ),
    ] = [],  # noqa: B006  Prefect shows it
    store: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Field(
            description="store with people's answers, the model's own masks and their maps; none to learn from data alone"
        ),
    ] = None,
    model: Annotated[
        str,
        Field(description="model to begin with: registry name, path or URL of a checkpoint, or current:NAME"),
    ] = "sam-nano",
    settings: Annotated[FinetuneSettings | None, Field(description="how it learns")] = None,
    most_uncertain: Annotated[
        float, Field(ge=0, le=1, description="masks of the store with a higher uncertainty are left out")
    ] = 1.0,
    refit: Annotated[
        bool, Field(description="fit a refiner and heads to the new version, from the same labels")
    ] = True,
    refiner_steps: Annotated[
        int, Field(ge=1, description="updates of the new version's refiner")
    ] = REFIT_STEPS,
    refit_scenes: Annotated[
        int,
        Field(ge=0, description="procedural scenes that refiner and heads are fitted to beside the labels"),
    ] = REFIT_SCENES,
    larger: Annotated[
        str | None,
        Field(description="the model that uncertain work goes to, for the heads; none: no model_gap"),
    ] = None,
    device: Annotated[
        str | None, Field(description="cuda, cuda:N, mps or cpu; best there is if not given")
    ] = None,
    least_new: Annotated[
        int,
        Field(ge=0, description="do nothing unless so many masks were answered since the last fine-tuning"),
    ] = 0,
    longest_wait_h: Annotated[
        float | None,
        Field(ge=0, description="or the oldest of these answers is so old, hours; never if not given"),
    ] = None,
    anew: Annotated[
        bool,
        Field(
            description="begin anew where a run with other labels or settings was killed; else that is refused"
        ),
    ] = False,
) -> FinetuneSummary | State:
    """Fine-tune a model on people's masks without forgetting what it knew.

    Of every labelled set a fifth of the groups is never learnt from, and of people's answers a fifth of the images. Killed at any moment, the same run goes
    on from its checkpoint in `out`. With `least_new`, a version that has no refiner or heads because a run was killed gets them, whatever was answered.
    """
    from engine.finetune import CHECKPOINT, find_unfitted
    from engine.learn.answers import find_latest_answer, read_lessons, why_wait
    from engine.learn.checkpoints import hold_models
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter, name_model
    from engine.pool import check_addresses
    from engine.promotion import CURRENT, resolve_model
    from engine.store import Store
    from schemas.errors import ConfigError

    check_addresses(models_folder=out, labelled_set=data, store=store, model=model, larger_model=larger)
    keep_freed_memory()
    log = get_run_logger()
    target = Store(store) if store is not None else None
    if target is not None:
        target.check_exists()

    def why_skip(name: str) -> str:
        return why_wait(target, name, least_new, longest_wait_h) if target is not None and least_new else ""

    def find_left(name: str) -> dict[str, Any] | None:
        return find_unfitted(target, name, Path(out)) if target is not None and refit else None

    def finish(weights: Path) -> None:
        """The checkpoint goes last: until then the run can be killed, and what it fitted stays."""
        checkpoint = Path(out) / CHECKPOINT
        if refit:
            since = checkpoint.stat().st_mtime
            refit_version(weights, paths, store, refiner_steps, refit_scenes, larger, device, since)
        checkpoint.unlink(missing_ok=True)

    paths = [Path(path) for path in data]
    name = model.removeprefix(CURRENT) if model.startswith(CURRENT) else name_model(model)
    if (why := why_skip(name)) and find_left(name) is None:
        return Completed(name="Skipped", message=why)
    with hold_models(Path(out)):
        segmenter = load_segmenter(resolve_model(target, model) if target else model, device=device)
        if why := why_skip(segmenter.name):  # another run has learnt from them while this one waited
            if (left := find_left(segmenter.name)) is None:
                return Completed(name="Skipped", message=why)
            finish(Path(left["source"]))
            return summarise_version(left, target)
        answered_until = find_latest_answer(target) if target else None
        sets = read_lessons(paths, target)
        if not sets:
            raise ConfigError(
                "There is nothing to learn from: no labelled images are given, and the store has no answers."
            )
        how = settings or FinetuneSettings()
        made = learn_model(segmenter, sets, target, how, Path(out), most_uncertain, answered_until, anew)
        summary = summarise_version(made.record, target)
        log.info("%s from %s: %s", summary.model, summary.parent, summary.weights)
        for text in summary.warnings:
            log.warning(text)
        finish(made.path)
    return summary


def summarise_version(record: Mapping[str, Any], store: Store | None) -> FinetuneSummary:
    """What came of a fine-tuning, with a store or without one, from its row of the table `models`."""
    from engine.finetune import warn_of_learning

    metrics = json.loads(record["metrics"])
    looks = {looked["step"]: looked["iou"] for looked in metrics["history"]}
    return FinetuneSummary(
        model=record["model"],
        parent=record["parent"],
        weights=record["source"],
        step=metrics["step"],
        held_out_iou=(looks[0], looks[metrics["step"]]),
        warnings=warn_of_learning(record) if store else [],
    )
