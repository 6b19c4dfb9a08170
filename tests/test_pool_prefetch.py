"""Read images ahead: in order, within a memory budget, with a row for what cannot be read."""

from __future__ import annotations

import io
import shutil
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.pool import list_pool, prefetch
from schemas.errors import ImageError
from schemas.records import PoolImage, PoolItem
from schemas.settings import PoolSettings

ANY = PoolSettings()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Forty images of very different sizes, with two broken ones among them."""
    for number in range(40):
        side = 600 if number % 7 == 0 else 20
        Image.fromarray(np.full((side, side), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"")
    whole = io.BytesIO()
    Image.new("RGB", (50, 50)).save(whole, "png")
    (tmp_path / "14.png").write_bytes(whole.getvalue()[:60])
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2, 8, None])
def test_images_come_in_the_order_of_the_items_with_reasons_between(pool, workers):
    outcomes = list(prefetch(list_pool(str(pool), ANY), ANY, workers))
    names = [(o.item if isinstance(o, PoolImage) else o[0]).uri[-6:] for o in outcomes]
    assert names == [f"{number:02}.png" for number in range(40)]
    errors = {name: o[1] for name, o in zip(names, outcomes, strict=True) if not isinstance(o, PoolImage)}
    assert {name: error.kind for name, error in errors.items()} == {"05.png": "empty", "14.png": "truncated"}
    assert all(isinstance(error, ImageError) for error in errors.values())
    assert [o.pixels[0, 0, 0] for o in outcomes if isinstance(o, PoolImage)] == [
        n for n in range(40) if n not in (5, 14)
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_many_threads_read_one_archive(pool, tmp_path_factory, kind):
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("packed") / "all"), kind, pool)
    protocol = kind.removeprefix("gz")
    folder = list(prefetch(list_pool(str(pool), ANY), ANY, 1))
    packed = list(prefetch(list_pool(f"{protocol}://::{archive}", ANY), ANY, 8))
    ids = [
        [o.image_id if isinstance(o, PoolImage) else o[1].kind for o in outcomes]
        for outcomes in (folder, packed)
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("max_bytes", [0, 1, 3_000_000])
def test_a_budget_smaller_than_one_image_slows_down_but_never_stops(pool, max_bytes):
    outcomes = list(prefetch(list_pool(str(pool), ANY), ANY, 8, max_bytes=max_bytes))
    assert len(outcomes) == 40


def test_decoding_ahead_stays_within_the_budget(tmp_path):
    """Images of 10.8 MB each, a budget of 40 MB, a slow user: at most three or four are alive."""
    for number in range(12):
        Image.new("L", (2000, 1800), number).save(tmp_path / f"{number:02}.png", compress_level=1)

    tracemalloc.start()
    try:
        peaks = []
        for image in prefetch(list_pool(str(tmp_path), ANY), ANY, 4, max_bytes=40_000_000):
            del image
            time.sleep(0.05)
            peaks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(peaks) == 12
    assert max(peaks) < 55_000_000  # unbounded, 12 x 10.8 MB would be held


def test_items_are_taken_as_needed(pool):
    taken = []

    def endless():
        (first, *_) = list_pool(str(pool), ANY)
        while True:
            taken.append(first)
            yield first

    images = prefetch(endless(), ANY, 2)
    next(images)
    assert len(taken) < 20
    images.close()


def test_no_items_no_images():
    assert list(prefetch([], ANY)) == []


def test_stopping_early_leaves_no_thread_behind(pool):
    before = threading.active_count()
    images = prefetch(list_pool(str(pool), ANY), ANY, 8, max_bytes=3_000_000)
    next(images)
    images.close()
    assert threading.active_count() == before


def test_stopping_early_decodes_nothing_more(tmp_path):
    """Sixteen images of 10.8 MB wait for memory; whoever stops does not want them."""
    for number in range(17):
        Image.new("L", (2000, 1800), number).save(tmp_path / f"{number:02}.png", compress_level=1)
    images = prefetch(list_pool(str(tmp_path), ANY), ANY, 16, max_bytes=1)
    next(images)
    tracemalloc.start()
    try:
        images.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000  # the one whose turn it was, not sixteen


def test_an_error_in_the_listing_reaches_the_user(pool):
    def items():
        yield PoolItem(f"file://{pool}/00.png", "x")
        raise RuntimeError("the listing broke")

    with pytest.raises(RuntimeError, match="the listing broke"):
        list(prefetch(items(), ANY))
