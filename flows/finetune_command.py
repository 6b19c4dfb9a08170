"""The command `gapmap finetune`: its options, and the flow run in this process behind a bar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.head_commands import DataOption
from flows.own_prefect import quiet_prefect, tether_server
from flows.store_commands import absolute_address
from schemas.fitting_settings import REFIT_SCENES, REFIT_STEPS


def finetune(
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the model's versions; each gets a folder of its own in it.")
    ] = Path("models"),
    store: Annotated[
        str | None,
        typer.Option(
            help="Store with what people answered (gapmap pull), and the model's own masks and maps, which keep it from "
            "forgetting. Default: none, --data alone.",
            envvar="GAPMAP_STORE",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model to begin with: registry name, or path or URL of a checkpoint.")
    ] = "sam-nano",
    train: Annotated[
        str, typer.Option(help="What learns: decoder (few labels), all (as in the paper), or adapters.")
    ] = "decoder",
    steps: Annotated[int | None, typer.Option(help="Updates, at most. Default: 300.")] = None,
    images: Annotated[int | None, typer.Option(help="Images of an update. Default: 4.")] = None,
    masks: Annotated[int | None, typer.Option(help="Masks of an image, at most. Default: 8.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of prompts. Default: 7.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate. Default: 1e-4.")] = None,
    human_share: Annotated[
        float | None, typer.Option(help="Share of people's images in an update. Default: 0.5.")
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option(
            help="Weight of answering as before where people did not label; 0: free to forget. Default: 4."
        ),
    ] = None,
    most_uncertain: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out masks of the store that are more uncertain.")
    ] = 1.0,
    refit: Annotated[
        bool, typer.Option(help="Fit a refiner and heads to the new version, from the same labels.")
    ] = True,
    refiner_steps: Annotated[
        int, typer.Option(min=1, help="Updates of the new version's refiner.")
    ] = REFIT_STEPS,
    refit_scenes: Annotated[
        int,
        typer.Option(min=0, help="Procedural scenes that refiner and heads are fitted to beside the labels."),
    ] = REFIT_SCENES,
    larger: Annotated[
        str | None,
        typer.Option(
            help="The model that uncertain work goes to, for the heads. Default: none, no model_gap."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all draws. Default: 0.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Fine-tune a model on people's masks without forgetting what it knew (SUM).

    People's masks and the model's own are mixed; where a map says the model is unsure, its own mask teaches nothing.
    Stop it whenever you like: the same command goes on from the last checkpoint.

    Example: gapmap finetune --data labelled/ --store masks/ --out models/
    """
    from engine.pool import check_addresses
    from schemas.errors import ConfigError
    from schemas.settings import FinetuneSettings

    check_addresses(models_folder=out, labelled_set=data, store=store, model=model, larger_model=larger)
    if not data and store is None:
        raise ConfigError(
            "There is nothing to learn from. Give labelled images: --data FOLDER, or a --store with answers."
        )
    chosen: dict[str, Any] = {
        "train": train,
        "steps": steps,
        "images": images,
        "masks": masks,
        "rounds": rounds,
        "rate": rate,
        "human_share": human_share,
        "distillation": distillation,
        "seed": seed,
    }
    settings = FinetuneSettings(**{key: value for key, value in chosen.items() if value is not None})
    quiet_prefect()
    tether_server()
    from flows.console import steps_progress
    from tasks.progress import hearing_steps

    with steps_progress("fine-tuning") as bar, hearing_steps(bar):
        from flows.finetune import FinetuneSummary
        from flows.finetune import finetune as run

        summary = run(
            str(out.absolute()),
            [str(path.absolute()) for path in data or []],
            None if store is None else absolute_address(store),
            model,
            settings,
            most_uncertain,
            refit=refit,
            refiner_steps=refiner_steps,
            refit_scenes=refit_scenes,
            larger=larger,
            device=device,
        )
    assert isinstance(summary, FinetuneSummary)
    for text in summary.warnings:
        typer.secho(text, fg="yellow", err=True)
    before, after = summary.held_out_iou
    typer.echo(f"{summary.model}, from {summary.parent}: {summary.weights}")
    if before:
        typer.echo(
            f"held-out groups, IoU after one to three points: {before:.3f} before, {after:.3f} at update {summary.step}"
        )
