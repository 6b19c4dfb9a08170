"""What an evaluation of uncertainty found, as pictures for a README: four PNGs from one plain dict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.store.whole_file import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"sam_score": "SamScore", "predicted_iou": "predicted IoU", "delta": "Δ", "delta_star": "Δ*"}
_NAMES |= {"H_Y": "$H_Y$", "H_A": "$H_A$", "H_Xp": "$H_{Xp}$", "H_Theta": "$H_Θ$"}
_PANELS = {
    "model": ("Model gap", "a larger model"),
    "prompt": ("Prompt gap", "a denser prompt"),
    "task": ("Task gap", "the best of its three masks"),
}
# Okabe and Ito's colours, which colour-blind people can tell apart; what ours are compared with is grey.
_OURS = {"delta_star": "#0072B2", "delta": "#56B4E9", "predicted_iou": "#009E73"}
_RANDOM, _INK, _SECOND, _GREY, _LIGHT = "#D55E00", "#1e1e22", "#66666e", "#b4b4bc", "#d8d8de"
_LINES: dict[str, dict[str, Any]] = {
    "delta_star": {"color": _OURS["delta_star"], "linewidth": 2.8, "zorder": 5},
    "delta": {"color": _OURS["delta"], "linewidth": 1.6, "zorder": 4},
    "predicted_iou": {"color": _OURS["predicted_iou"], "linewidth": 1.6, "zorder": 4},
    "best baseline": {"color": _SECOND, "linewidth": 1.1, "zorder": 3},
    "other baselines": {"color": _GREY, "linewidth": 1.1},
    "oracle": {"color": _INK, "linewidth": 1.3, "linestyle": "--"},
    "random": {"color": _RANDOM, "linewidth": 1.6, "linestyle": ":"},
}
_REFERENCES = {"random", "oracle"}
_STYLE = {
    "savefig.dpi": 144,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SECOND,
    "text.color": _INK,
    "xtick.color": _SECOND,
    "ytick.color": _SECOND,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def draw_uncertainty(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `relative-auc.png`, `correction-curves.png`, `calibration.png` and `correlation.png`.

    A gap, a method or a value that is missing, None or not finite is left out, and so is a picture that would
    show nothing: an older file of its name then stays. Files appear whole, and the same result gives the same.

    Args:
        result: `model` and `larger` (`name@version`, the latter None where there is none), `n` predictions,
            `seeds`; `relative_auc[gap][method]` with `mean` and `std`, 1 is the oracle's; `curves[gap][method]`,
            mean IoU 0..1 at evenly spread shares corrected, none to all; `correlation[method]` with the true
            IoU, -1..1; `calibration_error`, 0..1; `calibration` with lists `predicted`, `true` (IoU) and `count`.
            Gaps are model, prompt, task.
        folder: is made if it is not there.

    Returns:
        The files written, in the order above.

    Raises:
        KeyError: `model`, `n` or `seeds` is missing.
        OSError: the folder cannot be made or written.
    """
    from matplotlib import style

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style.context(["default", _STYLE]):  # whatever the reader's matplotlibrc says
        for name, draw in _PICTURES.items():
            figure = draw(result)
            if figure is not None:
                _save(figure, folder / name)
                written.append(folder / name)
    return written


def _draw_relative_auc(result: Mapping[str, Any]) -> Figure | None:
    found = _gaps(result, "relative_auc", lambda value: _finite(value.get("mean")))
    if not found:
        return None
    figure, panels = _panels(result, found, "Relative AUC: higher is better, the oracle has 100 %", 3.7)
    lowest = min(value["mean"] for values in found.values() for value in values.values())
    for gap, axes in panels.items():
        values = found[gap]
        bars = {}
        for method in sorted(set(values) - _REFERENCES, key=lambda m: (-values[m]["mean"], m)):
            std = values[method].get("std")
            bars[method] = (100 * values[method]["mean"], 100 * std if _finite(std) else 0.0)
        pairs = bars.values()
        _draw_bars(axes, bars, [f"{m:.1f} ± {std:.1f}" if std >= 0.05 else f"{m:.1f}" for m, std in pairs])
        if "random" in values:
            level, row = 100 * values["random"]["mean"], len(bars)
            side, shift = ("right", -2) if level > 50 else ("left", 2)
            axes.axvline(level, color=_RANDOM, linestyle="--", linewidth=1.3, zorder=3)
            axes.text(level + shift, row, "random", color=_RANDOM, size=9, ha=side, va="center")
            _write_beside(axes, row, f"{level:.1f}", color=_RANDOM)
            axes.set_ylim(row + 0.5, -0.6)
        axes.set(xlim=(min(0, 110 * lowest), 100), xlabel="% of the oracle's area (± std)")
        axes.set_xticks([0, 25, 50, 75, 100])
    return figure


def _draw_curves(result: Mapping[str, Any]) -> Figure | None:
    found = _gaps(result, "curves", lambda curve: curve is not None and len(curve) > 1 and _finite(*curve))
    if not found:
        return None
    rows = 1 if len(found) == 3 else 2  # of the legend
    title = "Most uncertain corrected first: higher is better"
    figure, panels = _panels(result, found, title, 4.0 + 0.2 * rows, rows + 1)
    lines: dict[str, Any] = {}
    for gap, axes in panels.items():
        curves = found[gap]
        compared = sorted(set(curves) - set(_OURS) - _REFERENCES, key=lambda m: (-sum(curves[m]), m))
        roles = {"best baseline": compared[:1], "other baselines": compared[1:]}
        for role, look in _LINES.items():
            for method in roles.get(role, [role] if role in curves else []):
                last = len(curves[method]) - 1
                shares = [100 * i / last for i in range(last + 1)]
                lines[_NAMES.get(role, role)] = axes.plot(shares, curves[method], **look)[0]
        best = f"\nbest baseline: {_NAMES.get(compared[0], compared[0])}" if compared else ""
        axes.set(xlim=(0, 100), xlabel=f"% corrected{best}")
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.035), "ncols": 8 // rows}
    figure.legend(lines.values(), lines, **place, frameon=False, fontsize=9)
    next(iter(panels.values())).set_ylabel("mean IoU")
    return figure


def _draw_calibration(result: Mapping[str, Any]) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    bins = result.get("calibration") or {"predicted": [], "true": [], "count": []}
    rows = zip(bins["predicted"], bins["true"], bins["count"], strict=True)
    kept = sorted(row for row in rows if _finite(*row) and row[2] > 0)
    if not kept:
        return None
    predicted, true, count = zip(*kept, strict=True)
    error = result.get("calibration_error")
    title = f"Calibration error (ECE) {error:.3f}: lower is better" if _finite(error) else "Calibration"
    figure = _figure(result, title, 5.2, 5.8)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=_SECOND, linestyle="--", linewidth=1.2)
    upper.plot(predicted, true, color=_OURS["predicted_iou"], marker="o", markersize=5, linewidth=1.8)
    upper.text(0.03, 0.97, "better than predicted", color=_SECOND, size=9, va="top")
    upper.text(0.97, 0.03, "worse than predicted", color=_SECOND, size=9, ha="right")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="true IoU, mean of the bin")
    nearest = min((b - a for a, b in pairwise(predicted)), default=1)
    lower.bar(predicted, count, width=min(max(0.8 * nearest, 0.015), 0.08), color=_LIGHT)
    lower.set(xlabel="predicted IoU, mean of the bin", ylabel="count")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    figure.align_ylabels()
    return figure


def _draw_correlation(result: Mapping[str, Any]) -> Figure | None:
    values = {m: r for m, r in (result.get("correlation") or {}).items() if _finite(r)}
    methods = sorted(set(values) - _REFERENCES, key=lambda m: (-abs(values[m]), m))
    if not methods:
        return None
    title = "Correlation with the true IoU: longer is better"
    figure = _figure(result, title, 5.2, 1.6 + 0.28 * len(methods))
    axes = figure.subplots()
    _draw_bars(axes, {m: (values[m], 0) for m in methods}, [f"{values[m]:+.2f}" for m in methods])
    axes.set_xlabel("correlation r")
    return figure


_PICTURES = {
    "relative-auc.png": _draw_relative_auc,
    "correction-curves.png": _draw_curves,
    "calibration.png": _draw_calibration,
    "correlation.png": _draw_correlation,
}


def _gaps(result: Mapping[str, Any], key: str, keep: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    """What there is to show by gap and method; a gap of references alone shows nothing."""
    gaps = {gap: (result.get(key) or {}).get(gap) or {} for gap in _PANELS}
    kept = {gap: {m: v for m, v in values.items() if keep(v)} for gap, values in gaps.items()}
    return {gap: values for gap, values in kept.items() if set(values) - _REFERENCES}


def _panels(
    result: Mapping[str, Any], gaps: Iterable[str], title: str, height: float, room: int = 0
) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each gap side by side, each saying what corrects a prediction in it."""
    names = list(gaps)
    figure = _figure(result, title, max(5.2, 3.6 * len(names)), height, room)
    panels = dict(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True))
    for gap, axes in panels.items():
        name, corrector = _PANELS[gap]
        if gap == "model" and result.get("larger"):
            corrector = result["larger"].partition("@")[0]
        axes.set_title(name, loc="left", size=11, pad=20)
        look = {"transform": axes.transAxes, "color": _SECOND, "size": 9, "parse_math": False}
        axes.text(0, 1.03, f"corrected by {corrector}", **look)
    return figure, panels


def _draw_bars(axes: Axes, bars: Mapping[str, tuple[float, float]], texts: Sequence[str]) -> None:
    """Horizontal bars from the top down, of value and error; their texts stand beside, where no line crosses."""
    axes.set_yticks(range(len(bars)), [_NAMES.get(method, method) for method in bars])
    for row, (method, (value, error)) in enumerate(bars.items()):
        weight = "bold" if method == "delta_star" else "normal"
        axes.get_yticklabels()[row].set_fontweight(weight)
        axes.barh(row, value, height=0.7, color=_OURS.get(method, _GREY))
        if error:
            axes.errorbar(value, row, xerr=error, color=_INK, capsize=2.5, linewidth=1.1, zorder=4)
        _write_beside(axes, row, texts[row], weight=weight)
    axes.axvline(0, color=_SECOND, linewidth=0.8, zorder=3)
    axes.spines.left.set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.4, -0.6)


def _write_beside(axes: Axes, row: float, text: str, **look: Any) -> None:
    text = text.replace("-", "−")
    axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), size=9, va="center", **look)


def _figure(result: Mapping[str, Any], title: str, width: float, height: float, room: int = 0) -> Figure:
    """An empty figure, its title above and what was evaluated below, under `room` empty lines for a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    seeds = "one seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"
    foot = "\n" * room + f"{result['model']}  ·  {result['n']:,} predictions  ·  {seeds}"
    figure.supxlabel(foot, x=0.01, ha="left", size=8, color=_SECOND, parse_math=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as part:
        figure.savefig(part, metadata={"Software": None})  # the version of matplotlib would change the file


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
