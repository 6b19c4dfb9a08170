"""What each step of a round does: the flows and tasks it calls, and the numbers it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.finetune import FinetuneSummary, finetune, summarise_version
from flows.pseudolabel import pseudolabel
from flows.review import review_pull, review_push
from flows.triage import triage
from tasks.judge_version import judge_version
from tasks.refit_version import refit_version
from tasks.results import report_round

if TYPE_CHECKING:
    from datetime import datetime

    from engine.store import Store
    from schemas.round_settings import RoundSettings

Numbers = dict[str, Any]


@dataclass(frozen=True)
class RoundSteps:
    """The steps of a round with what they need; see the flow `round`. Addresses and paths are absolute."""

    target: Store
    pool: str
    store: str
    name: str
    out: Path
    data: list[Path]
    queue: str | None
    where: tuple[str, str | None, str | None]
    budget: int
    larger: str | None
    least_new: int
    longest_wait_h: float | None
    page: Path
    settings: RoundSettings
    device: str | None

    def label(self) -> Numbers:
        """What is new in the pool, by the version in use."""
        settings = self.settings
        done = pseudolabel(
            self.pool,
            self.store,
            f"current:{self.name}",
            generate=settings.generate,
            shard_size=settings.shard_size,
            batch_size=settings.batch_size,
            device=self.device,
        )
        return {**done.model_dump(), "name": self.name}

    def decide(self, model: str) -> Numbers:
        return triage(self.store, model, self.larger, self.settings.triage, device=self.device).model_dump()

    def ask(self, model: str) -> Numbers:
        project, media, media_url = self.where
        acquisition = self.settings.acquisition
        return review_push(
            self.store, self.queue, self.budget, project, model, media, media_url, acquisition=acquisition
        ).model_dump()

    def ask_more(self) -> Numbers:
        """While people are answering: what is new in the pool too, and others in the place of what was skipped."""
        from engine.triage.triage import count_undecided

        model = str(self.label()["model"])
        # Asked of the store: others label too, and a run may be killed between the two.
        if count_undecided(self.target, model):
            self.decide(model)
        return self.ask(model)

    def fetch(self) -> None:
        review_pull(self.store, self.queue, *self.where)

    def count_answers(self, began: datetime) -> Numbers:
        """What was answered since the round began, whoever pulled it."""
        from engine.learn.answers import count_verdicts

        return {"verdicts": count_verdicts(self.target, began)}

    def why_wait(self, model: str, *, exhausted: bool = False) -> str:
        """Why the round has to wait for people; empty where it has not to.

        Args:
            model: whose child somebody else may have taught: then that one is to be judged.
            exhausted: nobody can be asked about anything more, so that fewer answers have to do.
        """
        from engine.judging import find_unjudged
        from engine.learn.answers import why_wait

        if find_unjudged(self.target, model) is not None:
            return ""
        why = why_wait(self.target, self.name, self.least_new, self.longest_wait_h)
        if not why or not exhausted:
            return why
        if not why_wait(self.target, self.name, 1):
            return ""
        return f"{why} Nothing is left to ask people about: what is added to the pool will be."

    def learn(self, model: str) -> Numbers:
        """A new version; one that was taught the same answers by another run, or by this one before it was killed, is it."""
        from engine.judging import find_unjudged
        from engine.learn.answers import find_latest_answer, read_lessons, why_wait
        from engine.learn.checkpoints import hold_models

        with hold_models(self.out):
            taught = find_unjudged(self.target, model)
            if taught and why_wait(self.target, self.name, self.least_new, self.longest_wait_h):
                return summarise_version(taught, self.target).model_dump()
            answered_until = find_latest_answer(self.target)
            if not read_lessons(self.data, self.target):
                return {
                    "skipped": "all that people answered is kept out or no object: nothing to learn from",
                    "answered_until": answered_until and answered_until.isoformat(),
                }
            data, settings = [str(path) for path in self.data], self.settings.finetune
            made = finetune(
                str(self.out),
                data,
                self.store,
                f"current:{self.name}",
                settings,
                refit=False,
                device=self.device,
                anew=True,  # more may have been answered since a run was killed
            )
        assert isinstance(made, FinetuneSummary), "nothing was to be waited for"
        return made.model_dump()

    def judge(self, learnt: Numbers) -> Numbers:
        if "skipped" in learnt:
            return {"skipped": "no version was made", "promoted": False}
        images = self.settings.judged_images
        where = (learnt["model"], learnt["weights"], self.data, self.name, images, self.device)
        return judge_version(self.target, *where)

    def rescore(self, parent: str, learnt: Numbers, verdict: Numbers) -> Numbers:
        """The pool by the new version with heads and a refiner of its own, decided on anew."""
        if not verdict["promoted"]:
            return {"skipped": verdict.get("skipped", "the version was refused")}
        from engine.learn.checkpoints import hold_models
        from engine.promotion import load_labeller
        from engine.triage.menders import find_larger

        # Heads without the larger model would know no model_gap, and nothing would ever go to it again.
        larger = find_larger(load_labeller(self.target, parent, self.device), self.larger)
        with hold_models(self.out):  # the deployment may be at it
            refit_version(
                Path(learnt["weights"]),
                self.data,
                self.store,
                self.settings.refiner_steps,
                self.settings.refit_scenes,
                larger,
                self.device,
                kept_since=0,  # whoever fitted them
            )
        labelled = self.label()
        return {**labelled, "triage": self.decide(str(labelled["model"]))}

    def write_page(self, round_id: str) -> Numbers:
        return {"page": str(report_round(self.target, self.page, round_id))}
