"""Random outlines: closed contours around the origin, about unit radius, and thin strokes."""

from __future__ import annotations

import cv2
import numpy as np

_SHIFT = 4  # fractional bits of OpenCV's contour coordinates


def random_outline(rng: np.random.Generator) -> np.ndarray:
    """A closed contour, K x 2 (xy), centred on the origin, radius about 1: blob, ellipse, polygon, box or star."""
    kind = rng.choice(["blob", "ellipse", "polygon", "box", "star"], p=[0.35, 0.25, 0.15, 0.17, 0.08])
    if kind == "polygon":
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.7, 1.1, (len(angles), 1))
    elif kind == "box":
        points = _superellipse(rng.uniform(4, 16))
    elif kind == "star":
        tips = int(rng.integers(4, 9))
        angles = np.arange(2 * tips) * np.pi / tips
        radius = np.where(np.arange(2 * tips) % 2, rng.uniform(0.35, 0.7), 1.0)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
    elif kind == "ellipse":
        points = _superellipse(2.0)
    else:
        points = _blob(rng)
    stretch = rng.uniform(0.35, 1.0) if rng.random() < 0.6 else 1.0
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points * [1.0, stretch]) @ turn


def cell_outline(rng: np.random.Generator) -> np.ndarray:
    """A rounded, slightly uneven contour, as cells and pebbles have. K x 2 (xy), radius about 1."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (_blob(rng, rng.uniform(0, 0.12)) * [1.0, rng.uniform(0.55, 1.0)]) @ turn


def fill_outline(points: np.ndarray, centre: tuple[float, float], radius: float, size: int) -> np.ndarray:
    """Anti-aliased coverage of a scaled and moved contour, float32 size x size, 0..1."""
    canvas = np.zeros((size, size), np.uint8)
    contour = np.round((points * radius + centre) * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(canvas, [contour], 255, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def draw_stroke(
    rng: np.random.Generator, start: tuple[float, float], length: float, thickness: int, size: int
) -> np.ndarray:
    """Coverage of a thin wandering line (stem, wire, tail), float32 size x size, 0..1."""
    steps = 12
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, steps))
    moves = np.stack([np.cos(heading), np.sin(heading)], 1) * length / steps
    points = np.vstack([start, np.asarray(start) + np.cumsum(moves, 0)])
    canvas = np.zeros((size, size), np.uint8)
    contour = np.round(points * 2**_SHIFT).astype(np.int32)
    cv2.polylines(canvas, [contour], False, 255, thickness, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def _blob(rng: np.random.Generator, roughness: float | None = None) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angles)
    roughness = rng.uniform(0.05, 0.45) if roughness is None else roughness
    for wave in range(2, 7):
        radius += roughness / wave * rng.normal() * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.25, 1.8)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]


def _superellipse(power: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.sign(cos) * np.abs(cos) ** (2 / power), np.sign(sin) * np.abs(sin) ** (2 / power)], 1)
