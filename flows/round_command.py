"""The command `gapmap round`: its options, and the flow run in this process behind a bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from flows.head_commands import DataOption
from flows.own_prefect import quiet_prefect, tether_server
from flows.review_commands import MediaOption, MediaUrlOption, ProjectOption, QueueOption
from flows.store_commands import StoreOption, absolute_address

if TYPE_CHECKING:
    from flows.round import RoundSummary
    from schemas.round_settings import RoundSettings

_Step = TypeVar("_Step", bound=BaseModel)


def round(
    pool: Annotated[
        str, typer.Argument(help="Folder, bucket or list of images: any fsspec URL, globs allowed.")
    ],
    store: StoreOption,
    name: Annotated[
        str, typer.Option(help="The model, whose version in use labels: a registry name.")
    ] = "sam-nano",
    out: Annotated[Path, typer.Option(help="Folder of the model's versions.")] = Path("models"),
    queue: QueueOption = None,
    project: ProjectOption = "gapmap",
    media: MediaOption = None,
    media_url: MediaUrlOption = None,
    budget: Annotated[int, typer.Option(min=1, help="Masks that wait for people at once, at most.")] = 100,
    larger: Annotated[
        str | None,
        typer.Option(
            help="The model that uncertain masks go to: registry name, path or URL, or none. Default: the one that the heads' "
            "model_gap speaks of."
        ),
    ] = None,
    data: DataOption = None,
    least_new: Annotated[
        int, typer.Option(min=1, help="Masks that have to be answered before it learns.")
    ] = 100,
    longest_wait: Annotated[
        float | None, typer.Option(min=0, help="Or hours since the first of them. Default: never.")
    ] = None,
    report: Annotated[Path, typer.Option(help="HTML file of the report.")] = Path("gapmap-report.html"),
    points_per_side: Annotated[
        int | None, typer.Option(help="Grid of point prompts of an image, per side. Default: 32.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="Which masks people are asked about, as for push. Default: uncertainty."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Updates of the fine-tuning, at most. Default: 300.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the settings of every step, as the flow takes them (docs/rounds.md); options go before.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Go on with a round, or begin one: label, triage, ask people; once they have answered fine-tune, judge, label anew, report.

    Each step is written down when it has ended. While people are answering the command says what it waits for, and ends; run
    it again whenever you like, also after it was stopped: it goes on where it was.

    Example: gapmap round photos/ --store masks/ --queue review/
    """
    from engine.pool import check_addresses

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
    from engine.report.round_report import check_page

    read = _read_settings(settings)
    chosen = read.model_copy(
        update={
            "generate": _change(read.generate, points_per_side=points_per_side),
            "acquisition": _change(read.acquisition, strategy=strategy),
            "finetune": _change(read.finetune, steps=steps),
        }
    )
    check_page(report)
    quiet_prefect()
    tether_server()
    from flows.console import steps_progress
    from tasks.progress import hearing_steps

    with steps_progress("round") as bar, hearing_steps(bar):
        from flows.round import round as run

        summary = run(
            absolute_address(pool),
            absolute_address(store),
            name,
            str(out.absolute()),
            queue,
            project,
            media,
            media_url,
            budget,
            larger,
            [str(path.absolute()) for path in data or []],
            least_new,
            longest_wait,
            str(report.absolute()),
            chosen,
            device,
        )
    typer.echo(f"round {summary.round_id}")
    show_round(summary)
    if summary.waits:
        typer.echo("The same command goes on when people have answered.")
    else:
        typer.echo(f"{summary.model} is in use. The same command begins the next round.")


def show_round(summary: RoundSummary) -> None:
    """Print what each step of a round came to, and what it waits for."""
    told: dict[str, Callable[[dict[str, Any]], str]] = {
        "pseudolabel": lambda of: (
            f"{of['masks']} masks of {of['images']} images, {sum(of['errors'].values())} unusable"
            + (f"; {of['done_before']} images done before" if of["done_before"] else "")
        ),
        "triage": lambda of: (
            ", ".join(f"{name} {int(each['masks'])}" for name, each in of["decisions"].items())
            + "".join(
                f"; {name} mended {each['held']} of {each['tried']}" for name, each in of["repairs"].items()
            )
            + (f"\n  {'':12} {of['warning']}" if of.get("warning") else "")
        ),
        "push": lambda of: (
            f"{of['masks']} masks in {of['items']} tasks, {of['waiting']} wait for people at {of['address']}"
        ),
        "pull": lambda of: ", ".join(f"{count} {verdict}" for verdict, count in of["verdicts"].items()),
        "finetune": lambda of: (
            f"{of['model']}, held-out IoU {of['held_out_iou'][0]:.3f} to {of['held_out_iou'][1]:.3f}"
            + "".join(f"\n  {'':12} {text}" for text in of.get("warnings", []))
        ),
        "promote": lambda of: f"{'promoted' if of['promoted'] else 'refused'}: {of['reason']}",
        "rescore": lambda of: f"{of['masks']} masks by the new version",
        "report": lambda of: str(of["page"]),
    }
    for step, numbers in summary.steps.items():
        what = f"left out: {numbers['skipped']}" if "skipped" in numbers else told[step](numbers)
        print(f"  {step:12} {what}")
    if summary.waits:
        print(f"  {'waiting':12} {summary.waits}")


def _read_settings(path: Path | None) -> RoundSettings:
    import json

    from pydantic import ValidationError

    from schemas.errors import ConfigError
    from schemas.round_settings import RoundSettings

    if path is None:
        return RoundSettings()
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(read, dict):
        raise ConfigError(f'{path} has to hold an object, such as {{"generate": {{"points_per_side": 16}}}}.')
    try:
        return RoundSettings(**read)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (given: {fault['input']!r})"
            for fault in error.errors()
        ]
        raise ConfigError("\n".join([f"{path} has settings that cannot be:", *faults])) from None


def _change(step: _Step, **options: int | str | None) -> _Step:
    """The settings of a step with the options that were given; a wrong one is refused under its own name."""
    given = {name: value for name, value in options.items() if value is not None}
    return type(step)(**{**step.model_dump(), **given})
