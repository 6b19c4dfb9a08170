"""Every mask that is kept has an embedding: on whole images, crops and tiles, the same for the same mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_generate_tiles import TILES, BrightThings, bar, disc, paint

from engine.generate.generator import generate_masks
from engine.generate.pooling import embed_masks, unpack_embeddings
from engine.mask_maker import MaskMaker
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.scenes import make_scene
from schemas.settings import GenerateSettings


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


def test_a_mask_has_the_features_under_it_and_none_from_outside_its_edge() -> None:
    features = torch.zeros(3, 8, 8)
    features[0, :, :4], features[1, :, 4:] = 2.0, 5.0
    logits = torch.full((3, 32, 32), -4.0)
    logits[0, :, :16] = 8.0
    logits[1, 3, 30] = 1.0  # one cell: the faint rest of the image would outweigh it
    logits[2] = 8.0
    found = unpack_embeddings(embed_masks(features, logits, 0.0))
    expected = np.array([[1, 0, 0], [0, 1, 0], [2 / 29**0.5, 5 / 29**0.5, 0]])
    assert found == pytest.approx(expected, abs=0.01)
    assert embed_masks(features, logits[:0], 0.0).shape == (0, 3)


def test_bytes_keep_the_angles_between_masks() -> None:
    features = torch.randn(256, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(20, 64, 64, generator=torch.Generator().manual_seed(1)) * 4
    found = unpack_embeddings(embed_masks(features, logits, 0.0))
    inside = logits.sigmoid() * (logits > 0)
    weights = torch.nn.functional.avg_pool2d(inside[:, None], 4)[:, 0].flatten(1)
    exact = torch.nn.functional.normalize(weights @ features.flatten(1).T, dim=1).numpy()
    assert (found * exact).sum(1).min() > 0.9999


@pytest.mark.parametrize("changes", [{}, {"crop_n_layers": 1}, {"tile_size": 128}])
def test_the_table_holds_a_row_of_every_mask_and_equal_images_have_equal_ones(
    segmenter: Segmenter, changes: dict[str, int]
) -> None:
    maker = MaskMaker(segmenter, GenerateSettings(points_per_side=4, **changes))
    picture = make_scene(3, 192).image
    first, second, empty = maker.make(
        [("a" * 32, picture), ("b" * 32, picture), ("c" * 32, np.zeros((64, 64, 3), np.uint8))]
    )
    assert len(first["masks"]) > 1
    for tables in (first, second, empty):
        assert tables["embeddings"]["mask_id"].to_pylist() == tables["masks"]["mask_id"].to_pylist()
    assert first["embeddings"]["values"].to_pylist() == second["embeddings"]["values"].to_pylist()
    values = [np.frombuffer(value, np.int8) for value in first["embeddings"]["values"].to_pylist()]
    assert {len(value) for value in values} == {256}
    assert all(abs(value.astype(int)).max() == 127 for value in values)


def test_a_mask_that_seams_cut_has_the_embedding_of_its_largest_part() -> None:
    size = (256, 448)  # two tiles; the features of a part say which thing of its tile it is
    things = [disc(*size, 60, 40, 20), bar(*size, 30, 120, 440, 150)]
    [masks] = generate_masks(BrightThings(), [paint(things)], TILES)
    assert masks.embedding_NC is not None
    joined = int(masks.rows_N["area"].argmax())
    light, thing = unpack_embeddings(masks.embedding_NC)[joined]
    in_left, in_right = 256 - 30, 440 - 192
    number = 2 if in_left > in_right else 1  # the second thing of the left tile, the first of the right
    assert thing / light == pytest.approx(number, abs=0.15)
