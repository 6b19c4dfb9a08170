"""A user lets a model be clicked at: where the clicks go, what counts, and whether a difference was luck."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from engine.evaluate.bootstrap import Difference, paired_bootstrap
from engine.evaluate.interactive import choose_images, evaluate_interactive
from engine.evaluate.mask_results import MaskResult, summarise_results
from engine.evaluate.points import correcting_point, evaluate_points, innermost_point
from engine.learn.data import LabelledImage, LabelledMask, scene_images
from engine.masks.rle import decode_rle
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from schemas.errors import ConfigError
from schemas.records import Prompts


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[LabelledImage]]:
    return choose_images({"scenes": scene_images(range(5, 8), 128)}, masks=6)


def block(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_first_click_is_the_innermost_pixel() -> None:
    assert innermost_point(block(10, 21, 20, 51))[1] == 15
    assert innermost_point(block(0, 11, 0, 11)) == (5, 5), "the image's edge is a boundary"
    two = block(5, 10, 5, 10) | block(30, 51, 40, 61)
    assert innermost_point(two) == (50, 40)
    assert innermost_point(block(7, 8, 9, 10)) == (9, 7)
    assert innermost_point(block(0, 0, 0, 0)) == (0, 0)


def test_the_next_click_mends_the_largest_error() -> None:
    truth = block(10, 40, 10, 40)
    assert correcting_point(truth, truth) is None
    x, y, label = correcting_point(truth & ~block(10, 21, 10, 40), truth) or (0, 0, 0)
    assert (y, label) == (15, 1), "a strip is missing"
    assert 15 <= x <= 34
    assert correcting_point(truth | block(45, 56, 60, 71), truth) == (65, 50, 0), "a block too much"
    both = truth & ~block(10, 15, 10, 15) | block(45, 56, 60, 71)
    assert correcting_point(both, truth) == (65, 50, 0), "the larger of the two"
    assert correcting_point(block(0, 0, 0, 0), block(0, 9, 71, 80)) == (75, 4, 1), "at the image's corner"


def test_errors_are_counted_region_by_region() -> None:
    """Ten small holes together are larger than the one block beside them; each alone is not."""
    truth = block(0, 60, 0, 40)
    mask = truth.copy()
    for row in range(5, 55, 5):
        mask[row : row + 3, 5:8] = False
    mask |= block(20, 25, 60, 67)
    assert correcting_point(mask, truth) == (62, 22, 0)
    corner = block(10, 15, 10, 15) | block(15, 20, 15, 20)
    mended = correcting_point(block(0, 0, 0, 0), corner | block(40, 46, 40, 46))
    assert mended is not None
    assert mended[1] < 20, "what touches at a corner is one region"


def test_a_click_lies_in_the_largest_error_for_any_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        smooth = ndimage.gaussian_filter(rng.standard_normal((2, 50, 70)), (0, 4, 4))
        mask, truth = smooth > 0.02
        click = correcting_point(mask, truth)
        assert click is not None
        x, y, label = int(click[0]), int(click[1]), click[2]
        assert truth[y, x] == label
        assert mask[y, x] != truth[y, x]
        largest = 0
        for wrong in (truth & ~mask, mask & ~truth):
            regions, _ = ndimage.label(wrong, np.ones((3, 3)))
            largest = max(largest, np.bincount(regions.ravel())[1:].max(initial=0))
        wrong = (truth & ~mask) if label else (mask & ~truth)
        regions, _ = ndimage.label(wrong, np.ones((3, 3)))
        region = regions == regions[y, x]
        assert region.sum() == largest
        depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        assert depth[y, x] == pytest.approx(depth.max(), abs=1e-4)


def test_every_mask_is_judged_after_each_number_of_clicks(
    nano: Segmenter, scenes: dict[str, list[LabelledImage]]
) -> None:
    told = []
    results = evaluate_interactive(
        nano, scenes, (1, 3), keep_masks=True, progress=lambda *at: told.append(at)
    )
    masks = sum(len(image.masks) for image in scenes["scenes"])
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(results) == 2 * masks
    assert [r.points for r in results[:4]] == [1, 3, 1, 3]
    images = {image.name: image for image in scenes["scenes"]}
    for result in results:
        truth = images[result.image].masks[result.mask].decode()
        assert result.task == images[result.image].masks[result.mask].task
        assert len(result.clicks) == result.points
        assert result.clicks[0] == (*innermost_point(truth), 1)
        assert all(label == truth[int(y), int(x)] for x, y, label in result.clicks)
        assert (result.rle is None) == (result.points == 1), "masks of the last number only"
        if result.rle is not None:
            [mask] = decode_rle([result.rle], *truth.shape)
            assert result.iou == pytest.approx((mask & truth).sum() / (mask | truth).sum())
    rows = summarise_results(results)
    assert [row["points"] for row in rows] == [1, 3] * (len(rows) // 2)
    assert sum(row["n"] for row in rows) == len(results)
    assert rows[0]["miou"] == pytest.approx(
        np.mean([r.iou for r in results if (r.task, r.points) == (rows[0]["task"], 1)]), abs=1e-5
    )
    again = evaluate_interactive(nano, scenes, (1, 2, 3))
    assert [replace(r, rle=None) for r in results] == [r for r in again if r.points != 2], (
        "the same every time"
    )


def test_one_click_gives_what_the_model_cards_say(
    nano: Segmenter, scenes: dict[str, list[LabelledImage]]
) -> None:
    ours = [result.iou for result in evaluate_interactive(nano, scenes, (1,))]
    cards = [result.best_iou for result in evaluate_points(nano, scenes["scenes"])]
    assert ours == pytest.approx(cards, abs=2e-3), "batches by task round otherwise, by a pixel or so"


def test_the_second_round_gets_both_clicks_and_the_best_mask_and_no_task(
    nano: Segmenter, scenes: dict[str, list[LabelledImage]]
) -> None:
    """By hand for one mask and a model that was taught tasks."""
    vectors = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0
    taught = load_segmenter("sam-nano", device="cpu")
    taught.task_prompt_4C = vectors
    image = replace(scenes["scenes"][0], masks=scenes["scenes"][0].masks[:1])
    truth, task = image.masks[0].decode(), image.masks[0].task

    def pick(logits_Mhw: torch.Tensor) -> tuple[np.ndarray, float, int]:
        masks = (taught.upscale(logits_Mhw, truth.shape) > taught.mask_threshold).numpy()
        iou = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
        return masks[int(np.argmax(iou))], max(iou), int(np.argmax(iou))

    embedding, index = taught.embed([image.load()]), torch.zeros(1, dtype=torch.int64)
    clicks = torch.tensor([[[*innermost_point(truth), 1.0]]])
    logits = taught.decode(
        embedding, Prompts(index, clicks[..., :2], clicks[..., 2].long()), task=task
    ).logits_NMhw
    mask, first, best = pick(logits[0])
    clicks = torch.cat([clicks, torch.tensor([[correcting_point(mask, truth)]])], 1)
    prompts = Prompts(index, clicks[..., :2], clicks[..., 2].long(), masks_N1hw=logits[:, best : best + 1])
    second = pick(taught.decode(embedding, prompts).logits_NMhw[0])[1]

    results = evaluate_interactive(taught, {"scenes": [image]}, (1, 2))
    assert [result.iou for result in results] == pytest.approx([first, second])
    untold = evaluate_interactive(taught, {"scenes": [image]}, (1, 2), tell_task=False)
    plain = evaluate_interactive(nano, {"scenes": [image]}, (1, 2))
    assert untold == plain
    assert [r.iou for r in untold] != [r.iou for r in results]


def test_what_is_evaluated_is_spread_evenly_and_has_pixels() -> None:
    empty = LabelledMask({"size": [4, 4], "counts": b"@4"}, 0, "entity")
    images = scene_images(range(20, 26), 128)
    images[0] = replace(images[0], masks=(empty,))
    images[1] = replace(images[1], masks=(empty, *images[1].masks))
    chosen = choose_images({"scenes": images}, images=3, masks=2)["scenes"]
    assert [image.name for image in chosen] == ["scene-21", "scene-23", "scene-25"]
    assert all(len(image.masks) <= 2 and all(mask.area for mask in image.masks) for image in chosen)
    with pytest.raises(ConfigError, match="'none' has no labelled image"):
        choose_images({"none": images[:1]})


def test_an_image_of_another_size_than_its_masks_is_named(
    nano: Segmenter, scenes: dict[str, list[LabelledImage]]
) -> None:
    image = replace(scenes["scenes"][0], load=lambda: np.zeros((64, 128, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"scene-5 has 64 x 128 pixels, its masks in 'mine' have 128 x 128"):
        evaluate_interactive(nano, {"mine": [image]}, (1,))


def records(iou: np.ndarray, groups: int, task: str = "entity") -> list[MaskResult]:
    return [
        MaskResult("set", f"group-{n % groups}", f"image-{n}", 0, task, 1, float(value), float(value) / 2, ())
        for n, value in enumerate(iou)
    ]


def widths(differences: list[Difference]) -> list[float]:
    assert all(of.low is not None and of.high is not None for of in differences)
    return [of.high - of.low for of in differences]  # type: ignore[operator]


def test_a_model_against_itself_differs_by_nothing() -> None:
    same = records(np.random.default_rng(0).random(50), 10)
    assert [(d.mean, d.low, d.high, d.n) for d in paired_bootstrap(same, same[::-1])] == [(0, 0, 0, 50)] * 4
    assert [(d.task, d.metric) for d in paired_bootstrap(same, same)] == [
        ("entity", "miou"), ("entity", "mbiou"), ("all", "miou"), ("all", "mbiou"),
    ]  # fmt: skip


def test_a_shift_lies_in_its_interval_and_luck_does_not_pass_for_one() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(400)
    better = base + 0.05 + rng.normal(0, 0.1, 400)
    first = paired_bootstrap(records(better, 400), records(base, 400))[0]
    assert first.low is not None
    assert first.high is not None
    assert 0.03 < first.low < first.mean < first.high < 0.07
    assert first.high - first.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15), "as the normal one"
    assert first == paired_bootstrap(records(better, 400), records(base, 400))[0]
    assert first != paired_bootstrap(records(better, 400), records(base, 400), seed=1)[0]
    covers = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, 0.1, 60)
        of = paired_bootstrap(records(base[:60] + noise, 60), records(base[:60], 60), draws=400)[0]
        covers += of.low <= 0 <= of.high  # type: ignore[operator]
    assert 87 <= covers <= 99


def test_masks_of_one_group_are_not_taken_for_independent() -> None:
    rng = np.random.default_rng(2)
    base, gain = rng.random(400), np.tile(rng.normal(0, 0.1, 20), 20)  # the gain is the group's
    clustered = paired_bootstrap(records(base + gain, 20), records(base, 20))
    independent = paired_bootstrap(records(base + gain, 400), records(base, 400))
    assert [d.mean for d in clustered] == pytest.approx([d.mean for d in independent])
    assert all(c > 3 * i for c, i in zip(widths(clustered), widths(independent), strict=True))


def test_tasks_are_judged_apart_and_a_single_group_has_no_interval() -> None:
    rng = np.random.default_rng(3)
    base = rng.random(40)
    part, salient = records(base, 1, "part"), records(base, 8, "salient")
    worse = [replace(r, iou=r.iou - 0.2) for r in part]
    found = {(d.task, d.metric): d for d in paired_bootstrap(worse + salient, part + salient)}
    assert list(found)[::2] == [("salient", "miou"), ("part", "miou"), ("all", "miou")]
    assert found["part", "miou"].mean == pytest.approx(-0.2)
    assert found["part", "miou"].low is None
    assert [found[task, "miou"].groups for task in ("salient", "part", "all")] == [8, 1, 8]
    assert found["salient", "miou"].high == 0
    assert found["all", "miou"].mean == pytest.approx(-0.1)
    assert found["all", "mbiou"].mean == 0
    alone = paired_bootstrap(salient, salient)
    assert [d for d in found.values() if d.task == "salient"] == alone[:2], "whatever other tasks there are"
    json.dumps([vars(d) for d in found.values()], allow_nan=False)


def test_results_of_other_masks_cannot_be_compared() -> None:
    some = records(np.ones(5), 5)
    with pytest.raises(ValueError, match="other masks"):
        paired_bootstrap(some, some[:4])
