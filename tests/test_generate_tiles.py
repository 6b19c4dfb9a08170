"""A user masks images that are larger than a tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage

from engine.generate.generator import generate_masks
from engine.generate.records import ImageMasks
from engine.generate.views import plan_views
from engine.masks.rle import decode_rle, encode_masks, mask_iou
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError
from schemas.records import Decoded, Embedding, Prompts
from schemas.settings import GenerateSettings

TILES = GenerateSettings(points_per_side=16, tile_size=256, tile_overlap=0.25)


class BrightThings(Segmenter):
    """Segments the bright connected thing under a point: a model whose right answer is known."""

    package = "sam2"
    image_size = 256
    grid_size = 64
    mask_threshold = 0.0

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), name="bright-things", sha256="0" * 64, device="cpu")

    def embed(self, images: Sequence[np.ndarray]) -> Embedding:
        grid = (self.grid_size, self.grid_size)
        features = []
        for image in images:
            light = torch.from_numpy(image).float().mean(2)[None, None] / 255
            light = torch.nn.functional.interpolate(light, grid, mode="area")[0, 0]
            things, _ = ndimage.label(light.numpy() > 0.5)
            features.append(torch.stack([light, torch.from_numpy(things)]))
        return Embedding(torch.stack(features), tuple(image.shape[:2] for image in images))

    def decode(
        self,
        embedding: Embedding,
        prompts: Prompts,
        *,
        multimask: bool = True,
        min_iou: float | None = None,
    ) -> Decoded:
        logits = torch.full((len(prompts.image_index_N), 3, self.grid_size, self.grid_size), -10.0)
        iou = torch.zeros(len(logits), 3)
        for n, index in enumerate(prompts.image_index_N.tolist()):
            light, things = embedding.features_BCHW[index]
            height, width = embedding.image_sizes[index]
            x, y = prompts.points_NP2[n, 0].tolist()
            thing = things[int(y / height * self.grid_size), int(x / width * self.grid_size)]
            if thing:
                near = torch.nn.functional.max_pool2d((things == thing).float()[None], 3, 1, 1)[0] > 0
                logits[n, 0] = torch.where(near, 20 * light - 10, -10.0)
                iou[n, 0] = 0.95
        n = len(logits)
        tokens = (torch.zeros(n, 256), torch.zeros(n, 4, 256))
        return Decoded(logits, iou, *tokens, torch.arange(n), iou.amax(1))

    def upscale(self, logits_Mhw: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(logits_Mhw[None], image_size, mode="bilinear")[0]

    def mask_extent(self, image_size: tuple[int, int]) -> tuple[float, float]:
        return float(self.grid_size), float(self.grid_size)


def paint(things: Sequence[np.ndarray]) -> np.ndarray:
    return np.repeat(np.any(things, 0)[..., None], 3, 2).astype(np.uint8) * 255


def disc(height: int, width: int, x: int, y: int, radius: int) -> np.ndarray:
    yy, xx = np.mgrid[:height, :width]
    return (yy - y) ** 2 + (xx - x) ** 2 <= radius**2


def bar(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def expect_exactly(masks: ImageMasks, things: Sequence[np.ndarray]) -> None:
    """One mask for each thing and no more."""
    iou = mask_iou(encode_masks(np.stack(things)), masks.rles, masks.height, masks.width)
    assert iou.max(1).min() > 0.9, f"a thing is missing or cut: {iou.max(1).round(2)}"
    assert len(masks) == len(things)
    pixels = decode_rle(masks.rles, masks.height, masks.width)
    assert (masks.rows_N["area"] == pixels.sum((1, 2))).all()
    for (x0, y0, x1, y1), mask in zip(masks.rows_N["box"], pixels, strict=True):
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == [x0, y0, x1, y1]


def test_an_image_of_one_tile_is_not_cut() -> None:
    assert [view.crop for view in plan_views(0, (256, 200), TILES)] == [(0, 0, 200, 256)]


def test_things_at_a_seam_come_out_once_and_whole() -> None:
    size = (256, 448)  # tiles start at x = 0 and 192, and share 64 columns
    things = [
        disc(*size, 60, 60, 25),  # in the first tile alone
        disc(*size, 224, 60, 22),  # whole in both
        disc(*size, 250, 200, 24),  # cut by the edge of the first, whole in the second
        disc(*size, 195, 140, 20),  # cut by the edge of the second, whole in the first
        disc(*size, 400, 120, 30),
    ]
    [masks] = generate_masks(BrightThings(), [paint(things)], TILES)
    expect_exactly(masks, things)


def test_a_thing_longer_than_a_tile_is_joined() -> None:
    size = (448, 640)
    things = [
        bar(*size, 30, 100, 610, 130),  # over three tiles
        bar(*size, 300, 180, 330, 430),  # over two rows of tiles
        bar(*size, 150, 190, 250, 400),  # over the corner of four
    ]
    [masks] = generate_masks(BrightThings(), [paint(things)], TILES)
    expect_exactly(masks, things)


def test_two_arms_of_one_thing_are_joined_through_the_next_tile() -> None:
    size = (448, 256)
    horseshoe = bar(*size, 40, 60, 70, 400) | bar(*size, 180, 60, 210, 400) | bar(*size, 40, 370, 210, 400)
    [masks] = generate_masks(BrightThings(), [paint([horseshoe])], TILES)
    expect_exactly(masks, [horseshoe])


def test_neighbours_at_a_seam_stay_apart() -> None:
    size = (256, 448)
    things = [bar(*size, 100, 40, 360, 70), bar(*size, 100, 84, 360, 114), bar(*size, 100, 128, 214, 158)]
    things.append(bar(*size, 234, 128, 360, 158))
    [masks] = generate_masks(BrightThings(), [paint(things)], TILES)
    expect_exactly(masks, things)


def test_a_joined_mask_keeps_the_prompt_of_a_part() -> None:
    size = (256, 640)
    thing = bar(*size, 30, 100, 610, 130)
    [masks] = generate_masks(BrightThings(), [paint([thing])], TILES)
    [row] = masks.rows_N
    x0, y0, x1, y1 = row["crop"]
    assert (x1 - x0, y1 - y0) == (256, 256)
    assert x0 <= row["point"][0] < x1
    assert thing[tuple(row["point"][::-1].astype(int))]
    assert row["sam_score"] == pytest.approx(0.95)


def test_tiled_and_small_images_go_in_one_batch() -> None:
    small, large = [disc(200, 250, 90, 90, 40)], [bar(256, 640, 30, 100, 610, 130)]
    images = [paint(small), paint(large), paint(small)]
    done: list[int] = []
    results = generate_masks(BrightThings(), images, TILES, images_per_batch=3, on_progress=done.append)
    for masks, things in zip(results, [small, large, small], strict=True):
        expect_exactly(masks, things)
    assert done == [1, 2, 3]


def test_an_image_without_anything_has_no_masks() -> None:
    for shape in ((40, 60, 3), (300, 700, 3)):
        [masks] = generate_masks(BrightThings(), [np.zeros(shape, np.uint8)], TILES)
        assert len(masks) == 0
        assert (masks.height, masks.width) == shape[:2]


def test_a_grid_without_points_is_refused() -> None:
    settings = GenerateSettings(points_per_side=4, crop_n_layers=3, crop_n_points_downscale_factor=2)
    with pytest.raises(ConfigError, match="would have no points"):
        plan_views(0, (100, 100), settings)


def test_small_holes_and_islands_are_mended() -> None:
    size = (256, 256)
    thing = bar(*size, 60, 60, 180, 180)
    holed = thing & ~bar(*size, 100, 100, 112, 112)
    settings = GenerateSettings(points_per_side=16, min_mask_region_area=400)
    [masks] = generate_masks(BrightThings(), [paint([holed])], settings)
    expect_exactly(masks, [thing])
    assert decode_rle(masks.rles, *size)[0][106, 106]
