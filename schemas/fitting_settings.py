"""How heads and a refiner are fitted to a model; light enough for the command line, whose defaults these are."""

from __future__ import annotations

from dataclasses import dataclass

REFIT_STEPS = 300
"""Updates of the refiner of a version that was just fine-tuned: fewer than for a model that never had one, for every round waits."""
REFIT_SCENES = 100
"""Procedural scenes that refiner and heads of such a version are fitted to beside the labels."""


@dataclass(frozen=True)
class RefinerSettings:
    """How a refiner is fitted.

    Attributes:
        steps: updates; each shows `images` images with at most `masks` pairs each.
        rate: of AdamW, falling to zero along a cosine.
        objects: of an image, at most, evenly drawn.
        points: of an object: the central one, then random ones.
        check_every: steps between looks at the held-out groups; the best of them is what is kept.
        seed: of all draws.
        most_bytes: of embeddings and pairs kept in memory; what does not fit is made again.
    """

    steps: int = 1000
    images: int = 4
    masks: int = 8
    rate: float = 4e-4
    objects: int = 20
    points: int = 2
    check_every: int = 50
    seed: int = 0
    most_bytes: int = 4 << 30


@dataclass(frozen=True)
class HeadSettings:
    """What heads are fitted to.

    Attributes:
        objects: of an image, at most.
        automatic: points of the grid of an image, at most, whose automatic masks take part; 0 for none.
        seed: of splits and initial weights; which prompts are drawn does not depend on it.
    """

    objects: int = 20
    automatic: int = 64
    seed: int = 0
