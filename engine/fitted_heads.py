"""Heads of a model from labelled images: fitted, written beside the weights, and judged in a card on images they were not fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.evaluate.automatic_masks import judge_automatic
from engine.evaluate.head_card import render_head_card
from engine.evaluate.uncertainty import evaluate_uncertainty
from engine.learn.data import LabelledImage, leave_out_groups, read_sets, spread_evenly
from engine.learn.fitting_sets import FittingSets, choose_output, read_fitting_sets
from engine.learn.gap_targets import TargetMaker
from engine.learn.head_fitting import fit_heads
from engine.learn.perceptron import FitSettings
from engine.learn.splits import split_unknown
from engine.learn.token_store import collect_tokens, join_samples
from engine.models.loading import load_segmenter
from engine.store import Store
from engine.uncertainty.head_files import heads_path, write_heads
from schemas.errors import ConfigError, nearest_name
from schemas.fitting_settings import HeadSettings

_SEEDS = 5
_JUDGED_IMAGES = 60

Sets = Mapping[str, Sequence[LabelledImage]]


def make_heads(
    model: str,
    larger: str | None,
    data: Sequence[Path],
    store: Store | None,
    scenes: int,
    tokens: Store,
    settings: HeadSettings,
    *,
    evaluate_on: Sequence[Path] = (),
    calibrate_on: Sequence[str] = (),
    out: Path | None = None,
    replace: bool = False,
    device: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Path, Path]:
    """Fit heads to a model, write them and their card; returns where both lie.

    Killed at any moment, what was asked of the models is not asked again.

    Args:
        model: registry name, or path or URL of a checkpoint.
        larger: likewise, the model that uncertain work goes to; None or `none` for none, and no model_gap.
        data, store, scenes: see `read_fitting_sets`.
        tokens: keeps what was asked of the models.
        settings: what is fitted to.
        evaluate_on: more COCO sets for the card, never fitted to.
        calibrate_on: names of the sets that predicted_iou is calibrated on; all, if there are none.
        out: file to write; None for NAME.heads.safetensors beside the weights.
        replace: write over that where it is there.
        device: see `load_segmenter`.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        ConfigError: there is nothing to fit to, nowhere to write, or a set that is named twice or not at all.
    """
    others = read_sets(evaluate_on)
    sets = read_fitting_sets(data, store, scenes, progress)
    for name in others:
        if name in sets.labelled:
            raise ConfigError(
                f"Two sets are called {name!r}, one of them to judge on. Rename one of the folders."
            )
    learnt = sets.learnt
    for name in calibrate_on:
        if name not in learnt:
            raise ConfigError(f"There is no set {name!r} to calibrate on. {nearest_name(name, learnt)}")
    segmenter = load_segmenter(model, device=device)
    path = choose_output(out, heads_path(segmenter), "--heads", replace=replace)
    second = load_segmenter(larger, device=device) if larger and larger != "none" else None
    maker = TargetMaker(segmenter, second, objects=settings.objects, automatic=settings.automatic)
    judged = _choose_judged(sets, others)
    collect_tokens(tokens, _merge(learnt, judged), segmenter, maker, _telling(progress, "asking the models"))
    samples = {
        name: collect_tokens(tokens, {name: images}, segmenter, maker) for name, images in learnt.items()
    }
    fitted = fit_heads(
        join_samples(list(samples.values())),
        segmenter.model_id,
        second.model_id if second else "",
        FitSettings(seed=settings.seed),
        calibrate_on=calibrate_on,
        progress=_telling(progress, "fitting"),
    )
    digests = sorted(digest for images in learnt.values() for digest in _digests(images))
    heads = write_heads(fitted.heads, path, {"fitted": json.dumps(digests)})
    figures: dict[str, Any] = {}
    for name, images in judged.items():
        unseen = collect_tokens(tokens, {name: images}, segmenter, maker)
        on_cpu = heads.to(torch.device("cpu"))
        figures[name] = evaluate_uncertainty([(unseen, on_cpu)] * _SEEDS)
        if unseen.automatic_N.any():
            figures[name]["automatic"] = judge_automatic(unseen, on_cpu)
    counts = {
        name: {
            "images": len(learnt[name]),
            "groups": len({image.group for image in learnt[name]}),
            "prompts": len(of),
        }
        for name, of in samples.items()
    }
    calibrated = (
        f"{fitted.calibrated_on[0]} {fitted.calibrated_on[1]} masks ({', '.join(calibrate_on or learnt)})"
    )
    title, size = path.name.partition(".heads")[0] + " heads", path.stat().st_size
    card = path.with_suffix("").with_suffix(".heads.md")
    card.write_text(render_head_card(title, heads, size, counts, fitted.r2, calibrated, figures))
    return path, card


def _choose_judged(sets: FittingSets, others: Sets) -> dict[str, list[LabelledImage]]:
    """What the card tells of: the other sets without what was fitted to, and what is kept out of the labelled ones."""
    fitted_to = {digest for images in sets.learnt.values() for digest in _digests(images)}
    left = {name: leave_out_groups(images, fitted_to) for name, images in others.items()}
    judged = {name: spread_evenly(images, _JUDGED_IMAGES) for name, images in left.items() if images}
    for name, images in sets.labelled.items():
        judged |= split_unknown(name, leave_out_groups(images, _digests(sets.learnt[name])))
    return judged


def _telling(
    progress: Callable[[str, int, int], None] | None, what: str
) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _merge(one: Sets, other: Sets) -> dict[str, list[LabelledImage]]:
    return {name: [*one.get(name, []), *other.get(name, [])] for name in {**one, **other}}


def _digests(images: Iterable[LabelledImage]) -> set[str]:
    return {digest for image in images for digest in image.digests}
