"""The result file, the picture and the table of the benchmark of active learning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from generate import ROOT, write_report

BASELINE = "random"
FIGURES = ("miou", "fluorescence", "unknown")
Curve = list[dict[str, Any]]


def report(folder: Path, load_before: tuple[float, float, float], *, write: bool) -> None:
    """Print what the series of a folder say; and write the result file and draw docs/active-learning.png.

    Args:
        folder: of the files `STRATEGY-SEED.json`.
        load_before: of the machine, before the run.
        write: whether to write and draw, too.
    """
    series = read_series(folder)
    strategies = sorted({strategy for strategy, _ in series}, key=lambda name: (name != BASELINE, name))
    table = [summarise(series, strategy) for strategy in strategies]
    show(table)
    if not write:
        return
    draw(series, strategies, ROOT / "docs" / "active-learning.png")
    protocol = next(iter(series.values()))["protocol"]
    results = [
        {"strategy": strategy, "seed": seed, "curve": of["curve"], "asked": _discover(of["asked"])}
        for (strategy, seed), of in sorted(series.items())
    ]
    write_report("active-learning", results, load_before, protocol=protocol, summary=table)


def read_series(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Series by strategy and seed; of unequal lengths, only those that went as far as the longest."""
    read = {}
    for path in sorted(folder.glob("*-*.json")):
        strategy, _, seed = path.stem.rpartition("-")
        read[strategy, int(seed)] = json.loads(path.read_text())
    longest = max((len(of["curve"]) for of in read.values()), default=0)
    for (strategy, seed), of in read.items():
        if len(of["curve"]) < longest:
            print(f"Left out: {strategy}, seed {seed}: {len(of['curve']) - 1} of {longest - 1} steps.")
    return {key: of for key, of in read.items() if len(of["curve"]) == longest}


def labels_to_reach(curve: Curve, target: float, what: str = "miou") -> float | None:
    """Labels at which a curve first comes up to a value, linear between its points; None where it never does."""
    labels, value = [point["labels"] for point in curve], _values(curve, what)
    for after in range(len(curve)):
        if value[after] >= target:
            if after == 0:
                return float(labels[0])
            share = (target - value[after - 1]) / (value[after] - value[after - 1])
            return float(labels[after - 1] + share * (labels[after] - labels[after - 1]))
    return None


def summarise(series: dict[tuple[str, int], dict[str, Any]], strategy: str) -> dict[str, Any]:
    """What is printed and kept of a strategy, over the seeds that random has, too."""
    seeds = sorted(seed for name, seed in series if name == strategy and (BASELINE, seed) in series)
    if not seeds:
        return {"strategy": strategy, "seeds": []}
    curves = [series[strategy, seed]["curve"] for seed in seeds]
    randoms = [series[BASELINE, seed]["curve"] for seed in seeds]
    mean, random = _mean_curve(curves), _mean_curve(randoms)
    shares: dict[str, Any] = {}
    for what in ("miou", "unknown"):
        shares[what] = {
            "of_mean_curve": _share_of_labels(mean, random, what),
            "of_seeds": [
                _share_of_labels(curve, other, what) for curve, other in zip(curves, randoms, strict=True)
            ],
        }
    asked = [series[strategy, seed]["asked"] for seed in seeds]
    return {
        "strategy": strategy,
        "seeds": seeds,
        "labels": random[-1]["labels"],
        "share_of_labels": shares,
        "random_gains": {what: round(random[-1][what] - random[0][what], 4) for what in ("miou", "unknown")},
        "seconds": round(mean[-1]["seconds"]),
        "start": {what: round(mean[0][what], 4) for what in FIGURES},
        "final": {what: round(mean[-1][what], 4) for what in FIGURES},
        "final_of_seeds": [round(curve[-1]["miou"], 4) for curve in curves],
        "first_unknown": [next((k + 1 for k, a in enumerate(of) if a["unknown"]), None) for of in asked],
        "unknown_share": round(float(np.mean([a["unknown"] for of in asked for a in of])), 3),
        "unknown_images": [len({a["image"] for a in of if a["unknown"]}) for of in asked],
        "no_object_share": round(
            float(np.mean([a["verdict"] == "no object" for of in asked for a in of])), 3
        ),
    }


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print("labels to reach random's final mIoU, as a share of random's: of the mean curve, and of each seed")
    print("(no gain: random itself ends no better than the shipped model)")
    for row in table:
        if not row["seeds"]:
            continue
        share, final = row["share_of_labels"]["miou"], row["final"]
        print(
            f"{row['strategy']:18} {_percent(share['of_mean_curve']):>7}   {' '.join(map(_percent, share['of_seeds'])):24}"
            f" final {final['miou']:.3f} (fluorescence {final['fluorescence']:.3f}, unknown {final['unknown']:.3f}),"
            f" {row['seconds']} s, {100 * row['unknown_share']:.0f} % unknown, {100 * row['no_object_share']:.0f} % no object"
        )


def draw(series: dict[tuple[str, int], dict[str, Any]], strategies: Sequence[str], path: Path) -> None:
    """Curves over labels and over seconds, their two parts, and the unknown kinds found."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((over_labels, over_seconds), (parts, found)) = pyplot.subplots(2, 2, figsize=(11, 8))
    for number, strategy in enumerate(strategies):
        color = "black" if strategy == BASELINE else f"C{number}"
        of = [run for (name, _), run in sorted(series.items()) if name == strategy]
        curves = [run["curve"] for run in of]
        mean = _mean_curve(curves)
        labels = [point["labels"] for point in mean]
        label = f"{strategy} ({len(of)})"
        for axes, along in ((over_labels, "labels"), (over_seconds, "seconds")):
            for curve in curves:
                axes.plot([p[along] for p in curve], _values(curve), color=color, alpha=0.2, lw=0.8)
            axes.plot(
                [p[along] for p in mean],
                _values(mean),
                color=color,
                marker="o",
                ms=3,
                label=label,
            )
        parts.plot(labels, _values(mean, "unknown"), color=color, marker="o", ms=3)
        parts.plot(labels, _values(mean, "fluorescence"), color=color, ls="--", lw=1)
        counts = [_discover(run["asked"])["unknown_images"] for run in of]
        shortest = min(map(len, counts))
        found.plot(np.arange(1, shortest + 1), np.mean([c[:shortest] for c in counts], 0), color=color)
    over_labels.set(xlabel="labels", ylabel="mIoU, one click", title="mean of fluorescence and unknown kinds")
    over_seconds.set(xlabel="simulated seconds of people", title="the same over people's time")
    parts.set(xlabel="labels", ylabel="mIoU, one click", title="unknown kinds (solid), fluorescence (dashed)")
    found.set(xlabel="labels", ylabel="images", title="images of unknown kinds asked about")
    over_labels.legend(title="strategy (seeds)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"Drawn: {path}")


def _discover(asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was asked, label after label: images of unknown kinds so far, and verdicts counted."""
    seen: set[int] = set()
    counts = []
    for of in asked:
        if of["unknown"]:
            seen.add(of["image"])
        counts.append(len(seen))
    verdicts = [of["verdict"] for of in asked]
    return {
        "unknown_images": counts,
        "unknown": sum(of["unknown"] for of in asked),
        "verdicts": {name: verdicts.count(name) for name in ("correct", "fixed", "no object")},
    }


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves, point by point."""
    names = ("labels", "seconds", *FIGURES)
    return [
        {name: float(np.mean([point[name] for point in points])) for name in names}
        for points in zip(*curves, strict=True)
    ]


def _values(curve: Curve, what: str = "miou") -> list[float]:
    return [point[what] for point in curve]


def _share_of_labels(curve: Curve, random: Curve, what: str) -> float | str:
    """Of random's labels, how many a curve needs to reach random's final value; in words where it cannot be said."""
    if random[-1][what] <= random[0][what]:
        return "no gain"  # of random's: the shipped model is there without any label
    labels = labels_to_reach(curve, random[-1][what], what)
    return "never" if labels is None else round(labels / random[-1]["labels"], 3)


def _percent(share: float | str) -> str:
    return share if isinstance(share, str) else f"{100 * share:.0f} %"
