"""The page of a round: everything that is known of it, as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.report.round_answers import Calibration, TaughtVersion, measure_calibrations, read_versions
from engine.report.round_data import RoundData, read_round
from engine.report.round_figures import FILTERS, count_things, machine_seconds, seconds_per_mask
from engine.report.round_gallery import Gallery, draw_gallery
from engine.report.round_plots import draw_calibrations, draw_differences, draw_efficiency, draw_scores
from engine.report.round_scope import find_scope

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_LABELS = {
    "predicted_iou": "predicted IoU",
    "sam_score": "SamScore",
    "model_gap": "model gap, IoU to gain",
    "prompt_gap": "prompt gap, IoU to gain",
    "task_gap": "task gap, IoU to gain",
    "map_mean": "mean of the uncertainty map",
}


class AcceptError(Protocol):
    """How many of the accepted masks are wrong, told from some that were drawn at random and that people judged."""

    @property
    def rate(self) -> float | None:
        """Share of the accepted masks, 0..1; None where nothing drawn was answered."""

    @property
    def low(self) -> float | None:
        """Lower end of its 95 % interval."""

    @property
    def high(self) -> float | None:
        """Upper end."""

    @property
    def n(self) -> int:
        """Masks that were drawn and answered."""

    @property
    def drawn(self) -> int:
        """Masks that were drawn."""


@dataclass(frozen=True)
class RoundReport:
    """What a page shows, read at one moment of the store."""

    store: str
    data: RoundData
    calibrations: Sequence[Calibration]
    versions: Sequence[TaughtVersion]
    gallery: Gallery


def read_report(
    store: Store, round_id: str | None = None, progress: Callable[[int, int, str], None] | None = None
) -> RoundReport:
    """Ask a store for everything of a round: the newest unless one is named, or its newest model where it has none.

    Args:
        progress: called with steps done, steps in all and the next one.

    Raises:
        ConfigError: there is nothing in the store, or no such round.
    """
    tell = progress or (lambda done, total, how: None)

    def read(snapshot: Snapshot) -> RoundReport:
        tell(0, 3, "counting")
        scope = find_scope(snapshot, round_id)
        data = read_round(snapshot, scope)
        tell(1, 3, "comparing answers")
        calibrations, versions = measure_calibrations(snapshot, scope), read_versions(snapshot, scope)
        tell(2, 3, "drawing masks")
        return RoundReport(
            store.files.label, data, calibrations, versions, draw_gallery(snapshot, scope.model)
        )

    store.check_exists()
    return store.read(read)


def describe_round(report: RoundReport) -> list[tuple[str, str]]:
    """The round in a few figures: what they are of, and they themselves, in words."""
    data = report.data
    labelled, people = data.labelled, data.people
    facts = [("model", data.scope.model)]
    if data.scope.round_id:
        facts.insert(0, ("round", data.scope.round_id))
    facts.append(("images", f"{labelled['images']:,}"))
    facts.append(("masks", f"{labelled['masks']:,}"))
    if labelled["errors"]:
        facts.append(("unusable files", f"{labelled['errors']:,}"))
    if data.decisions:
        decided = sum(row["masks"] for row in data.decisions)
        facts.append(("accepted", f"{data.accepted:,} ({data.accepted / decided:.0%} of those decided on)"))
    if people["masks_so_far"]:
        facts.append(
            ("answered by people", f"{people['masks']:,} masks, {people['masks_so_far']:,} so far")
            if data.scope.round_id
            else ("answered by people", f"{people['masks_so_far']:,} masks")
        )
    if data.gate:
        facts.append(("gate", f"{data.gate['model']} {data.gate['action']}: {data.gate['reason']}"))
    return facts


def summarise_round(report: RoundReport) -> str:
    """The round in a sentence or two."""
    data = report.data
    labelled, people = data.labelled, data.people
    sentence = f"{count_things(labelled['images'], 'image')} with {count_things(labelled['masks'], 'mask')}"
    parts = []
    if data.decisions:
        parts += [f"{data.accepted:,} accepted", f"{data.groups.get('people', 0):,} for people"]
    if people["waiting"]:
        parts.append(f"{people['waiting']:,} sent and waiting")
    if people["masks_so_far"]:
        parts.append(f"{people['masks_so_far']:,} answered so far")
    sentence += f": {', '.join(parts)}." if parts else "."
    if data.gate:
        sentence += f" {data.gate['model']} was {data.gate['action']}: {data.gate['reason']}."
    return sentence


def render_page(
    report: RoundReport, accept_error: AcceptError | None = None, made_at: datetime | None = None
) -> str:
    """The page as text.

    Args:
        accept_error: what is known of wrong masks among the accepted ones.
        made_at: for its foot; now if not given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    data = report.data
    template = environment.get_template("round_page.html")
    return template.render(
        report=report,
        data=data,
        scope=data.scope,
        title=f"Round {data.scope.round_id}" if data.scope.round_id else data.scope.model,
        summary=summarise_round(report),
        plots=_draw_plots(report),
        accept_error=accept_error,
        machine=machine_seconds(data),
        per_mask=seconds_per_mask(data),
        made_at=made_at or datetime.now(UTC),
    )


def _draw_plots(report: RoundReport) -> dict[str, Any]:
    """SVG by section; None where there is nothing to draw."""
    from markupsafe import Markup

    data = report.data
    plots: dict[str, Any] = dict.fromkeys(("calibration", "gate", "efficiency"))
    # Markup: matplotlib and the plots' own words escape what they say.
    plots["scores"] = [Markup(draw_scores(of, _LABELS[of.column])) for of in data.scores]
    if report.calibrations:
        names = _name_versions([of.model for of in report.calibrations], data)
        plots["calibration"] = Markup(draw_calibrations(report.calibrations, names))
    if data.gate and data.gate["differences"]:
        plots["gate"] = Markup(draw_differences(data.gate["differences"]))
    if any(of.after is not None for of in report.versions):
        plots["efficiency"] = Markup(draw_efficiency(report.versions))
    return plots


def _name_versions(models: Sequence[str], data: RoundData) -> list[str]:
    compared = data.scope.compared
    if len(compared) == 1:
        return ["this model"]
    return [("before", "after")[compared.index(model)] for model in models]
