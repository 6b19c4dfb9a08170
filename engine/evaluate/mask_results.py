"""What an evaluation found of every mask, kept apart so that models can be compared mask by mask, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.records import TASKS

MOST_POINTS = 20


@dataclass(frozen=True)
class MaskResult:
    """How well a model drew one mask with so many clicks.

    Attributes:
        data: name of the set.
        group: the image's group within the set; masks of one group are not independent.
        image: the image's name.
        mask: place among the image's masks.
        task: what was meant, one of `TASKS`.
        points: number of clicks.
        iou: of the best of the three outputs, 0..1.
        biou: boundary IoU of the same output, 0..1.
        clicks: x, y (image pixels) and 1 for foreground or 0 for background, of each click.
        rle: compressed counts of that output, if asked for; else None.
    """

    data: str
    group: str
    image: str
    mask: int
    task: str
    points: int
    iou: float
    biou: float
    clicks: tuple[tuple[float, float, int], ...]
    rle: str | None = None


def summarise_results(results: Sequence[MaskResult]) -> list[dict[str, Any]]:
    """Means over the masks of each set, task and number of clicks.

    Returns:
        Rows {data, task, points, miou, mbiou, n}: shares 0..1, n masks; sets in their order, tasks in that of `TASKS`.
    """
    cells: dict[tuple[str, str, int], list[MaskResult]] = {}
    for result in results:
        cells.setdefault((result.data, result.task, result.points), []).append(result)
    sets = list(dict.fromkeys(result.data for result in results))
    return [
        {
            "data": data,
            "task": task,
            "points": points,
            "miou": round(float(np.mean([result.iou for result in of])), 5),
            "mbiou": round(float(np.mean([result.biou for result in of])), 5),
            "n": len(of),
        }
        for (data, task, points), of in sorted(
            cells.items(), key=lambda cell: (sets.index(cell[0][0]), TASKS.index(cell[0][1]), cell[0][2])
        )
    ]
