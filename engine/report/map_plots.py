"""Pictures of uncertainty maps: is certainty right, and one mask beside its map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.store.whole_file import written_whole

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1e1e22", "#b4b4bc")
_PAPER, _INK, _SECOND = (250, 250, 248), (30, 30, 34), (110, 110, 118)
_SIDE, _GAP, _HEAD, _FOOT = 360, 12, 34, 30


def draw_validity(result: Mapping[str, Any], path: Path) -> None:
    """Share of right cells by certainty, a line a set, over how common each certainty is; a PNG, written whole.

    Args:
        result: `model`, `map_source` and `results` as `evaluate_maps` gives them.
        path: the file; its folder must be there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.4), layout="constrained", dpi=144)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for (name, of), colour in zip(result["results"].items(), _COLOURS * 4, strict=False):
        centres = (np.arange(len(of["right"])) + 0.5) / len(of["right"])
        there = [i for i, right in enumerate(of["right"]) if right is not None]
        upper.plot(
            centres[there],
            [100 * of["right"][i] for i in there],
            marker="o",
            markersize=4,
            color=colour,
            label=f"{name} ({of['masks']} masks)",
        )
        lower.plot(
            centres[there], [100 * of["share"][i] for i in there], marker="o", markersize=3, color=colour
        )
    upper.plot([0, 1], [0, 100], color="#d8d8de", linewidth=1.2, zorder=0)  # as often right as it says
    for axes in (upper, lower):
        axes.axvline(0.6, color="#66666e", linewidth=1, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, 1)
    lower.text(0.61, 0.1, "certain: c > 0.6", color="#66666e", size=9, transform=lower.get_xaxis_transform())
    upper.set(ylim=(0, 101), ylabel="right, %")
    upper.set_title(
        f"Are certain pixels right?  {result['model']}, maps by {result['map_source']}", loc="left", size=11
    )
    upper.legend(frameon=False, fontsize=8, loc="lower right")
    lower.set(yscale="log", ylabel="of all cells, %", xlabel="certainty c = 1 - u of cells around a mask")
    with written_whole(path) as part:
        figure.savefig(part)


def draw_mask(
    pixels_HW3: np.ndarray,
    mask_HW: np.ndarray,
    map_HW: np.ndarray | None,
    title: str,
    lines: tuple[str, str, str],
) -> Image.Image:
    """A mask's surroundings three times: the image, the mask on it, its uncertainty on it; a page with captions.

    Args:
        pixels_HW3: uint8 RGB.
        mask_HW: bool.
        map_HW: uncertainty 0..1; None where there is no map.
        title: above all three.
        lines: under each of the three.
    """
    panels = draw_panels(pixels_HW3, mask_HW, map_HW)
    height = panels[0].height
    width = _GAP + 3 * (_SIDE + _GAP)
    page = Image.new("RGB", (width, _HEAD + height + _FOOT + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_GAP, 9), title, fill=_INK, font=ImageFont.load_default(15))
    for index, line in enumerate(lines):
        left = _GAP + index * (_SIDE + _GAP)
        if index < len(panels):
            page.paste(panels[index], (left, _HEAD))
        pen.text((left, _HEAD + height + 8), line, fill=_SECOND, font=ImageFont.load_default(12))
    return page


def draw_panels(
    pixels_HW3: np.ndarray, mask_HW: np.ndarray, map_HW: np.ndarray | None, *, side: int = _SIDE
) -> list[Image.Image]:
    """A mask's surroundings: the image, the mask on it and, where there is a map, that on it; of one size.

    Args:
        pixels_HW3, mask_HW, map_HW: as for `draw_mask`.
        side: pixels of the longer side.
    """
    x0, y0, x1, y1 = _surroundings(mask_HW)
    pixels, mask = pixels_HW3[y0:y1, x0:x1], mask_HW[y0:y1, x0:x1]
    scale = side / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    plain = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    large = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    contours, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tinted = plain.copy()
    tinted[large] = (tinted[large] * 0.6 + np.array([38, 110, 220]) * 0.4).astype(np.uint8)
    cv2.drawContours(tinted, contours, -1, (38, 110, 220), 2, cv2.LINE_AA)
    panels = [plain, tinted]
    if map_HW is not None:
        unsure = cv2.resize(map_HW[y0:y1, x0:x1], size, interpolation=cv2.INTER_LINEAR)
        heat = cv2.cvtColor(
            cv2.applyColorMap(np.rint(unsure * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO),
            cv2.COLOR_BGR2RGB,
        )
        grey = cv2.cvtColor(cv2.cvtColor(plain, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        mixed = (grey * 0.35 + heat * 0.65).astype(np.uint8)
        cv2.drawContours(mixed, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)
        panels.append(mixed)
    return [Image.fromarray(panel) for panel in panels]


def _surroundings(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Box of a mask and half its size around it, inside the image; all of it where there is no mask."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    height, width = mask_HW.shape
    if not len(rows):
        return 0, 0, width, height
    margin = max(16, (rows[-1] - rows[0]) // 2, (columns[-1] - columns[0]) // 2)
    x0, y0 = max(0, columns[0] - margin), max(0, rows[0] - margin)
    return x0, y0, min(width, columns[-1] + 1 + margin), min(height, rows[-1] + 1 + margin)
