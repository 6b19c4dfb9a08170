"""The card of a head set: what it was fitted to, and how well it does on what took no part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.uncertainty.heads import HeadSet

_CARD = """# {title}

Heads of `{model}`: why is it unsure of a mask (`model_gap`, `prompt_gap`, `task_gap`), and how good is the mask
(`predicted_iou`, calibrated). {larger}

| | |
|---|---|
| heads | {heads} |
| size | {parameters:.2f} M parameters, {kilobytes:.0f} kB; {members} perceptrons whose answers are averaged |
| reads | IoU token, mask token ({pairing}), {features} features of the mask; every second perceptron the features alone |
| version | `{version}` (first digits of the file's SHA-256) |

## Fitted to
{fitted}

R² on groups that took no part in the fit: {r2}.
`predicted_iou` is calibrated on {calibrated} that took no part in it either.

## On what it has not seen
The output the model scores best from one central point of each object. r: correlation with the true IoU. Relative AUC
(1 = mending the largest true gain first): the direct gap, beside SamScore and chance.

| set | n | IoU | r predicted_iou | r SamScore | calibration error | {gap_heads} |
|---|---|---|---|---|---|{gap_rule}|
{rows}
{automatic}
Made with `gapmap fit-heads`.
"""
_AUTOMATIC = """
Automatic masks, as labelling keeps them, on labelled objects (at most so many of an image, drawn at random):

| set | masks | r predicted_iou | r SamScore | r stability | calibration error |
|---|---|---|---|---|---|
{rows}
"""
_FIXES = {"model": "the larger model", "prompt": "a dense prompt", "task": "the best of three"}


def render_head_card(
    title: str,
    heads: HeadSet,
    file_bytes: int,
    fitted: Mapping[str, Mapping[str, int]],
    r2: Mapping[str, float],
    calibrated: str,
    figures: Mapping[str, Mapping[str, Any]],
) -> str:
    """The card as Markdown.

    Args:
        title: name of the set.
        heads: the set.
        file_bytes: size of its file.
        fitted: by name of the data, how many `images`, `groups` and `prompts` it was fitted to.
        r2: of each head.
        calibrated: what `predicted_iou` was calibrated on, in words.
        figures: by name of the data, what `evaluate_uncertainty` says of it, and `judge_automatic` under `automatic`.
    """
    gaps = [gap for gap in _FIXES if any(gap in figure["relative_auc"] for figure in figures.values())]
    return _CARD.format(
        title=title,
        model=heads.model_id,
        larger=f"The larger model is `{heads.larger}`."
        if heads.larger
        else "No larger model: no `model_gap`.",
        heads=", ".join(heads.names),
        parameters=sum(weight.numel() + bias.numel() for weight, bias in heads.weights) / 1e6,
        kilobytes=file_bytes / 1e3,
        members=len(heads.weights[0][0]),
        pairing=f"its {heads.pairing}",
        features=heads.features,
        version=heads.version,
        fitted="\n".join(
            f"- {name}: {of['images']} images ({of['groups']} groups), {of['prompts']} prompts"
            for name, of in fitted.items()
        ),
        r2=", ".join(f"{name} {value:.2f}" for name, value in r2.items()),
        calibrated=calibrated,
        gap_heads=" | ".join(f"{_FIXES[gap]}: gain, AUC" for gap in gaps),
        gap_rule="|".join("---" for _ in gaps),
        rows="\n".join(_row(name, figure, gaps) for name, figure in figures.items()),
        automatic=_automatic(
            {name: figure["automatic"] for name, figure in figures.items() if "automatic" in figure}
        ),
    )


def _row(name: str, figure: Mapping[str, Any], gaps: list[str]) -> str:
    [of] = figure["sets"].values() if len(figure["sets"]) == 1 else [_pool(figure["sets"])]
    cells = [
        name,
        str(figure["n"]),
        f"{of['iou']:.2f}",
        _show(figure["correlation"]["predicted_iou"]),
        _show(figure["correlation"]["sam_score"]),
        f"{figure['calibration_error']:.3f}",
    ]
    for gap in gaps:
        areas = figure["relative_auc"].get(gap)
        if areas:
            star, sam, chance = (areas[m]["mean"] for m in ("delta_star", "sam_score", "random"))
            cells.append(f"{of[gap] - of['iou']:+.2f}, **{_show(star)}** ({_show(sam)}, {_show(chance)})")
        else:
            cells.append("")
    return f"| {' | '.join(cells)} |"


def _automatic(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of automatic masks; nothing where none were judged."""
    rows = [
        f"| {name} | {of['n']} | **{_show(of['correlation']['predicted_iou'])}** | {_show(of['correlation']['sam_score'])} | "
        f"{_show(of['correlation']['stability'])} | {_show(of['calibration_error'], 3)} |"
        for name, of in figures.items()
    ]
    return _AUTOMATIC.format(rows="\n".join(rows)) if rows else ""


def _show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pool(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over all samples of several sets."""
    total = sum(of["n"] for of in sets.values())
    names = next(iter(sets.values())).keys()
    return {name: sum(of[name] * of["n"] for of in sets.values()) / total for name in names}
