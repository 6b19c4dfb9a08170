"""One round as a Prefect flow: label, triage, ask, and once people have answered learn, judge, label anew, report.

The table `rounds` is its journal. Every run goes on with the newest round where it stands: a step that is written down is
not done again, one that was killed is. While too few answers are there a run fetches what there is, and ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import BaseModel, Field

from flows.finetune import FinetuneSummary, finetune, refit_version
from flows.pseudolabel import pseudolabel
from flows.review import Media, MediaUrl, Project, QueueAddress, review_pull, review_push
from flows.triage import triage
from schemas.round_settings import RoundSettings
from tasks.judge_version import judge_version
from tasks.round_report import publish_round_report


class RoundSummary(BaseModel):
    """How far a round came: `waits` says what for, and is empty once it has ended; numbers of each step that has."""

    round_id: str
    model: str
    steps: dict[str, dict[str, Any]]
    waits: str = ""


@flow(name="round", persist_result=False)
def round(  # noqa: A001  what the field calls it
    pool: Annotated[
        str,
        Field(min_length=1, description="folder, bucket or list of images: any fsspec URL, globs allowed"),
    ],
    store: Annotated[str, Field(min_length=1, description="where the tables go: a folder or any fsspec URL")],
    name: Annotated[
        str, Field(description="the model, whose version in use labels: a registry name")
    ] = "sam-nano",
    out: Annotated[str, Field(min_length=1, description="folder of the model's versions")] = "models",
    queue: QueueAddress = None,
    project: Project = "gapmap",
    media: Media = None,
    media_url: MediaUrl = None,
    budget: Annotated[int, Field(ge=1, description="masks that people are asked about")] = 100,
    larger: Annotated[
        str | None,
        Field(
            description="the larger model, or none; the one that the heads' model_gap speaks of if not given"
        ),
    ] = None,
    data: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(description="labelled images besides people's answers: COCO files or their folders"),
    ] = [],  # noqa: B006  Prefect shows it
    least_new: Annotated[int, Field(ge=1, description="masks that have to be answered before it learns")] = 100,
    longest_wait_h: Annotated[
        float | None, Field(ge=0, description="or hours since the first of them; never if not given")
    ] = None,
    report: Annotated[
        str, Field(min_length=1, description="HTML file of the report")
    ] = "gapmap-report.html",
    settings: Annotated[RoundSettings | None, Field(description="how each step works")] = None,
    device: Annotated[
        str | None, Field(description="cuda, cuda:N, mps or cpu; best there is if not given")
    ] = None,
) -> RoundSummary:
    """Go on with the round that is open, or begin one.

    Killed at any moment, or run by a schedule while people are still answering, the next run goes on where this one ended.
    """
    from engine.learn.answers import why_wait
    from engine.promotion import CURRENT
    from engine.rounds import RoundJournal
    from engine.store import Store

    chosen = settings or RoundSettings()
    target = Store(store)
    journal = RoundJournal(target)
    log = get_run_logger()
    log.info("round %s", journal.round_id)
    steps: dict[str, dict[str, Any]] = {}

    def label() -> dict[str, Any]:
        return pseudolabel(
            pool,
            store,
            CURRENT + name,
            generate=chosen.generate,
            shard_size=chosen.shard_size,
            batch_size=chosen.batch_size,
            device=device,
        ).model_dump()

    def decide(model: str) -> dict[str, Any]:
        return triage(store, model, larger, chosen.triage, device=device).model_dump()

    steps["pseudolabel"] = journal.run("pseudolabel", name, label)
    model = str(steps["pseudolabel"]["model"])
    steps["triage"] = journal.run("triage", model, lambda: decide(model))
    steps["push"] = journal.run(
        "push",
        model,
        lambda: review_push(
            store, queue, budget, project, model, media, media_url, acquisition=chosen.acquisition
        ).model_dump(),
    )
    if journal.numbers("pull") is None:
        pulled = review_pull(store, queue, project, media, media_url).model_dump()
        if why := why_wait(target, least_new, longest_wait_h):
            log.info("waiting for people: %s", why)
            return RoundSummary(round_id=journal.round_id, model=model, steps=steps, waits=why)
        journal.run("pull", model, lambda: pulled)
    steps["pull"] = journal.run("pull", model, dict)

    def learn() -> dict[str, Any]:
        made = finetune(out, data, store, CURRENT + name, chosen.finetune, refit=False, device=device)
        assert isinstance(made, FinetuneSummary), "nothing was to be waited for"
        return made.model_dump()

    steps["finetune"] = journal.run("finetune", model, learn)
    new, weights = str(steps["finetune"]["model"]), str(steps["finetune"]["weights"])
    steps["promote"] = journal.run(
        "promote",
        new,
        lambda: judge_version(target, weights, [Path(of) for of in data], name, chosen.judged_images, device),
    )

    def rescore() -> dict[str, Any]:
        if not steps["promote"]["promoted"]:
            return {"skipped": "the version was refused"}
        paths = [Path(of) for of in data]
        refit_version(
            Path(weights), paths, store, chosen.refiner_steps, chosen.refit_scenes, larger, device
        )
        labelled = label()
        return {**labelled, "triage": decide(str(labelled["model"]))}

    steps["rescore"] = journal.run("rescore", new, rescore)
    steps["report"] = journal.run(
        "report",
        new if steps["promote"]["promoted"] else model,
        lambda: publish_round_report(target, Path(report), journal.round_id, model, chosen.triage.good_iou),
    )
    return RoundSummary(round_id=journal.round_id, model=model, steps=steps)
