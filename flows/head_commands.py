"""The command `gapmap fit-heads`: labelled images in, heads that score a model's masks out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from engine.learn.data import LabelledImage

DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="COCO file, or folder with an annotations.json; may be given several times.",
        show_default=False,
    ),
]
AnswersOption = Annotated[
    str | None, typer.Option(help="Store whose answers of people are a labelled set, too. Default: none.")
]
TokensOption = Annotated[
    str,
    typer.Option(
        envvar="GAPMAP_TOKENS",
        help="Store that keeps tokens and true IoU, so that fitting again takes seconds: a folder or any fsspec URL.",
    ),
]
AutomaticOption = Annotated[
    int,
    typer.Option(
        min=0,
        help="Points of the grid of an image, at most, whose automatic masks take part; 0 for none, which saves a labelling "
        "of each image.",
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Write over the file beside the weights, which label uses.")
]
_SCENE_SIZE = 384
_SEEDS = 5
_JUDGED_IMAGES = 60


def fit_heads(
    model: Annotated[str, typer.Option(help="Registry name, or path or URL of a checkpoint.")] = "sam-nano",
    larger: Annotated[
        str | None,
        typer.Option(help="The model that uncertain work goes to. Default: none, and no model_gap."),
    ] = None,
    data: DataOption = None,
    store: AnswersOption = None,
    scenes: Annotated[int, typer.Option(min=0, help="Procedural scenes to fit to, besides.")] = 0,
    evaluate_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="More COCO sets for the card, never fitted to, 60 images of each at most; may be given several times."
        ),
    ] = None,
    calibrate_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Sets to calibrate predicted_iou on, by name (a folder's, or scenes): such as the model itself did not "
            "learn from. Default: all."
        ),
    ] = None,
    tokens: TokensOption = "gapmap-tokens",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: NAME.heads.safetensors beside the weights, where label finds it."
        ),
    ] = None,
    replace: ReplaceOption = False,
    objects: Annotated[int, typer.Option(min=1, help="Objects of an image, at most.")] = 20,
    automatic: AutomaticOption = 64,
    seed: Annotated[
        int,
        typer.Option(help="Of splits and initial weights; which prompts are drawn does not depend on it."),
    ] = 0,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Fit the heads that say why a model is unsure of a mask, and how good the mask is.

    The last fifth of each set's groups is kept out, and tells in the card how good the heads are. Stop it whenever
    you like: what was asked of the models is kept.

    Example: gapmap fit-heads --model sam-nano --larger sam2-mini --data labelled/ --scenes 500
    """
    import torch

    from engine.evaluate.automatic_masks import judge_automatic
    from engine.evaluate.head_card import render_head_card
    from engine.evaluate.uncertainty import evaluate_uncertainty
    from engine.learn.answers import read_lessons
    from engine.learn.data import (
        learnable_images,
        leave_out_groups,
        make_head_scenes,
        read_sets,
        split_unknown,
        spread_evenly,
    )
    from engine.learn.gap_targets import TargetMaker
    from engine.learn.head_fitting import fit_heads as fit
    from engine.learn.perceptron import FitSettings
    from engine.learn.token_store import collect_tokens, join_samples
    from engine.models.allocator import keep_freed_memory
    from engine.models.loading import load_segmenter
    from engine.store import Store
    from engine.uncertainty.head_files import heads_path, write_heads
    from flows.console import steps_progress

    labelled = read_lessons(data or [], Store(store) if store else None, openable=True)
    if not labelled and not scenes:
        raise ConfigError(
            "There is nothing to fit to. Give labelled images (--data FOLDER), a --store with answers, or --scenes 500."
        )
    others = read_sets(evaluate_on or [])
    learnt = {name: learnable_images(images) for name, images in labelled.items()}
    for name in others:
        if name in labelled:
            raise ConfigError(
                f"Two sets are called {name!r}, one of them to judge on. Rename one of the folders."
            )
    for name, images in learnt.items():
        if not images or name == "scenes":
            reason = (
                "is what procedural scenes are called"
                if images
                else "has no labelled image that may be learnt from"
            )
            raise ConfigError(f"The set {name!r} {reason}. Rename it, or leave it out.")
    if scenes:
        learnt["scenes"] = make_head_scenes(scenes, _SCENE_SIZE, 2)
    for name in calibrate_on or ():
        if name not in learnt:
            raise ConfigError(f"There is no set {name!r} to calibrate on. {nearest_name(name, learnt)}")
    keep_freed_memory()
    segmenter = load_segmenter(model, device=device)
    path = choose_output(out, heads_path(segmenter), "--heads", replace=replace)
    second = load_segmenter(larger, device=device) if larger else None
    maker = TargetMaker(segmenter, second, objects=objects, automatic=automatic)
    fitted_to = {digest for images in learnt.values() for digest in _digests(images)}
    judged = {name: left for name, images in others.items() if (left := leave_out_groups(images, fitted_to))}
    judged = {name: spread_evenly(images, _JUDGED_IMAGES) for name, images in judged.items()}
    for name, images in labelled.items():
        judged |= split_unknown(name, leave_out_groups(images, _digests(learnt[name])))
    kept = Store(tokens)
    with steps_progress("asking the models") as progress:
        collect_tokens(kept, _merge(learnt, judged), segmenter, maker, progress)
    samples = {
        name: collect_tokens(kept, {name: images}, segmenter, maker) for name, images in learnt.items()
    }
    with steps_progress("fitting") as progress:
        fitted = fit(
            join_samples(list(samples.values())),
            segmenter.model_id,
            second.model_id if second else "",
            FitSettings(seed=seed),
            calibrate_on=calibrate_on or (),
            progress=progress,
        )
    digests = sorted(digest for images in learnt.values() for digest in _digests(images))
    heads = write_heads(fitted.heads, path, {"fitted": json.dumps(digests)})
    figures = {}
    for name, images in judged.items():
        unseen = collect_tokens(kept, {name: images}, segmenter, maker)
        on_cpu = heads.to(torch.device("cpu"))
        figures[name] = evaluate_uncertainty([(unseen, on_cpu)] * _SEEDS)
        if unseen.automatic_N.any():
            figures[name]["automatic"] = judge_automatic(unseen, on_cpu)
    card = render_head_card(
        path.name.partition(".heads")[0] + " heads",
        heads,
        path.stat().st_size,
        {
            name: {
                "images": len(learnt[name]),
                "groups": len({image.group for image in learnt[name]}),
                "prompts": len(of),
            }
            for name, of in samples.items()
        },
        fitted.r2,
        f"{fitted.calibrated_on[0]} {fitted.calibrated_on[1]} masks ({', '.join(calibrate_on or learnt)})",
        figures,
    )
    path.with_suffix("").with_suffix(".heads.md").write_text(card)
    typer.echo(f"heads: {path}   card: {path.with_suffix('').with_suffix('.heads.md')}")


def choose_output(out: Path | None, beside: Path | None, option: str, *, replace: bool) -> Path:
    """Where what was fitted is to be written: `out`, else the file beside the weights.

    Args:
        out: asked for.
        beside: where label looks for it; None for weights at a URL.
        option: of label, that names another file.
        replace: write over `beside` where it is there.

    Raises:
        ConfigError: there is no such place, or a file that every later run would miss.
    """
    path = out or beside
    if path is None:
        raise ConfigError("The weights lie at a URL. Say where to write: --out FILE")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}. Make it, or name another --out.")
    if out is None and path.exists() and not replace:
        raise ConfigError(
            f"{path} is there already, and label uses it. Name another file (--out FILE) and give it to label with {option}, "
            "or write over it: --replace"
        )
    return path


def _merge(
    one: dict[str, list[LabelledImage]], other: dict[str, list[LabelledImage]]
) -> dict[str, list[LabelledImage]]:
    return {name: [*one.get(name, []), *other.get(name, [])] for name in {**one, **other}}


def _digests(images: list[LabelledImage]) -> set[str]:
    return {image.digest for image in images}
