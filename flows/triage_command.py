"""The command `gapmap triage`: decide, mend, decide again; or say what would be decided, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from flows.own_prefect import quiet_prefect, tether_server
from flows.store_commands import ModelOption, StoreOption, absolute_address


def triage(
    store: StoreOption,
    model: ModelOption = None,
    larger: Annotated[
        str | None,
        typer.Option(
            help="The model that uncertain masks go to: registry name, path or URL, or none. Default: the one that the heads' "
            "model_gap speaks of."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say what would be decided, and what it costs and gains.")
    ] = False,
    good_iou: Annotated[
        float | None, typer.Option(help="IoU from which a mask is good. Default: 0.7.")
    ] = None,
    error_seconds: Annotated[
        float | None,
        typer.Option(
            help="What a mask costs that is accepted and not good, in seconds of a person. Default: 30."
        ),
    ] = None,
    look_seconds: Annotated[
        float | None,
        typer.Option(help="A person's look at a mask, until answers tell. Default: 3."),
    ] = None,
    fix_seconds: Annotated[
        float | None,
        typer.Option(help="And mending one that is not good, on top. Default: 15."),
    ] = None,
    machine_rate: Annotated[
        float | None,
        typer.Option(
            help="What a second of the machine costs, in seconds of a person (prices by the hour, divided). Default: 0.02."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Decide what to do with each mask: accept it, let a larger model or a better prompt mend it, or ask people.

    The cheapest way is taken, in seconds of a person's time. How likely a mask is good follows from its predicted_iou, and
    people's answers teach it, as they do how long people take and how much of a promised gain comes true. Mended masks are
    scored again and keep their parent; decisions are rows of the table decisions.

    Example: gapmap triage --store masks/ --explain
    """
    from engine.pool import check_addresses
    from schemas.settings import TriageSettings

    check_addresses(store=store, model=model, larger_model=larger)
    chosen: dict[str, Any] = {
        "good_iou": good_iou,
        "error_s": error_seconds,
        "look_s": look_seconds,
        "fix_s": fix_seconds,
        "machine_rate": machine_rate,
    }
    settings = TriageSettings(**{key: value for key, value in chosen.items() if value is not None})
    if explain:
        _explain(absolute_address(store), model, larger, settings, device)
        return
    quiet_prefect()
    tether_server()
    from flows.console import steps_progress
    from tasks.progress import hearing_steps

    with steps_progress("triage") as bar, hearing_steps(bar):
        from flows.triage import triage as run

        summary = run(absolute_address(store), model, larger, settings, device=device)
    _show(summary.model, [{"decision": name, **of} for name, of in summary.decisions.items()])
    for remedy, of in summary.repairs.items():
        typer.echo(
            f"{remedy}: {of.held} of {of.tried} masks mended, {of.seconds / max(of.tried, 1):.2f} s each"
        )
    _warn(summary.warning)
    _tell_unscored(summary.unscored)
    for name, why in summary.left_out:
        typer.secho(f"left out: {name}: {why}", fg="yellow", err=True)


def _explain(store: str, model: str | None, larger: str | None, settings: Any, device: str | None) -> None:
    from engine.promotion import load_labeller
    from engine.store import Store
    from engine.store.model_choice import newest_model
    from engine.triage.costs import learn_costs, warn_of_accepting
    from engine.triage.evidence import read_evidence
    from engine.triage.menders import find_menders
    from engine.triage.triage import count_unscored, triage_masks

    opened = Store(store)
    opened.check_exists()
    model = newest_model(opened, model)
    costs = learn_costs(read_evidence(opened), settings)
    menders = find_menders(load_labeller(opened, model, device), larger, device)
    totals = triage_masks(opened, model, costs, tuple(menders), write=False)
    _show(model, [vars(of) for of in totals])
    learnt = f"learnt from {costs.answers} answers" if costs.answers else "as set: nobody has answered yet"
    typer.echo(f"\nthe costs ({learnt})")
    typer.echo(
        f"  accepting a mask that is not good {costs.error:.0f} s; a look {costs.look:.1f} s, mending by hand {costs.fix:.1f} s more"
    )
    typer.echo(
        f"  a mask is good (IoU {settings.good_iou:g}) with probability 1/(1 + exp(-{costs.slope:.1f} (predicted_iou - {costs.middle:.2f})))"
    )
    typer.echo(f"  accepting is cheaper than asking from predicted_iou {costs.threshold:.2f} on")
    for remedy in menders:
        machine = costs.larger if remedy == "larger model" else costs.prompt
        typer.echo(f"  {remedy}: {machine:.3f} s, and {costs.kept[remedy]:.0%} of the promised gain")
    if costs.overstated >= 0.005:
        typer.echo(
            f"  what a machine mended is taken for {costs.overstated:.2f} worse than its predicted_iou says"
        )
    _warn(warn_of_accepting(costs, settings))
    _tell_unscored(count_unscored(opened, model))


def _tell_unscored(count: int) -> None:
    if count:
        text = f"{count:,} masks have no predicted_iou, and nothing is decided of them: label their images again, with heads."
        _warn(text)


def _warn(text: str) -> None:
    if text:
        typer.secho(text, fg="yellow", err=True)


def _show(model: str, totals: Iterable[dict[str, Any]]) -> None:
    typer.echo(f"{model}\n")
    typer.echo(
        f"  {'decision':14} {'masks':>9} {'good':>6} {'cost':>11} {'saves':>11}   seconds of a person, in all"
    )
    rows = list(totals)
    for of in rows:
        good = f"{of['p_good']:6.0%}" if of["masks"] else f"{'-':>6}"
        typer.echo(
            f"  {of['decision']:14} {int(of['masks']):9,} {good} {of['cost']:11,.0f} {of['gain']:11,.0f}"
        )
    masks, cost = sum(int(of["masks"]) for of in rows), sum(of["cost"] for of in rows)
    typer.echo(f"  {'all':14} {masks:9,} {'':6} {cost:11,.0f} {sum(of['gain'] for of in rows):11,.0f}")
