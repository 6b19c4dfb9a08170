"""Contact sheets: masks land where they are, in the colour of their uncertainty."""

from __future__ import annotations

import numpy as np

from engine.report.contact_sheet import SheetCell, draw_contact_sheet, draw_masks, uncertainty_colour


def square(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_masks_are_tinted_in_place_and_by_uncertainty() -> None:
    pixels = np.full((100, 200, 3), 128, np.uint8)
    sure, unsure = square(100, 200, (10, 10, 60, 60)), square(100, 200, (120, 20, 180, 80))
    drawn = np.asarray(draw_masks(pixels, [sure, unsure], [0.0, 1.0], side=400)).astype(int)
    assert drawn.shape == (200, 400, 3)
    assert drawn[70, 70, 2] > drawn[70, 70, 0] + 30, "a sure mask is bluish"
    assert drawn[100, 300, 0] > drawn[100, 300, 2] + 30, "an unsure mask is reddish"
    assert np.abs(drawn[180, 200] - 128).max() <= 1, "the rest of the picture stays"


def test_small_masks_stay_visible_on_large_ones() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    large, small = square(64, 64, (0, 0, 64, 64)), square(64, 64, (24, 24, 40, 40))
    drawn = np.asarray(draw_masks(pixels, [small, large], [1.0, 0.0], side=64)).astype(int)
    assert drawn[32, 32, 0] > drawn[5, 5, 0]


def test_a_sheet_holds_every_cell_and_long_names_do_not_run_over() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    cells = [SheetCell(np.full((30, 60, 3), c, np.uint8), [], [], ("x" * 300, "")) for c in colours]
    page = draw_contact_sheet(cells, columns=2, side=120, title="model")
    seen = {colour for _, colour in page.getcolors(1 << 20)}
    assert set(colours) <= seen
    assert page.width < 2 * 120 + 40


def test_the_colour_scale_runs_from_blue_to_red_and_clips() -> None:
    assert uncertainty_colour(0)[2] > 200
    assert uncertainty_colour(1)[0] > 200
    assert uncertainty_colour(7) == uncertainty_colour(1)
    assert uncertainty_colour(-1) == uncertainty_colour(0)
