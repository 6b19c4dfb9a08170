"""Fine-tuning as a Prefect flow: labels and pseudo-labels in, a new version of the model with heads and refiner out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import BaseModel, Field

from schemas.settings import FinetuneSettings
from tasks.learn_model import learn_model


class FinetuneSummary(BaseModel):
    """What came of it: the new model, where it lies, and how the held-out groups were told before and after."""

    model: str
    parent: str
    weights: str
    step: int
    held_out_iou: tuple[float, float]


@flow(name="finetune", persist_result=False)
def finetune(
    data: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1, description="labelled images: COCO files or their folders"),
    ],
    out: Annotated[str, Field(min_length=1, description="folder of the model's versions")],
    store: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Field(description="store with the model's own masks and their maps; none to learn from people alone"),
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
    refiner_steps: Annotated[int, Field(ge=1, description="updates of the new version's refiner")] = 300,
    larger: Annotated[
        str | None,
        Field(description="the model that uncertain work goes to, for the heads; none: no model_gap"),
    ] = None,
    device: Annotated[
        str | None, Field(description="cuda, cuda:N, mps or cpu; best there is if not given")
    ] = None,
) -> FinetuneSummary:
    """Fine-tune a model on people's masks without forgetting what it knew.

    Of every labelled set the last fifth of the groups is never learnt from. Killed at any moment, the same run goes
    on from its checkpoint in `out`.
    """
    import json

    from engine.learn.data import read_sets
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.pool import check_address
    from engine.promotion import resolve_model
    from engine.store import Store

    for what, address in (("model", model), ("store", store)):
        if address is not None:
            check_address(address, what)
    keep_freed_memory()
    log = get_run_logger()
    target = Store(store) if store is not None else None
    if target is not None:
        target.check_exists()
    segmenter = load_segmenter(resolve_model(target, model) if target else model, device=device)
    sets = read_sets([Path(path) for path in data])
    made = learn_model(segmenter, sets, target, settings or FinetuneSettings(), Path(out), most_uncertain)
    metrics = json.loads(made.record["metrics"])
    best = max(metrics["history"], key=lambda looked: looked["iou"])
    summary = FinetuneSummary(
        model=made.record["model"],
        parent=segmenter.model_id,
        weights=str(made.path),
        step=metrics["step"],
        held_out_iou=(metrics["history"][0]["iou"], best["iou"]),
    )
    log.info("%s from %s: %s", summary.model, summary.parent, summary.weights)
    if refit:
        _refit(made.path, [Path(path) for path in data], refiner_steps, larger, device)
    return summary


def _refit(
    weights: Path, data: list[Path], refiner_steps: int, larger: str | None, device: str | None
) -> None:
    """A refiner and heads of the new version, beside its weights."""
    from flows.head_commands import fit_heads
    from flows.refiner_command import fit_refiner

    fit_refiner(str(weights), data, steps=refiner_steps, device=device)
    fit_heads(str(weights), larger, data, tokens=str(weights.parent / "tokens"), device=device)
