"""A contact sheet: many images on one page with their masks drawn, the unsure ones standing out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_SIDE = 320
_CAPTION_HEIGHT = 30
_GAP = 8
_PAPER, _INK, _SECOND = (250, 250, 248), (30, 30, 34), (110, 110, 118)


@dataclass(frozen=True)
class SheetCell:
    """One picture of a sheet.

    Attributes:
        picture: as `draw_masks` makes it, at most CELL_SIDE pixels on its longer side.
        caption: two short lines under the picture.
    """

    picture: Image.Image
    caption: tuple[str, str]


def draw_masks(
    pixels: np.ndarray, masks: Iterable[tuple[np.ndarray, float]], *, side: int = CELL_SIDE
) -> Image.Image:
    """An image at `side` pixels on its longer side, masks tinted and outlined from blue (sure) to red (unsure).

    The colour scale spans 0..1 always, so pictures of different runs can be compared.

    Args:
        pixels: uint8 HW3 RGB.
        masks: bool HW masks of this image with their uncertainty 0..1. Each is drawn over those before it
            and let go, so give large ones first, and decode them one by one.
        side: pixels.
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    outlines = []
    for mask, uncertainty in masks:
        small = (
            cv2.resize(
                mask.astype(np.float32),
                size,
                interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
            )
            > 0.5
        )
        colour = uncertainty_colour(uncertainty)
        canvas[small] = (canvas[small] * 0.68 + np.array(colour) * 0.32).astype(np.uint8)
        contours, _ = cv2.findContours(small.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines.append((contours, colour))
    for contours, colour in outlines:
        cv2.drawContours(canvas, contours, -1, colour, 1, cv2.LINE_AA)
    return Image.fromarray(canvas)


def draw_contact_sheet(
    cells: Sequence[SheetCell], *, columns: int = 4, title: str = "", scale: bool = True
) -> Image.Image:
    """A page of cells, row by row, with a title and, unless told not to, the colour scale of uncertainty."""
    side = CELL_SIDE
    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    head = 44
    page = Image.new(
        "RGB",
        (_GAP + columns * (side + _GAP), head + rows * (side + _CAPTION_HEIGHT + 2 * _GAP) + _GAP),
        _PAPER,
    )
    pen = ImageDraw.Draw(page)
    pen.text((_GAP, 12), title, fill=_INK, font=_font(16))
    if scale:
        _draw_scale(page, pen)
    for index, cell in enumerate(cells):
        left = _GAP + (index % columns) * (side + _GAP)
        top = head + (index // columns) * (side + _CAPTION_HEIGHT + 2 * _GAP)
        offset = (side - cell.picture.width) // 2, (side - cell.picture.height) // 2
        page.paste(cell.picture, (left + offset[0], top + offset[1]))
        for line, (text, ink) in enumerate(zip(cell.caption, (_INK, _SECOND), strict=True)):
            pen.text((left, top + side + 4 + 14 * line), _shorten(pen, text, side), fill=ink, font=_font(11))
    return page


def uncertainty_colour(value: float) -> tuple[int, int, int]:
    """RGB from blue (0, sure) over yellow to red (1, unsure)."""
    stops = np.array([[38, 110, 220], [245, 200, 40], [225, 35, 35]], float)
    place = float(np.clip(value, 0, 1)) * 2
    low = min(int(place), 1)
    return tuple(int(v) for v in stops[low] + (stops[low + 1] - stops[low]) * (place - low))  # type: ignore[return-value]


def _draw_scale(page: Image.Image, pen: ImageDraw.ImageDraw) -> None:
    """A legend at the right end of the head: uncertainty 0 to 1 in the colours of the masks."""
    width, font = 120, _font(11)
    left = page.width - width - 28
    if left < 260:
        return
    for x in range(width):
        pen.line([(left + x, 16), (left + x, 28)], fill=uncertainty_colour(x / (width - 1)))
    pen.text((left - 84, 15), "uncertainty  0", fill=_SECOND, font=font)
    pen.text((left + width + 6, 15), "1", fill=_SECOND, font=font)


def _shorten(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    if pen.textlength(text, font=_font(11)) <= width:
        return text
    while text and pen.textlength(text + "…", font=_font(11)) > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
