"""One round as a Prefect flow: label, triage, ask, and once people have answered learn, judge, label anew, report.

The table `rounds` is its journal. Every run goes on with the newest round where it stands: a step that is written down is
not done again, one that was killed is. While too few answers are there a run fetches what there is, labels what is new in the
pool, fills the queue up, and ends.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import BaseModel, Field

from flows.review import Media, MediaUrl, Project, QueueAddress
from flows.round_steps import RoundSteps
from flows.store_commands import absolute_address
from schemas.round_settings import RoundSettings


class RoundSummary(BaseModel):
    """How far a round came: `waits` says what for, and is empty once it has ended; numbers of each step that has.

    `model` is the version that is in use after it.
    """

    round_id: str
    model: str
    steps: dict[str, dict[str, Any]]
    waits: str = ""


@flow(name="round", persist_result=False)
def round(
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
    least_new: Annotated[
        int, Field(ge=1, description="masks that have to be answered before it learns")
    ] = 100,
    longest_wait_h: Annotated[
        float | None, Field(ge=0, description="or hours since the first of them; never if not given")
    ] = None,
    report: Annotated[str, Field(min_length=1, description="HTML file of the report")] = "gapmap-report.html",
    settings: Annotated[RoundSettings | None, Field(description="how each step works")] = None,
    device: Annotated[
        str | None, Field(description="cuda, cuda:N, mps or cpu; best there is if not given")
    ] = None,
) -> RoundSummary:
    """Go on with the round that is open, or begin one.

    Killed at any moment, or run by a schedule while people are still answering, the next run goes on where this one ended.
    A path that is not absolute is taken from where the flow runs: of a deployment, the checkout.
    """
    from pathlib import Path

    from engine.pool import check_addresses
    from engine.report.round_report import check_page
    from engine.rounds import RoundJournal, hold_round
    from engine.store import Store
    from engine.store.layout import attempt_time

    check_addresses(
        pool=pool,
        store=store,
        model=name,
        models_folder=out,
        queue=queue,
        media_folder=media,
        media_url=media_url,
        larger_model=larger,
        labelled_set=data,
        report=report,
    )
    page = Path(report).absolute()
    check_page(page)  # before a night's work, not after it
    target = Store(absolute_address(store))
    work = RoundSteps(
        target=target,
        pool=absolute_address(pool),
        store=absolute_address(store),
        name=name,
        out=Path(out).absolute(),
        data=[Path(of).absolute() for of in data],
        queue=queue,
        where=(project, media, media_url),
        budget=budget,
        larger=larger,
        least_new=least_new,
        longest_wait_h=longest_wait_h,
        page=page,
        settings=settings or RoundSettings(),
        device=device,
    )
    log = get_run_logger()
    with hold_round(target):
        journal = RoundJournal(target)
        log.info("round %s", journal.round_id)
        steps: dict[str, dict[str, Any]] = {}
        steps["pseudolabel"] = journal.run("pseudolabel", name, work.label)
        _check_name(steps["pseudolabel"]["name"], name)
        model = str(steps["pseudolabel"]["model"])
        steps["triage"] = journal.run("triage", model, lambda: work.decide(model))
        asked_before = journal.numbers("push") is not None
        steps["push"] = journal.run("push", model, lambda: work.ask(model))
        if journal.numbers("pull") is None:
            work.fetch()
            if why := work.why_wait(model):
                asked = work.ask_more() if asked_before else steps["push"]
                why = work.why_wait(model, exhausted=not asked["waiting"])
            if why:
                log.info("waiting for people: %s", why)
                return RoundSummary(round_id=journal.round_id, model=model, steps=steps, waits=why)
        began = attempt_time(journal.round_id)
        steps["pull"] = journal.run("pull", model, lambda: work.count_answers(began))
        steps["finetune"] = journal.run("finetune", model, lambda: work.learn(model))
        new = str(steps["finetune"].get("model", model))
        steps["promote"] = journal.run("promote", new, lambda: work.judge(steps["finetune"]))
        steps["rescore"] = journal.run(
            "rescore", new, lambda: work.rescore(model, steps["finetune"], steps["promote"])
        )
        in_use = new if steps["promote"]["promoted"] else model
        steps["report"] = journal.run("report", in_use, lambda: work.write_page(journal.round_id))
    return RoundSummary(round_id=journal.round_id, model=in_use, steps=steps)


def _check_name(begun: str, asked: str) -> None:
    if begun != asked:
        from schemas.errors import ConfigError

        raise ConfigError(
            f"The round that is open in this store is one of {begun}, not of {asked}. End it first: --name {begun}"
        )
