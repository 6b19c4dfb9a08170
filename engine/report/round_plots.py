"""Plots of a round as SVG that lives in a page: its text is the page's, and its colours follow the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

from engine.report.round_answers import Calibration, TaughtVersion
from engine.report.round_data import ScoreHistogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
# What matplotlib draws in these is drawn in the page's colours, which differ on light and dark paper.
_INK, _SECOND, _FAINT, _BLUE, _ORANGE, _PAPER = (
    "#010101",
    "#020202",
    "#030303",
    "#040404",
    "#050505",
    "#060606",
)
_ROLES = {
    _INK: "ink",
    _SECOND: "second",
    _FAINT: "faint",
    _BLUE: "blue",
    _ORANGE: "orange",
    _PAPER: "paper",
}
_GROUPS = {"accepted": _BLUE, "people": _ORANGE, "answered": _INK, "others": _SECOND}
_FEW = 10  # masks of a group; so few are no distribution, beside groups with more
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gapmap",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SECOND,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _SECOND,
    "ytick.color": _SECOND,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def _styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draws in our style, whatever the reader's matplotlibrc says."""

    @wraps(draw)
    def drawn(*args: P.args, **keywords: P.kwargs) -> str:
        from matplotlib import style

        with style.context(["default", _STYLE]):
            return draw(*args, **keywords)

    return drawn


@_styled
def draw_scores(histogram: ScoreHistogram, label: str) -> str:
    """A line a group: which share of its masks has which score."""
    figure = _new_figure(3.5, 2.2)
    axes = figure.subplots()
    said, enough = [], {of: counts for of, counts in histogram.counts.items() if sum(counts) >= _FEW}
    for group, counts in (enough or histogram.counts).items():
        total = sum(counts)
        shares = [100 * count / total for count in counts]
        axes.stairs(shares, histogram.edges, color=_GROUPS[group], linewidth=1.8)
        axes.stairs(shares, histogram.edges, color=_GROUPS[group], alpha=0.12, fill=True)
        edges = zip(histogram.edges, histogram.edges[1:], strict=False)
        middle = sum(count * (low + high) / 2 for count, (low, high) in zip(counts, edges, strict=True))
        said.append(f"{group} {middle / total:.2f}")
    axes.set(xlabel=label, ylabel="% of masks", ylim=(0, None))
    axes.margins(x=0)
    return _to_svg(figure, f"Histogram of {label}; means: {', '.join(said)}.")


@_styled
def draw_calibrations(calibrations: Sequence[Calibration], names: Sequence[str]) -> str:
    """The true IoU by the predicted one, a line a model, over how many masks each bin has."""
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(5.4, 5.0)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=_SECOND, linestyle="--", linewidth=1)
    shift = 0.006 * (len(calibrations) - 1)
    for place, (of, name) in enumerate(zip(calibrations, names, strict=True)):
        colour = (_BLUE, _ORANGE)[place % 2] if len(calibrations) > 1 else _BLUE
        x = [value + shift * (2 * place - 1) for value in of.predicted]
        below = [max(true - low, 0) for true, low in zip(of.true, of.low, strict=True)]
        above = [max(high - true, 0) for true, high in zip(of.true, of.high, strict=True)]
        upper.errorbar(x, of.true, yerr=[below, above], fmt="none", ecolor=colour, linewidth=1, capsize=2.5)
        upper.plot(x, of.true, color=colour, marker="os"[place % 2], markersize=5, linewidth=1.8, label=name)
        width = 0.04 / len(calibrations) * 2
        offset = (place - (len(calibrations) - 1) / 2) * width
        bars = [(min(int(value * 10), 9) + 0.5) / 10 + offset for value in of.predicted]
        lower.bar(bars, of.count, width=width, color=colour, alpha=0.75)
    upper.text(0.02, 0.98, "better than predicted", color=_SECOND, size=9, va="top")
    upper.text(0.98, 0.02, "worse than predicted", color=_SECOND, size=9, ha="right")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="IoU with the answers, mean")
    upper.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.06))
    lower.set(xlabel="predicted IoU", ylabel="masks")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    figure.align_ylabels()
    said = (
        f"{name}: calibration error {of.error:.3f} over {sum(of.count)} masks"
        for of, name in zip(calibrations, names, strict=True)
    )
    return _to_svg(figure, f"Calibration. {'; '.join(said)}.")


@_styled
def draw_differences(differences: Sequence[Mapping[str, Any]]) -> str:
    """Differences of mean IoU in points, with their intervals, a row a task and number of clicks."""
    rows = [of for of in differences if of["metric"] == "miou"]
    figure = _new_figure(5.4, 1.1 + 0.28 * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color=_SECOND, linewidth=1)
    for row, of in enumerate(rows):
        colour = _ORANGE if of["mean"] < 0 else _BLUE
        if of["low"] is not None and of["high"] is not None:
            axes.plot([100 * of["low"], 100 * of["high"]], [row, row], color=colour, linewidth=1.6, alpha=0.7)
        axes.plot([100 * of["mean"]], [row], color=colour, marker="o" if of["task"] != "all" else "D")
    axes.set_yticks(range(len(rows)), [f"{of['task']}, {_clicks(of['points'])}" for of in rows])
    axes.set(xlabel="new minus present, points of IoU", ylim=(len(rows) - 0.4, -0.6))
    axes.spines.left.set_visible(False)
    axes.tick_params(axis="y", length=0)
    said = (f"{of['task']} at {_clicks(of['points'])} {100 * of['mean']:+.1f}" for of in rows)
    return _to_svg(figure, f"Differences in points of IoU: {', '.join(said)}.")


@_styled
def draw_efficiency(versions: Sequence[TaughtVersion]) -> str:
    """Held-out IoU by how many masks people had answered for; an arrow a version, from its parent's to its own."""
    figure = _new_figure(5.4, 3.2)
    axes = figure.subplots()
    ends = []
    for of in versions:
        if of.before is None or of.after is None:
            continue
        before, after = 100 * of.before, 100 * of.after
        axes.plot([of.answers, of.answers], [before, after], color=_FAINT, linewidth=2, zorder=1)
        axes.plot([of.answers], [before], color=_SECOND, marker="_", markersize=10)
        filled = _PAPER if of.action == "refused" else _BLUE
        axes.plot(
            [of.answers],
            [after],
            color=_BLUE,
            marker="o",
            markersize=7,
            markerfacecolor=filled,
            linestyle="",
            zorder=4,
        )
        ends.append((of.answers, after, of.action))
    kept = [(answers, after) for answers, after, action in ends if action != "refused"]
    axes.plot([x for x, _ in kept], [y for _, y in kept], color=_BLUE, linewidth=1.6, zorder=2)
    most = max(answers for answers, _, _ in ends)
    axes.set(xlim=(0, max(1.08 * most, 1)), xlabel="masks answered so far", ylabel="held-out IoU, %")
    axes.margins(y=0.18)
    said = (f"{answers} answers {after:.1f} %" for answers, after, _ in ends)
    return _to_svg(figure, f"Held-out IoU by answers: {', '.join(said)}.")


def _clicks(points: int) -> str:
    return f"{points} click{'s' * (points != 1)}"


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _to_svg(figure: Figure, alt: str) -> str:
    """The figure's SVG element alone, for a page that may hold others: nothing in it leads out of the page."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    svg = written.getvalue()
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :]
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.S)
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)  # another plot of the page has the same
    inside = re.sub(r" font-family: [^;]*;", "", inside)
    for placeholder, role in _ROLES.items():
        inside = inside.replace(placeholder, f"var(--{role})")
    width = round(float(size[1]) * 4 / 3)  # points to pixels
    return f'<svg role="img" aria-label="{escape(alt)}" {size[0]} style="max-width:{width}px">{inside}'
