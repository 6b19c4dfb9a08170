"""The command `gapmap evaluate ablation`: what is each part of SUM worth, on one's own images?"""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.head_commands import DataOption
from flows.store_commands import StoreOption

if TYPE_CHECKING:
    from engine.learn.training_images import TrainingImage


def ablation(
    store: StoreOption,
    data: DataOption = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="More COCO sets to judge on, none of them learnt from: is anything forgotten? May be given several times."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model to begin with: registry name, or path or URL of a checkpoint.")
    ] = "sam-nano",
    maps: Annotated[
        str | None,
        typer.Option(
            help="File of the refiner that made the store's maps, or self. Default: the one beside the weights, else self."
        ),
    ] = None,
    variants: Annotated[
        str,
        typer.Option(help="Which to run and show, with commas between; the model as it was is always there."),
    ] = "all",
    folder: Annotated[
        Path, typer.Option(help="Keeps what is done; the same command goes on from there.")
    ] = Path("ablation"),
    steps: Annotated[int, typer.Option(min=1, help="Updates of each variant, at most.")] = 300,
    train: Annotated[str, typer.Option(help="What learns: decoder, all or adapters.")] = "decoder",
    rate: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 1e-4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of prompts in an update.")] = 7,
    images: Annotated[int, typer.Option(min=1, help="Images of a set to judge on, evenly spread.")] = 30,
    masks: Annotated[
        int, typer.Option(min=1, help="Masks of an image to judge on, evenly spread, at most.")
    ] = 10,
    most_uncertain: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out masks of the store that are more uncertain.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture (PNG) to write.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """What is each part of SUM worth? One model fine-tuned in ten ways, judged with the model as it was.

    People's masks alone; both kinds alike; the refiner's masks as labels; SUM without the answers of before, without
    task prompt, without uncertainty in the losses, in the points; with the task told in every round; with SAM's
    confidence as the map; SUM. All are judged on groups that none of them learnt from, with one, three and five
    clicks; of the pool, too, none of those and no labelled image takes part.

    Example: gapmap evaluate ablation --data parts/ --also others/ --store masks/
    """
    from engine.evaluate.ablation import BASE, VARIANTS, run_variant, tabulate
    from engine.evaluate.interactive import choose_images
    from engine.learn.data import read_sets
    from engine.learn.splits import keep_out_everywhere, learnable_images
    from engine.learn.training_images import human_images, pseudo_labelled_images
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.store import Store
    from engine.uncertainty.refiner_files import find_refiner
    from flows.console import phases_progress, steps_progress
    from flows.interactive_command import part_sets
    from schemas.errors import ConfigError, nearest_name
    from schemas.settings import FinetuneSettings

    names = [BASE, *VARIANTS]
    chosen = names if variants == "all" else [word.strip() for word in variants.split(",")]
    for name in chosen:
        if name not in names:
            raise ConfigError(f"There is no variant {name!r}. {nearest_name(name, names)}")
    if BASE not in chosen:
        chosen = [BASE, *chosen]
    if not data:
        raise ConfigError("There is nothing to learn from. Give labelled images: --data FOLDER")
    learnt = read_sets(data)
    every = keep_out_everywhere({**learnt, **read_sets(also or [])})
    learnt = {name: every[name] for name in learnt}
    sets = choose_images(part_sets(every, kept_out=True), images, masks)
    target = Store(store)
    target.check_exists()
    keep_freed_memory()
    segmenter = load_segmenter(model, device=device)
    settings = FinetuneSettings(train=train, steps=steps, rate=rate, rounds=rounds, seed=seed)
    taught = {name: learnable_images(of) for name, of in learnt.items()}
    human = human_images([image for of in taught.values() for image in of])
    pseudo: dict[str, list[TrainingImage]] = {}
    kinds = {VARIANTS[name].pseudo for name in chosen if name != BASE}
    if kinds - {"none"}:
        labelled = [image for of in (*learnt.values(), *sets.values()) for image in of]
        pseudo["maps"] = pseudo_labelled_images(
            target,
            segmenter.model_id,
            labelled=labelled,
            most_uncertain=most_uncertain,
            images=settings.steps * settings.images,
            seed=settings.seed,
        )
    if kinds & {"confidence", "redrawn"}:
        from engine.learn.other_teachers import teach_otherwise

        refiner = find_refiner(segmenter, maps)
        if refiner is None:
            raise ConfigError("Two variants need a refiner. Name its file, or self: --maps")
        with steps_progress("asking for the masks again") as bar:
            pseudo["confidence"], pseudo["redrawn"] = teach_otherwise(refiner, segmenter, pseudo["maps"], bar)
    with phases_progress() as tell:
        found = {
            name: run_variant(name, segmenter, human, pseudo, sets, settings, folder, tell) for name in chosen
        }
    rows = tabulate(found, learnt=list(learnt))
    report = {"model": segmenter.model_id, "masks": len({(r.data, r.image, r.mask) for r in found[BASE]})}
    own = sum(bool(image.masks) for image in pseudo.get("maps", ()))
    report |= {"human": {name: len(of) for name, of in taught.items()}, "pseudo": own}
    report |= {"variants": rows}
    if plot:
        from engine.report.learning_plots import draw_ablation

        draw_ablation(report, plot)
        typer.echo(f"plot: {plot}", err=True)
    if json:
        typer.echo(json_text.dumps(report))
    else:
        _print_table(report)


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    rows = report["variants"]
    counts = list(rows[0]["points"])
    heads = [f"{count} click{'s' * (count > 1)}" for count in counts]
    columns = [Column(head, no_wrap=True) for head in ("", *heads, "unseen")]
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        cells, gains = [], []
        for count in counts:
            of = row["points"][count]
            cells.append(f"{100 * of['miou']:.1f} / {100 * of['mbiou']:.1f}")
            gains.append(f"{100 * of['gain']:+.1f} / {100 * of['boundary_gain']:+.1f}")
        worst = "-" if row["worst_unseen"] is None else f"{100 * row['worst_unseen']:+.1f}"
        if row["variant"] == "base":
            table.add_row(row["title"], *cells)
        else:
            table.add_row(row["title"], *cells, worst)
            table.add_row("", *gains, style="dim")
    console = Console(markup=False)
    console.print(
        f"{report['model']}, {report['masks']} kept-out masks; mIoU / mBIoU in %, and what is gained:"
    )
    console.print(table)
    console.print("unseen: the worst gain of a set that was not learnt from")
