"""Random textures: what surfaces of procedural scenes look like.

Arrays are float32 HW3 in 0..1, RGB; fields are float32 HW in 0..1.
"""

from __future__ import annotations

import cv2
import numpy as np

Colour = np.ndarray


def noise_field(
    rng: np.random.Generator, height: int, width: int, base: int = 3, octaves: int = 4
) -> np.ndarray:
    """Fractal value noise, stretched to 0..1. `base` = blobs along the longer side at the first octave."""
    field = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = base * 2**octave
        if cells >= max(height, width):
            break
        grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
        field += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def random_colour(rng: np.random.Generator) -> Colour:
    """A colour; greys and dull tones about as often as saturated ones."""
    grey = rng.random()
    saturation = rng.beta(1.2, 1.6)
    return np.clip(grey + saturation * (rng.random(3) - 0.5), 0, 1).astype(np.float32)


def make_texture(
    rng: np.random.Generator, height: int, width: int, colours: list[Colour] | None = None
) -> np.ndarray:
    """A surface: flat, graded, mottled, striped, checked, veined or spotted, of two or three colours."""
    first, second, third = colours or [random_colour(rng) for _ in range(3)]
    kind = rng.choice(
        ["flat", "gradient", "noise", "stripes", "checks", "veins", "spots"],
        p=[0.2, 0.2, 0.25, 0.12, 0.06, 0.1, 0.07],
    )
    contrast = rng.uniform(0.15, 1.0)
    second = first + (second - first) * contrast
    blend: np.ndarray
    if kind == "flat":
        blend = np.zeros((height, width), np.float32)
    elif kind == "gradient":
        blend = _direction(rng, height, width)
    elif kind == "noise":
        blend = noise_field(rng, height, width, int(rng.integers(2, 12)), int(rng.integers(2, 5)))
    elif kind == "checks":
        period = rng.uniform(4, 24)
        along, across = _rotated_axes(rng, height, width)
        blend = ((along // period + across // period) % 2).astype(np.float32)
    elif kind == "veins":
        blend = np.abs(np.sin(noise_field(rng, height, width, int(rng.integers(2, 6))) * rng.uniform(6, 30)))
    elif kind == "spots":
        blend = (
            noise_field(rng, height, width, int(rng.integers(8, 24)), 1) > rng.uniform(0.55, 0.75)
        ).astype(np.float32)
    else:
        along, _ = _rotated_axes(rng, height, width)
        warp = noise_field(rng, height, width, 3, 2) * rng.uniform(0, 25)
        blend = 0.5 + 0.5 * np.sin((along + warp) * (2 * np.pi / rng.uniform(4, 30)))
    surface = first + (second - first) * blend[..., None]
    if rng.random() < 0.4:
        stain = noise_field(rng, height, width, int(rng.integers(2, 8)), 3)[..., None]
        surface = surface + (third - surface) * stain**2 * rng.uniform(0.1, 0.6)
    return surface.astype(np.float32)


def finish_picture(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """What a camera adds: uneven light, blur, sensor noise, a tone curve, JPEG. Returns uint8 HW3."""
    height, width = picture.shape[:2]
    if rng.random() < 0.5:
        picture = picture * (1 - rng.uniform(0, 0.5) * _direction(rng, height, width))[..., None]
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.3))
    picture = np.clip(picture, 0, 1) ** rng.uniform(0.6, 1.6)
    if rng.random() < 0.6:
        picture = picture + rng.normal(0, rng.uniform(0.005, 0.06), picture.shape).astype(np.float32)
    pixels: np.ndarray = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))]
        pixels = np.asarray(cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR))
    return pixels


def _rotated_axes(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _direction(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    along, _ = _rotated_axes(rng, height, width)
    return ((along - along.min()) / max(float(np.ptp(along)), 1e-6)).astype(np.float32)
