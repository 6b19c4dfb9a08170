"""A large image is cut into overlapping tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pool import tile_boxes
from schemas.errors import ConfigError

sizes = st.integers(1, 400)
tile_sizes = st.integers(8, 200)


@given(sizes, sizes, tile_sizes, st.floats(0, 0.499))
def test_tiles_cover_the_image_and_stay_inside_with_equal_sizes(height, width, tile_size, overlap):
    boxes = tile_boxes(height, width, tile_size, overlap)
    covered = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(width, tile_size), min(height, tile_size))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    assert len(set(boxes)) == len(boxes)


@given(sizes, tile_sizes, st.floats(0, 0.499))
def test_neighbours_overlap_at_least_as_asked(width, tile_size, overlap):
    boxes = tile_boxes(1, width, tile_size, overlap)
    for (_, _, right, _), (left, _, _, _) in itertools.pairwise(boxes):
        assert right - left >= int(overlap * tile_size)


@given(sizes, sizes, tile_sizes, st.floats(0, 0.499))
def test_no_more_tiles_than_needed(height, width, tile_size, overlap):
    step = tile_size - int(overlap * tile_size)
    boxes = tile_boxes(height, width, tile_size, overlap)
    across, down = len({box[0] for box in boxes}), len({box[1] for box in boxes})
    assert len(boxes) == across * down
    assert tile_size + (across - 2) * step < width or across == 1
    assert tile_size + (down - 2) * step < height or down == 1


def test_rows_come_top_to_bottom_left_to_right():
    assert tile_boxes(100, 150, 100, 0.25) == [(0, 0, 100, 100), (50, 0, 150, 100)]
    assert tile_boxes(150, 100, 100, 0.0) == [(0, 0, 100, 100), (0, 50, 100, 150)]


def test_an_image_that_fits_is_one_tile():
    assert tile_boxes(480, 640, 640, 0.25) == [(0, 0, 640, 480)]
    assert tile_boxes(480, 640, 0, 0.25) == [(0, 0, 640, 480)]


@pytest.mark.parametrize(
    "arguments", [(0, 5, 4, 0.1), (5, 0, 4, 0.1), (5, 5, -1, 0.1), (5, 5, 4, 0.5), (5, 5, 4, -0.1)]
)
def test_impossible_sizes_are_refused_in_words(arguments):
    with pytest.raises(ConfigError, match="tile"):
        tile_boxes(*arguments)
