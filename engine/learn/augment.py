"""From a labelled image to a training example: a random view, some of its masks, and prompts for them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engine.learn.data import LabelledImage

_MIN_VISIBLE = 16  # pixels of the view; a smaller mask is below one cell of the mask grid


@dataclass(frozen=True)
class View:
    """A square view of an image: uint8 SS3, and M masks of it as bool MSS. `valid_hw` is what is not padding."""

    pixels: np.ndarray
    masks_MSS: np.ndarray
    valid_hw: tuple[int, int]


def draw_view(
    rng: np.random.Generator,
    image: LabelledImage,
    size: int,
    zoom: tuple[float, float],
    masks: int,
    *,
    letterbox: bool,
) -> View | None:
    """A random crop, scaled to size x size, mirrored, turned and recoloured, with at most `masks` masks.

    Args:
        zoom: range of the crop's side as a share of the image's sides; 1 = the whole image.
        letterbox: keep the aspect and pad below or right with zeros, as SAM does; else squash, as SAM 2 does.

    Returns:
        None when no mask has enough pixels in the view.
    """
    pixels = image.load()
    height, width = pixels.shape[:2]
    share = min(1.0, rng.uniform(*zoom))
    boxes_M4 = image.boxes_M4
    focus_x0, focus_y0, focus_x1, focus_y1 = boxes_M4[int(rng.integers(len(boxes_M4)))]
    crop_h = max(16, int(height * share))
    crop_w = (
        max(16, int(width * share))
        if share == 1
        else max(16, min(width, int(crop_h * np.exp(rng.uniform(-0.35, 0.35)))))
    )
    crop_h, crop_w = min(crop_h, height), min(crop_w, width)
    left = _place(rng, (focus_x0 + focus_x1) / 2, crop_w, width)
    top = _place(rng, (focus_y0 + focus_y1) / 2, crop_h, height)
    scale = size / max(crop_h, crop_w)
    out_h, out_w = (round(crop_h * scale), round(crop_w * scale)) if letterbox else (size, size)
    window = np.s_[top : top + crop_h, left : left + crop_w]

    view: np.ndarray = np.zeros((size, size, 3), np.uint8)
    shrink = cv2.INTER_AREA if out_h < crop_h else cv2.INTER_LINEAR
    view[:out_h, :out_w] = cv2.resize(recolour(rng, pixels[window]), (out_w, out_h), interpolation=shrink)
    chosen = []
    inside = (boxes_M4[:, :2] < (left + crop_w, top + crop_h)).all(1) & (boxes_M4[:, 2:] > (left, top)).all(1)
    for index in rng.permutation(np.flatnonzero(inside)):
        mask = image.masks[index].decode()[window]
        canvas = np.zeros((size, size), bool)
        canvas[:out_h, :out_w] = (
            cv2.resize(mask.astype(np.uint8), (out_w, out_h), interpolation=cv2.INTER_NEAREST) > 0
        )
        if canvas.sum() >= _MIN_VISIBLE:
            chosen.append(canvas)
        if len(chosen) == masks:
            break
    if not chosen:
        return None
    stack = np.stack(chosen)
    if rng.random() < 0.5:
        view[:out_h, :out_w], stack[:, :out_h, :out_w] = (
            view[:out_h, :out_w][:, ::-1],
            stack[:, :out_h, :out_w][:, :, ::-1],
        )
    if out_h == out_w and rng.random() < 0.5:
        turns = int(rng.integers(1, 4))
        view, stack = np.rot90(view, turns), np.rot90(stack, turns, axes=(1, 2))
    return View(np.ascontiguousarray(view), np.ascontiguousarray(stack), (out_h, out_w))


def recolour(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Brightness, contrast, tint, channel order, grey and negative: so that shape and edge matter, not hue."""
    values: np.ndarray = pixels.astype(np.float32) / 255
    if rng.random() < 0.15:
        values = np.repeat(values.mean(2, keepdims=True), 3, 2)
    if rng.random() < 0.3:
        values = values[..., rng.permutation(3)]
    if rng.random() < 0.2:
        values = 1 - values
    if rng.random() < 0.3:  # a stain: dark to one random colour, bright to another
        low, high = rng.random(3) * 0.5, 0.5 + rng.random(3) * 0.5
        values = low + (high - low) * values
    values = values ** rng.uniform(0.6, 1.7) * rng.uniform(0.75, 1.2, 3) + rng.uniform(-0.1, 0.1)
    if rng.random() < 0.15:
        values = cv2.GaussianBlur(values.astype(np.float32), (0, 0), rng.uniform(0.5, 1.5))
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def draw_points(rng: np.random.Generator, mask_HW: np.ndarray, count: int) -> np.ndarray:
    """`count` pixels of the mask as xy (column, row), float32; the first one tends to the middle, as a person's click does."""
    rows, columns = np.nonzero(mask_HW)
    chosen = rng.integers(len(rows), size=count)
    points = np.stack([columns[chosen], rows[chosen]], 1).astype(np.float32)
    if rng.random() < 0.6:
        depth = cv2.distanceTransform(np.pad(mask_HW.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1][
            rows, columns
        ]
        first = rng.choice(np.flatnonzero(depth >= depth.max() * rng.uniform(0.3, 0.95)))
        points[0] = columns[first], rows[first]
    return points


def draw_box(rng: np.random.Generator, mask_HW: np.ndarray) -> np.ndarray:
    """The mask's box as xyxy, float32, each side moved by up to a tenth of the box, both ways."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    return np.clip(box + rng.normal(0, 0.05, 4).clip(-0.1, 0.1) * extent, 0, mask_HW.shape[0]).astype(
        np.float32
    )


def _place(rng: np.random.Generator, middle: float, crop: int, full: int) -> int:
    """Where a crop of a side begins so that `middle` is inside it."""
    low, high = max(0.0, middle - crop + 1), min(float(full - crop), middle)
    return int(np.clip(rng.uniform(min(low, high), max(low, high)), 0, full - crop))
