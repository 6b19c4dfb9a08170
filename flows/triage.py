"""Triage as a Prefect flow: decide on every mask, mend what a machine can, decide on what came of it."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import BaseModel, Field

from schemas.settings import TriageSettings
from tasks.progress import tell_steps
from tasks.triage_masks import mend_shard, triage_masks


class RepairCount(BaseModel):
    """Of one remedy: masks tried, those that hold instead of what they were made of, seconds of the machine."""

    tried: int
    held: int
    seconds: float


class TriageSummary(BaseModel):
    """What was decided: totals of each decision (masks, mean p_good, cost and gain in seconds of a person), and what was mended.

    `good_iou` is from which IoU a mask counted as good: the report of a round holds accepted masks against it, too.

    `unscored` masks have no predicted_iou, and `left_out` are pictures that could not be opened, and why. `warning` is there where
    nothing is left to people because they were slow.
    """

    model: str
    decisions: dict[str, dict[str, float]]
    repairs: dict[str, RepairCount]
    good_iou: float
    threshold: float
    answers: int
    warning: str = ""
    unscored: int = 0
    left_out: list[tuple[str, str]] = []


@flow(name="triage", persist_result=False)
def triage(
    store: Annotated[
        str, Field(min_length=1, description="store with scored masks: a folder or any fsspec URL")
    ],
    model: Annotated[
        str | None,
        Field(description="whose masks, name@version; those of the model that labelled last if not given"),
    ] = None,
    larger: Annotated[
        str | None,
        Field(
            description="the larger model, or none; the one that the heads' model_gap speaks of if not given"
        ),
    ] = None,
    settings: Annotated[
        TriageSettings | None, Field(description="costs to begin with; answers of people correct them")
    ] = None,
    shard_size: Annotated[int, Field(ge=1, le=4096, description="images mended and committed together")] = 32,
    device: Annotated[
        str | None, Field(description="cuda, cuda:N, mps or cpu; best there is if not given")
    ] = None,
) -> TriageSummary:
    """Decide on the masks of a model, mend with a larger model and better prompts what that is expected to pay for, decide again.

    Killed at any moment, the next run goes on with what is not mended yet.
    """
    from engine.models.allocator import keep_freed_memory
    from engine.pool import check_addresses
    from engine.promotion import load_labeller
    from engine.store import Store
    from engine.store.model_choice import newest_model
    from engine.triage.costs import learn_costs, warn_of_accepting
    from engine.triage.evidence import read_evidence
    from engine.triage.menders import find_menders
    from engine.triage.mending import RepairReport, find_pending
    from engine.triage.shard_reader import ShardReader
    from engine.triage.triage import count_unscored

    check_addresses(store=store, model=model, larger_model=larger)
    keep_freed_memory()
    target = Store(store)
    target.check_exists()
    model = newest_model(target, model)
    settings = settings or TriageSettings()
    costs = learn_costs(read_evidence(target), settings)
    if warning := warn_of_accepting(costs, settings):
        get_run_logger().warning(warning)
    menders = find_menders(load_labeller(target, model, device), larger, device)
    report, gone = RepairReport(), set[str]()
    totals = triage_masks(target, model, costs, tuple(menders))
    # What one remedy did not mend another may, and what it mended, too; a remedy is tried on a mask once, so there is an end.
    while pending := [of for of in find_pending(target, model, list(menders)) if of not in gone]:
        before = sum(report.tried.values())
        with ShardReader(target, model, pending, tuple(menders)) as reader:
            for number, start in enumerate(range(0, len(pending), shard_size)):
                tell_steps(start, len(pending), "mending")
                made = mend_shard(number, reader, pending[start : start + shard_size], menders)
                gone.update(made.gone)
                report.add(made)
        tell_steps(len(pending), len(pending), "mending")
        totals = triage_masks(target, model, costs, tuple(menders))
        if sum(report.tried.values()) == before:  # another run was faster, say
            break
    if any(of.masks for of in totals if of.decision in menders):  # pictures that are gone, say
        totals = triage_masks(target, model, costs, ())
    get_run_logger().info("mended %s of %s", report.held, report.tried)
    if unscored := count_unscored(target, model):
        get_run_logger().warning("%d masks have no predicted_iou: nothing is decided of them", unscored)
    decisions: dict[str, dict[str, Any]] = {
        of.decision: {"masks": of.masks, "p_good": of.p_good, "cost": of.cost, "gain": of.gain}
        for of in totals
    }
    repairs = {
        remedy: RepairCount(
            tried=count, held=report.held.get(remedy, 0), seconds=report.seconds.get(remedy, 0.0)
        )
        for remedy, count in report.tried.items()
    }
    return TriageSummary(
        model=model,
        decisions=decisions,
        repairs=repairs,
        good_iou=settings.good_iou,
        threshold=costs.threshold,
        answers=costs.answers,
        warning=warning,
        unscored=unscored,
        left_out=sorted(set(report.left_out)),
    )
