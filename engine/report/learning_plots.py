"""Pictures of learning: how a run went, and what each part of the method is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.store.whole_file import written_whole

_BLUE, _ORANGE, _GREY, _INK = "#0072B2", "#D55E00", "#b4b4bc", "#1e1e22"


def draw_learning(history: Sequence[Mapping[str, float]], kept: int, path: Path, *, title: str) -> None:
    """Loss, and IoU on held-out groups, by update; a PNG, written whole.

    Args:
        history: looks at the held-out groups: `step`, `loss` (mean since the look before), `iou` (0 without such groups).
        kept: update whose weights were kept.
        path: the file; its folder must be there.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained", dpi=144)
    upper, lower = figure.subplots(2, 1, sharex=True)
    looked = [look for look in history if look["step"]]
    upper.plot(
        [look["step"] for look in looked],
        [look["loss"] for look in looked],
        marker="o",
        markersize=4,
        color=_INK,
    )
    upper.set(ylabel="loss")
    upper.set_title(title, loc="left", size=11)
    judged = [look for look in history if look["iou"]]
    if judged:
        best = next(look for look in history if look["step"] == kept)
        lower.plot(
            [look["step"] for look in judged],
            [100 * look["iou"] for look in judged],
            marker="o",
            markersize=4,
            color=_BLUE,
        )
        lower.plot(best["step"], 100 * best["iou"], marker="o", markersize=8, color=_ORANGE)
        lower.annotate(
            f"kept: {100 * best['iou']:.1f}",
            (best["step"], 100 * best["iou"]),
            (0, -16),
            textcoords="offset points",
            ha="center",
            color=_ORANGE,
            size=9,
        )
    else:
        lower.text(
            0.5, 0.5, "too few groups to hold any out", transform=lower.transAxes, ha="center", color=_GREY
        )
    lower.set(ylabel="held-out IoU, %", xlabel="update")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.18)
    with written_whole(path) as part:
        figure.savefig(part)


def draw_ablation(report: Mapping[str, Any], path: Path) -> None:
    """What each variant gains over the model as it was, with its 95 % interval, for each number of clicks; a PNG.

    Args:
        report: `model`, `masks` and `variants` as `engine.evaluate.ablation.tabulate` gives them.
        path: the file; its folder must be there.
    """
    from matplotlib.figure import Figure

    rows = [row for row in report["variants"] if row["variant"] != "base"][::-1]
    counts = list(report["variants"][0]["points"])
    figure = Figure(figsize=(3.1 * len(counts) + 2.4, 0.42 * len(rows) + 1.5), layout="constrained", dpi=144)
    for place, (axes, points) in enumerate(
        zip(figure.subplots(1, len(counts), sharey=True, squeeze=False)[0], counts, strict=True)
    ):
        axes.axvline(0, color=_GREY, linewidth=1)
        for y, row in enumerate(rows):
            of = row["points"][points]
            colour = _ORANGE if row["variant"] == "sum" else _BLUE
            if of["low"] is not None:
                axes.plot([100 * of["low"], 100 * of["high"]], [y, y], color=colour, linewidth=1.4)
            axes.plot(100 * of["gain"], y, "o", color=colour, markersize=6)
            axes.plot(
                100 * of["boundary_gain"],
                y,
                "o",
                markerfacecolor="white",
                markeredgecolor=colour,
                markersize=5,
            )
        axes.set_title(f"{points} click{'s' * (int(points) > 1)}", loc="left", size=10)
        axes.set_xlabel("points gained")
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if not place:
            axes.plot([], [], "o", color=_INK, markersize=6, label="mIoU, 95 %")
            axes.plot([], [], "o", markerfacecolor="white", markeredgecolor=_INK, markersize=5, label="mBIoU")
    figure.suptitle(
        f"{report['model']}: gain over the model as it was, {report['masks']} kept-out masks",
        x=0.01,
        ha="left",
        size=11,
    )
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    with written_whole(path) as part:
        figure.savefig(part)
