"""Scenes made of things with parts: pixels, and exact masks for every level one could mean.

A scene is one of three layouts: a crowd of small alike things (cells, pebbles, some with a nucleus),
several different overlapping things, or one salient thing before clutter. A thing is a body with
inner parts, attached parts and thin strokes. Its masks are what is visible of the whole and of each
part; in a salient layout the one thing is the salient object. A point inside a part is
therefore truly ambiguous, which is what the three outputs of SAM exist for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from engine.scenes.shapes import cell_outline, draw_stroke, fill_outline, random_outline
from engine.scenes.textures import finish_picture, make_texture, noise_field, random_colour

_MIN_AREA = 24


@dataclass(frozen=True)
class SceneMask:
    """One exact mask. `mask` is bool HW; `task` is salient, entity or part; `parent` the entity's index."""

    mask: np.ndarray
    task: str
    parent: int | None = None


@dataclass(frozen=True)
class Scene:
    """`image` uint8 HW3 RGB with its masks; `layout` is crowd, things or salient."""

    image: np.ndarray
    masks: list[SceneMask]
    layout: str


@dataclass
class _Thing:
    coverage: np.ndarray
    parts: list[np.ndarray] = field(default_factory=list)


def make_scene(seed: int, size: int = 384, layout: str | None = None) -> Scene:
    """The scene of this seed, `size` x `size` pixels; the same seed gives the same scene.

    Args:
        layout: crowd, things or salient, if it is not to be drawn.
    """
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(["crowd", "things", "salient"], p=[0.3, 0.4, 0.3]))
    layout = layout or drawn
    canvas = make_texture(rng, size, size)
    if layout == "salient":
        canvas = _add_clutter(rng, canvas, size)
    things = (
        _paint_crowd(rng, canvas, size) if layout == "crowd" else _paint_things(rng, canvas, size, layout)
    )
    return Scene(finish_picture(rng, canvas), _visible_masks(things, layout), layout)


def _paint_crowd(rng: np.random.Generator, canvas: np.ndarray, size: int) -> list[_Thing]:
    radius = size * rng.uniform(0.015, 0.09)
    count = int(np.clip(rng.uniform(0.1, 0.55) * size**2 / (np.pi * radius**2), 4, 140))
    colours = [random_colour(rng) for _ in range(3)]
    nucleus = [random_colour(rng) for _ in range(3)] if rng.random() < 0.35 else None
    rim = rng.random() < 0.4
    gap = rng.uniform(0.75, 1.3)
    placed: list[tuple[np.ndarray, float]] = []
    things: list[_Thing] = []
    for _ in range(count):
        centre, r = rng.uniform(0, size, 2), radius * rng.uniform(0.7, 1.35)
        if any(np.hypot(*(centre - other)) < gap * (r + s) * 0.85 for other, s in placed):
            continue
        placed.append((centre, r))
        coverage = fill_outline(cell_outline(rng), tuple(centre), r, size)
        shade = [np.clip(c + rng.normal(0, 0.04), 0, 1).astype(np.float32) for c in colours]
        _paint(rng, canvas, coverage, shade, rim=rim)
        thing = _Thing(coverage)
        if nucleus is not None:
            part = fill_outline(
                cell_outline(rng),
                tuple(centre + rng.normal(0, r * 0.15, 2)),
                r * rng.uniform(0.35, 0.6),
                size,
            )
            thing.parts.append(np.minimum(part, coverage))
            _paint(rng, canvas, thing.parts[0], nucleus)
        things.append(thing)
    return things


def _paint_things(rng: np.random.Generator, canvas: np.ndarray, size: int, layout: str) -> list[_Thing]:
    if layout == "salient":
        radii = [size * rng.uniform(0.18, 0.42)]
        centres = [rng.uniform(0.3, 0.7, 2) * size]
    else:
        count = int(rng.integers(3, 14))
        radii = list(size * np.exp(rng.uniform(np.log(0.03), np.log(0.3), count)))
        radii.sort(reverse=rng.random() < 0.8)
        centres = list(rng.uniform(0.02, 0.98, (count, 2)) * size)
    return [_paint_thing(rng, canvas, size, centre, r) for centre, r in zip(centres, radii, strict=True)]


def _paint_thing(
    rng: np.random.Generator, canvas: np.ndarray, size: int, centre: np.ndarray, radius: float
) -> _Thing:
    palette = [random_colour(rng) for _ in range(3)]
    body = fill_outline(random_outline(rng), tuple(centre), radius, size)
    if rng.random() < 0.12:  # a ring: what is seen through the hole is not the thing
        body = body * (
            1 - fill_outline(random_outline(rng), tuple(centre), radius * rng.uniform(0.3, 0.6), size)
        )
    attached, inner = [], []
    for _ in range(int(rng.integers(0, 4))):
        angle, near = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.6, 1.05)
        place = tuple(centre + near * np.array([np.cos(angle), np.sin(angle)]))
        if rng.random() < 0.35:
            attached.append(
                draw_stroke(rng, place, radius * rng.uniform(0.6, 1.8), int(rng.integers(1, 5)), size)
            )
        else:
            attached.append(fill_outline(random_outline(rng), place, radius * rng.uniform(0.2, 0.5), size))
    for _ in range(int(rng.integers(0, 4))):
        place = tuple(centre + rng.normal(0, radius * 0.4, 2))
        inner.append(
            np.minimum(fill_outline(random_outline(rng), place, radius * rng.uniform(0.15, 0.45), size), body)
        )
    behind = rng.random() < 0.5
    if rng.random() < 0.3:
        _cast_shadow(rng, canvas, body, radius)
    own = attached if behind else []
    for part in own:
        _paint(rng, canvas, part, _part_palette(rng, palette))
    _paint(rng, canvas, body, palette, rim=rng.random() < 0.25)
    parts = [part * (1 - body) for part in own]
    for part in ([] if behind else attached) + inner:
        _paint(rng, canvas, part, _part_palette(rng, palette), rim=rng.random() < 0.2)
        parts = [other * (1 - part) for other in parts] + [part]
    whole = np.maximum.reduce([body, *attached])
    return _Thing(whole, parts)


def _part_palette(rng: np.random.Generator, palette: list[np.ndarray]) -> list[np.ndarray]:
    if rng.random() < 0.5:
        return [
            np.clip(c * rng.uniform(0.6, 1.4) + rng.normal(0, 0.05), 0, 1).astype(np.float32) for c in palette
        ]
    return [random_colour(rng) for _ in range(3)]


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    coverage: np.ndarray,
    colours: list[np.ndarray],
    *,
    rim: bool = False,
) -> None:
    """Blend a texture onto the canvas in place, within the coverage's box only."""
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = coverage[window]
    surface = make_texture(rng, alpha.shape[0], alpha.shape[1], colours)
    if rng.random() < 0.5:  # roundness: light from one side
        surface = (
            surface
            * (1 + rng.uniform(0.1, 0.5) * (noise_field(rng, alpha.shape[0], alpha.shape[1], 1, 1) - 0.5))[
                ..., None
            ]
        )
    if rim:
        edge = alpha - cv2.erode(alpha, np.ones((3, 3)), iterations=int(rng.integers(1, 3)), borderValue=0)
        surface = surface + (random_colour(rng) - surface) * edge[..., None]
    opacity = alpha if rng.random() < 0.85 else alpha * rng.uniform(0.75, 1)
    canvas[window] += (np.clip(surface, 0, 1) - canvas[window]) * opacity[..., None]


def _cast_shadow(rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray, radius: float) -> None:
    shift = rng.uniform(-0.25, 0.25, 2) * radius
    moved = cv2.warpAffine(
        coverage, np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32), coverage.shape[::-1]
    )
    canvas *= (1 - rng.uniform(0.2, 0.6) * cv2.GaussianBlur(moved, (0, 0), max(radius * 0.08, 0.5)))[
        ..., None
    ]


def _add_clutter(rng: np.random.Generator, canvas: np.ndarray, size: int) -> np.ndarray:
    """Unlabelled background matter: patches and lines that nobody would call a thing."""
    for _ in range(int(rng.integers(0, 12))):
        place = tuple(rng.uniform(0, size, 2))
        if rng.random() < 0.4:
            coverage = draw_stroke(rng, place, size * rng.uniform(0.2, 1.0), int(rng.integers(1, 4)), size)
        else:
            coverage = fill_outline(random_outline(rng), place, size * rng.uniform(0.02, 0.2), size)
        _paint(rng, canvas, coverage * rng.uniform(0.2, 0.7), [random_colour(rng) for _ in range(3)])
    return canvas


def _visible_masks(things: list[_Thing], layout: str) -> list[SceneMask]:
    """Masks of what later things leave uncovered; parts smaller than a few pixels are not annotated."""
    covered = np.zeros(things[0].coverage.shape, bool) if things else np.zeros((0, 0), bool)
    masks: list[SceneMask] = []
    for thing in reversed(things):
        whole = (thing.coverage > 0.5) & ~covered
        if whole.sum() >= _MIN_AREA:
            parent = len(masks)
            masks.append(SceneMask(whole, "salient" if layout == "salient" else "entity"))
            for part in thing.parts:
                visible = (part > 0.5) & whole
                if _MIN_AREA <= visible.sum() < 0.9 * whole.sum():
                    masks.append(SceneMask(visible, "part", parent))
        covered |= thing.coverage > 0.5
    return masks
