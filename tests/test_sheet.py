"""Contact sheets: masks land where they are, in the colour of their uncertainty."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from store_rows import MODEL, image_row, mask_rows, tables_of

from engine.masks.rle import encode_masks
from engine.report.contact_sheet import (
    CELL_SIDE,
    SheetCell,
    draw_contact_sheet,
    draw_masks,
    uncertainty_colour,
)
from engine.report.stored_sheet import draw_sheet
from engine.store import Store
from schemas.errors import ConfigError
from tasks.results import most_uncertain


def square(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_masks_are_tinted_in_place_and_by_uncertainty() -> None:
    pixels = np.full((100, 200, 3), 128, np.uint8)
    sure, unsure = square(100, 200, (10, 10, 60, 60)), square(100, 200, (120, 20, 180, 80))
    drawn = np.asarray(draw_masks(pixels, [(sure, 0.0), (unsure, 1.0)], side=400)).astype(int)
    assert drawn.shape == (200, 400, 3)
    assert drawn[70, 70, 2] > drawn[70, 70, 0] + 30, "a sure mask is bluish"
    assert drawn[100, 300, 0] > drawn[100, 300, 2] + 30, "an unsure mask is reddish"
    assert np.abs(drawn[180, 200] - 128).max() <= 1, "the rest of the picture stays"


def test_a_sheet_holds_every_cell_and_long_names_do_not_run_over() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    pictures = [draw_masks(np.full((30, 60, 3), colour, np.uint8), []) for colour in colours]
    page = draw_contact_sheet([SheetCell(p, ("x" * 300, "")) for p in pictures], columns=2, title="model")
    seen = {colour for _, colour in page.getcolors(1 << 20)}
    assert set(colours) <= seen
    assert page.width < 2 * CELL_SIDE + 40


def test_the_colour_scale_runs_from_blue_to_red_and_clips() -> None:
    assert uncertainty_colour(0)[2] > 200
    assert uncertainty_colour(1)[0] > 200
    assert uncertainty_colour(7) == uncertainty_colour(1)
    assert uncertainty_colour(-1) == uncertainty_colour(0)


def write_picture(path: Path, shade: int, size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def commit_masks(store: Store, *paths: Path, masks: list[tuple[np.ndarray, float]]) -> None:
    """Commit files as labelled, with these masks and uncertainties for every content."""
    rows = []
    for path in paths:
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        rows.append(image_row(f"file://{path}", n_masks=len(masks), image_id=image_id))
    images, tables = tables_of(rows)
    contents = {row["image_id"]: row for row in rows}.values()
    made = [mask for row in contents for mask in mask_rows(row, "first")]
    for row, (mask, uncertainty) in zip(made, masks * len(contents), strict=True):
        height, width = mask.shape
        row |= {"rle": encode_masks(mask[None])[0], "height": height, "width": width, "area": int(mask.sum())}
        row["uncertainty"] = uncertainty
    tables["masks"] = pa.Table.from_pylist(made, schema=tables["masks"].schema)
    store.commit_shard(MODEL, images, tables)


BOX = square(48, 64, (16, 12, 48, 36))


def test_draw_a_store_small_masks_over_large_ones(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    small = square(48, 64, (28, 20, 36, 28))
    commit_masks(store, write_picture(tmp_path / "a.png", 128), masks=[(small, 1.0), (BOX, 0.0)])
    (tmp_path / "out").mkdir()
    sheet = tmp_path / "out" / "sheet.png"
    sheet.write_text("an older one")
    assert draw_sheet(store, sheet) == []
    assert list(sheet.parent.iterdir()) == [sheet]
    drawn = np.asarray(Image.open(sheet)).astype(int)
    middle = drawn[44 + 160, 8 + 160]
    assert middle[0] > middle[2] + 10, "the small, unsure mask lies on top"
    beside = drawn[44 + 160, 8 + 100]
    assert beside[2] > beside[0] + 30, "the large, sure one around it"


def test_an_image_that_was_replaced_or_deleted_is_left_out_and_told_of(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    paths = [
        write_picture(tmp_path / f"{name}.png", shade) for shade, name in enumerate(["kept", "new", "gone"])
    ]
    commit_masks(store, *paths, masks=[(BOX, 0.5)])
    write_picture(paths[1], 200, (31, 77))
    paths[2].unlink()
    told = draw_sheet(store, tmp_path / "sheet.png")
    assert sorted(line.partition(" is left out: ")[0] for line in told) == ["gone.png", "new.png"]
    assert any("replaced" in line for line in told)
    assert Image.open(tmp_path / "sheet.png").width < 2 * CELL_SIDE, "one cell is left"
    paths[0].unlink()
    with pytest.raises(ConfigError, match="moved, deleted or replaced"):
        draw_sheet(store, tmp_path / "sheet.png")


def test_a_hundred_masks_of_a_large_image_are_never_in_memory_together(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    masks = [(square(1500, 2000, (i * 10, 0, i * 10 + 500, 900)), 0.5) for i in range(100)]
    commit_masks(store, write_picture(tmp_path / "a.png", 100, (2000, 1500)), masks=masks)
    del masks
    tracemalloc.start()
    try:
        draw_sheet(store, tmp_path / "sheet.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000  # together they would be 300 MB


@pytest.mark.parametrize("name", ["nowhere/sheet.png", "sheet", "sheet.txt"])
def test_a_sheet_that_cannot_be_written_is_said_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    """The store is empty, so whatever looked at it first would say that."""
    with pytest.raises(ConfigError, match=r"no folder .*/nowhere|Write for example .*sheet[.a-z]*\.png"):
        draw_sheet(Store(str(tmp_path / "store")), tmp_path / name)


def test_a_sheet_of_a_model_by_its_name_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    commit_masks(store, write_picture(tmp_path / "a.png", 128), masks=[(BOX, 0.5)])
    assert draw_sheet(store, tmp_path / "sheet.png", model=MODEL.partition("@")[0]) == []
    with pytest.raises(ConfigError, match=f"No masks of 'nan' are in .* Known: {MODEL}"):
        draw_sheet(store, tmp_path / "sheet.png", model="nan")


def test_copies_of_an_image_do_not_repeat_its_most_uncertain_masks(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    first, copy = tmp_path / "a.png", tmp_path / "copy.png"
    write_picture(first, 100)
    copy.write_bytes(first.read_bytes())
    commit_masks(store, copy, first, masks=[(BOX, i / 10) for i in range(6)])
    rows = most_uncertain(store, MODEL, 4)
    assert [round(row["uncertainty"], 1) for row in rows] == [0.5, 0.4, 0.3, 0.2]
    assert {row["uri"] for row in rows} == {f"file://{first}"}
