"""What clicks led to: of each set and task the masks that came out best and worst, with the clicks that made them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.evaluate.mask_results import MaskResult
from engine.learn.data import LabelledImage
from engine.masks.rle import decode_rle
from engine.report.contact_sheet import CELL_SIDE, SheetCell, draw_contact_sheet
from engine.store.whole_file import written_whole
from schemas.records import TASKS

_PAPER, _INK = (250, 250, 248), (30, 30, 34)
# Okabe and Ito's colours, which colour-blind people can tell apart.
_FILL, _TRUTH, _HALO = (0, 114, 178), (255, 214, 60), (20, 20, 24)
_CLICKS = {1: (0, 158, 115), 0: (213, 94, 0)}
_EACH, _HEAD, _GAP, _FINE = 4, 46, 8, 3
_GREYNESS = 0.6  # of the image, so that the colours drawn on it stand out, purple tissue or blue sky
_WIDEST = 6.0  # how often a picture is enlarged at most


def draw_examples(
    results: Sequence[MaskResult],
    sets: Mapping[str, Sequence[LabelledImage]],
    folder: Path,
    *,
    model: str = "",
) -> list[Path]:
    """A picture of each set and task: the four best and the four worst masks of the most clicks.

    Best and worst by IoU, from different images where there are enough. Files are called `SET-TASK.png` and written
    whole.

    Args:
        results: as `evaluate_interactive(..., keep_masks=True)` gives them.
        sets: what they are of.
        folder: is made if it is not there.
        model: for the title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = {(name, image.name): image for name, of in sets.items() for image in of}
    most = max(result.points for result in results)
    last = [result for result in results if result.points == most]
    written = []
    for data in dict.fromkeys(result.data for result in last):
        for task in TASKS:
            of = sorted(
                (r for r in last if (r.data, r.task) == (data, task)), key=lambda r: (-r.iou, -r.biou)
            )
            if not of:
                continue
            half = -(-len(of) // 2)
            rows = [
                (word, [_draw_cell(images[data, r.image], r) for r in chosen])
                for word, chosen in (("Best", _pick(of[:half])), ("Worst", _pick(of[half:][::-1])))
                if chosen
            ]
            title = f"{data}, {task}: {len(of)} masks, {most} click{'s' * (most > 1)} each, {model}".rstrip(
                ", "
            )
            path = folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', f'{data}-{task}')}.png"
            _save(_draw_page(title, rows), path)
            written.append(path)
    return written


def draw_clicks(
    pixels_HW3: np.ndarray,
    truth_HW: np.ndarray,
    mask_HW: np.ndarray,
    clicks: Sequence[tuple[float, float, int]],
    *,
    side: int = CELL_SIDE,
) -> Image.Image:
    """A mask's surroundings: the prediction tinted blue, the truth outlined yellow, the clicks numbered in their order.

    Foreground clicks are green discs, background clicks red squares.

    Args:
        pixels_HW3: uint8 RGB.
        truth_HW: bool, what was meant.
        mask_HW: bool, what the model drew.
        clicks: x, y (image pixels, 0 the centre of the first one) and 1 for foreground or 0 for background.
        side: pixels of the picture's longer side.
    """
    x0, y0, x1, y1 = _surroundings(truth_HW | mask_HW, clicks, side)
    scale = side / max(x1 - x0, y1 - y0)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    # Lines and dots are drawn finer and made smaller, so that they are smooth.
    fine = size[0] * _FINE, size[1] * _FINE
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(np.ascontiguousarray(pixels_HW3[y0:y1, x0:x1]), size, interpolation=how)
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    canvas = cv2.resize(cv2.addWeighted(small, 1 - _GREYNESS, grey, _GREYNESS, 0), fine)
    mask, truth = (
        cv2.resize(of[y0:y1, x0:x1].astype(np.float32), fine, interpolation=cv2.INTER_LINEAR) > 0.5
        for of in (mask_HW, truth_HW)
    )
    canvas[mask] = (canvas[mask] * 0.52 + np.array(_FILL) * 0.48).astype(np.uint8)
    _outline(canvas, mask, (230, 240, 250), 1 * _FINE)
    _outline(canvas, truth, _HALO, 4 * _FINE)
    _outline(canvas, truth, _TRUTH, 2 * _FINE)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for number, (x, y, label) in enumerate(clicks, 1):
        _draw_click(pen, ((x + 0.5 - x0) * scale * _FINE, (y + 0.5 - y0) * scale * _FINE), label, str(number))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _pick(ordered: Sequence[MaskResult]) -> list[MaskResult]:
    """The first few, one an image where there are enough images, in their order."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for place, result in enumerate(ordered):
        (rest if result.image in seen else first).append(place)
        seen.add(result.image)
    return [ordered[place] for place in sorted((first + rest)[:_EACH])]


def _draw_cell(image: LabelledImage, result: MaskResult) -> SheetCell:
    pixels = image.load()
    [mask] = decode_rle([result.rle or ""], *pixels.shape[:2])
    picture = draw_clicks(pixels, image.masks[result.mask].decode(), mask, result.clicks)
    figures = f"IoU {100 * result.iou:.1f} %, boundary IoU {100 * result.biou:.1f} %"
    return SheetCell(picture, (figures, f"mask {result.mask} of {result.image}"))


def _draw_page(title: str, rows: Sequence[tuple[str, Sequence[SheetCell]]]) -> Image.Image:
    sheets = [draw_contact_sheet(cells, columns=_EACH, title=word, scale=False) for word, cells in rows]
    width = max(2 * (CELL_SIDE + _GAP) + _GAP, *(sheet.width for sheet in sheets))
    font = ImageFont.load_default(16)
    wide = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(title, font=font) + 440 < width
    head = _HEAD if wide else _HEAD + 26
    page = Image.new("RGB", (width, head + sum(sheet.height for sheet in sheets)), _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_GAP, 14), title, fill=_INK, font=font)
    page.paste(_draw_key(), (width - 412, 12) if wide else (_GAP, 38))
    top = head
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    return page


def _draw_key() -> Image.Image:
    """What the colours mean, 440 x 24 pixels."""
    key = Image.new("RGB", (440 * _FINE, 24 * _FINE), _PAPER)
    pen, font = ImageDraw.Draw(key), ImageFont.load_default(12 * _FINE)
    line, box = [(0, 12), (22, 12)], (78, 4, 98, 20)
    for colour, thick in ((_HALO, 4), (_TRUTH, 2)):
        pen.line([(x * _FINE, y * _FINE) for x, y in line], fill=colour, width=thick * _FINE)
    pen.rectangle([v * _FINE for v in box], fill=tuple(round(0.5 * c + 100) for c in _FILL))
    for x, label in ((184, 1), (312, 0)):
        _draw_click(pen, (x * _FINE, 12 * _FINE), label, "1")
    for x, text in ((28, "truth"), (104, "prediction"), (198, "click on the mask"), (326, "click beside it")):
        pen.text((x * _FINE, 4 * _FINE), text, fill=_INK, font=font)
    return key.resize((440, 24), Image.Resampling.LANCZOS)


def _draw_click(pen: ImageDraw.ImageDraw, at: tuple[float, float], label: int, text: str) -> None:
    x, y = at
    radius = 7 * _FINE
    draw = pen.ellipse if label else pen.rectangle
    reach = radius if label else radius * 0.9
    draw((x - reach, y - reach, x + reach, y + reach), _CLICKS[label], (255, 255, 255), _FINE)
    pen.text((x, y), text, fill=(255, 255, 255), font=ImageFont.load_default(10 * _FINE), anchor="mm")


def _outline(canvas: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, int, int], thick: int) -> None:
    contours, _ = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, thick, cv2.LINE_AA)


def _surroundings(
    shown_HW: np.ndarray, clicks: Sequence[tuple[float, float, int]], side: int
) -> tuple[int, int, int, int]:
    """Box of what is shown and some of the image around it, never so small that pixels become tiles."""
    height, width = shown_HW.shape
    x0, y0, across, down = cv2.boundingRect(shown_HW.view(np.uint8))
    xs, ys = [x0, x0 + across, *(int(c[0]) for c in clicks)], [y0, y0 + down, *(int(c[1]) for c in clicks)]
    middle = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    reach = max(max(xs) - min(xs), max(ys) - min(ys)) * 0.65 + 4
    reach = max(reach, side / _WIDEST / 2)
    return (
        max(0, int(middle[0] - reach)),
        max(0, int(middle[1] - reach)),
        min(width, int(middle[0] + reach) + 1),
        min(height, int(middle[1] + reach) + 1),
    )


def _save(page: Image.Image, path: Path) -> None:
    with written_whole(path) as part:
        page.save(part)
