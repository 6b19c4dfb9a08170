"""Fitting heads: what can be known is learnt, on groups that are kept apart, and a kill costs nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import write_coco
from sample_rows import as_automatic, make_samples

from engine.generate.generator import generate_masks
from engine.learn.automatic_rows import make_automatic_rows, match_masks
from engine.learn.data import LabelledImage, read_coco, scene_images
from engine.learn.gap_targets import TargetMaker
from engine.learn.head_fitting import fit_heads, make_targets
from engine.learn.perceptron import FitSettings
from engine.learn.point_prompts import central_point, draw_prompts
from engine.learn.token_store import Samples, collect_tokens, join_samples
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.store import Store
from engine.uncertainty.features import FEATURES
from engine.uncertainty.heads import GAPS, IOUS
from schemas.errors import ConfigError
from schemas.settings import GenerateSettings

FAST = FitSettings(members=2, hidden=32, epochs=15)


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> list[LabelledImage]:
    return [scene for scene in scene_images(range(900_000, 900_006), 128) if scene.masks]


def test_heads_learn_what_can_be_known() -> None:
    fitted = fit_heads(make_samples(2000), "m@0", "l@0", FAST)
    assert fitted.heads.names == GAPS + IOUS
    assert fitted.r2["iou"] > 0.5
    fresh = make_samples(300, seed=1)
    said = fitted.heads.read_samples(torch.from_numpy(fresh.inputs_NMI).flatten(0, 1)).reshape(
        len(GAPS + IOUS), -1, 3
    )
    wanted = make_targets(fresh, GAPS + IOUS)
    r = {
        name: np.corrcoef(said[place].ravel(), wanted[..., place].ravel())[0, 1]
        for place, name in enumerate(GAPS + IOUS)
    }
    assert min(r["iou"], r["iou_meant"]) > 0.85
    assert min(r[name] for name in GAPS) > 0.4, "what the other outputs are worth is only partly known"


def test_the_same_seed_gives_the_same_heads() -> None:
    samples = make_samples(300)
    one, again, other = (fit_heads(samples, "m@0", "", replace(FAST, seed=seed)).heads for seed in (0, 0, 1))
    assert all(
        torch.equal(a, b)
        for layer in zip(one.weights, again.weights, strict=True)
        for a, b in zip(*layer, strict=True)
    )
    assert not torch.equal(one.weights[0][0], other.weights[0][0])


def test_without_a_larger_model_no_gap_to_it_is_made_up() -> None:
    heads = fit_heads(make_samples(300, larger=False), "m@0", "", FAST).heads
    assert set(GAPS + IOUS) - set(heads.names) == {"model_gap", "iou_larger"}
    assert heads.larger == ""


def test_too_few_groups_are_told() -> None:
    samples = make_samples(300)
    with pytest.raises(ConfigError, match="at least 5 groups"):
        fit_heads(samples.of_groups({"cells/1", "cars/2"}), "m@0", "l@0", FAST)


def test_targets_are_what_a_fix_gains_over_each_output() -> None:
    samples = make_samples(4)
    gaps = make_targets(samples, GAPS)
    for m in range(3):
        np.testing.assert_allclose(gaps[:, m, 0], samples.iou_larger_N - samples.iou_NM[:, m], rtol=1e-5)
        np.testing.assert_allclose(gaps[:, m, 2], samples.iou_NM.max(1) - samples.iou_NM[:, m], atol=1e-6)
    assert (gaps[..., 2] >= 0).all()


def test_heads_are_calibrated_on_what_labelling_keeps() -> None:
    """Suppression keeps the best scored of masks that are alike, so kept masks are worse than they seem."""
    prompted, automatic = make_samples(1500), as_automatic(make_samples(1500, seed=2), less=0.15)
    fitted = fit_heads(join_samples([prompted, automatic]), "m@0", "l@0", FAST)
    masks, kind = fitted.calibrated_on
    assert kind == "automatic"
    assert 100 < masks < 500, "one of three of a seventh of the groups"
    fresh = as_automatic(make_samples(300, seed=3), less=0.15)
    raw = fitted.heads.read_samples(torch.from_numpy(fresh.inputs_NMI[:, 0]))[fitted.heads.names.index("iou")]
    wrong = fitted.heads.calibrate(raw).numpy() - fresh.iou_nearest_NM[:, 0]
    assert abs(wrong.mean()) < 0.02
    assert set(fitted.r2) == set(GAPS + IOUS)
    assert min(fitted.r2[name] for name in GAPS) > 0, (
        "automatic masks teach nothing of gaps, and spoil nothing"
    )
    assert fit_heads(prompted, "m@0", "l@0", FAST).calibrated_on[1] == "prompted"
    with pytest.raises(ConfigError, match="Name other sets"):
        fit_heads(prompted, "m@0", "l@0", FAST, calibrate_on=["none of them"])


def test_automatic_masks_are_shown_to_a_fit_as_labelling_shows_them_to_the_heads(
    nano: Segmenter, tmp_path: Path
) -> None:
    heads = fit_heads(as_wide_as(nano), nano.model_id, "", FAST).heads
    image = next(scene for scene in scene_images(range(900_000, 900_020), 256) if scene.modality == "crowd")
    [masks] = generate_masks(nano, [image.load()], GenerateSettings(), scorer=heads)
    iou = match_masks(masks, image)
    expected = masks.rows_N["predicted_iou"][np.isfinite(iou)]
    maker = TargetMaker(nano, None, objects=1, automatic=999)
    samples = collect_tokens(Store(str(tmp_path)), {"s": [image]}, nano, maker)
    kept = np.isfinite(samples.iou_nearest_NM) & samples.automatic_N[:, None]
    assert len(expected) == kept.sum() > 3
    raw = heads.read_samples(torch.from_numpy(samples.inputs_NMI[kept]))[heads.names.index("iou")]
    np.testing.assert_allclose(np.sort(heads.calibrate(raw).numpy()), np.sort(expected), atol=5e-3)
    true = np.sort(iou[np.isfinite(iou)])
    np.testing.assert_allclose(np.sort(samples.iou_nearest_NM[kept]), true, atol=1e-6)
    few = TargetMaker(nano, None, objects=1, automatic=3).make_rows(image)
    assert sum(row["prompt"] == "automatic" for row in few) == 3


def test_masks_of_an_image_in_tiles_are_shown_with_their_own_features(
    nano: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "engine.learn.automatic_rows.GenerateSettings",
        lambda: GenerateSettings(tile_size=160, points_per_side=12),
    )
    image = next(scene for scene in scene_images(range(900_000, 900_020), 256) if scene.modality == "crowd")
    rows = make_automatic_rows(nano, image, image.load(), 999, 0)
    score = FEATURES.index("score")
    shown = [
        (of[score], row["sam_score"][m])
        for row in rows
        for m, of in enumerate(np.reshape(row["features"], (3, -1)))
        if np.isfinite(of[score])
    ]
    assert len(shown) > 5
    assert len({(row["point_x"] > 128, row["point_y"] > 128) for row in rows}) > 1, "of several tiles"
    np.testing.assert_allclose(*zip(*shown, strict=True), atol=1e-3)


def as_wide_as(segmenter: Segmenter) -> Samples:
    """Samples whose tokens are as wide as the model's."""
    samples = make_samples(300, larger=False)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(300, 3, 512)).astype(np.float32)
    features = samples.inputs_NMI[..., -len(FEATURES) :]
    return replace(samples, inputs_NMI=np.concatenate([tokens, features], 2))


def test_the_central_point_lies_inside_even_of_a_ring() -> None:
    rows, columns = np.mgrid[:60, :80]
    distance = np.hypot(rows - 30, columns - 40)
    ring = (distance < 25) & (distance > 15)
    x, y = central_point(ring).astype(int)
    assert ring[y, x]
    assert 16 < distance[y, x] < 24, "away from both edges"
    disc = distance < 20
    assert tuple(central_point(disc)) == (40, 30)
    dot = np.zeros((5, 5), bool)
    dot[4, 0] = True
    assert tuple(central_point(dot)) == (0, 4)
    points = draw_prompts(ring, 3, np.random.default_rng(0))
    assert points.shape == (3, 8, 2)
    assert all(ring[int(y), int(x)] for x, y in points.reshape(-1, 2))


def test_true_iou_is_that_of_the_masks_at_full_resolution(
    nano: Segmenter, scenes: list[LabelledImage]
) -> None:
    image = scenes[0]
    rows = TargetMaker(nano, None, points=1, objects=4, automatic=0).make_rows(image)
    from schemas.records import Prompts

    embedding = nano.embed([image.load()])
    for row in rows:
        truth = image.masks[row["object"]].decode()
        point = torch.tensor([[[row["point_x"], row["point_y"]]]])
        assert truth[int(row["point_y"]), int(row["point_x"])]
        decoded = nano.decode(
            embedding, Prompts(torch.zeros(1, dtype=torch.int64), point, torch.ones(1, 1, dtype=torch.int64))
        )
        masks = (nano.upscale(decoded.logits_NMhw[0], truth.shape) > nano.mask_threshold).numpy()
        expected = [(mask & truth).sum() / max(1, (mask | truth).sum()) for mask in masks]
        np.testing.assert_allclose(row["iou"], expected, atol=2e-3)
        assert (row["iou_nearest"] >= np.array(row["iou"]) - 1e-9).all()
        assert row["iou_larger"] is None


def test_collecting_goes_on_where_it_was_killed(
    nano: Segmenter, scenes: list[LabelledImage], tmp_path: Path
) -> None:
    maker = TargetMaker(nano, nano, objects=3, automatic=0)
    undisturbed = collect_tokens(Store(str(tmp_path / "a")), {"s": scenes}, nano, maker)
    store = Store(str(tmp_path / "b"))
    collect_tokens(store, {"s": scenes[:2]}, nano, maker)
    asked: list[tuple[int, int]] = []
    resumed = collect_tokens(
        store, {"s": scenes}, nano, maker, lambda done, total: asked.append((done, total))
    )
    assert [done for done, _ in asked] == list(range(3, len(scenes) + 1)), "the first two are not asked again"
    np.testing.assert_array_equal(resumed.inputs_NMI, undisturbed.inputs_NMI)
    np.testing.assert_array_equal(resumed.iou_NM, undisturbed.iou_NM)
    picked = undisturbed.sam_score_NM.argmax(1)
    np.testing.assert_allclose(
        undisturbed.iou_larger_N, undisturbed.iou_NM[np.arange(len(picked)), picked], atol=1e-6
    )
    assert undisturbed.central_N.sum() * 2 == len(undisturbed)


def test_samples_are_those_of_the_images_asked_for_and_no_others(
    nano: Segmenter, scenes: list[LabelledImage], tmp_path: Path
) -> None:
    """What else the store holds, of the same set or with baselines, does not leak into a fit."""
    store = Store(str(tmp_path))

    def baselines(pixels: np.ndarray, points: np.ndarray, *_: object, seed: int) -> dict[str, np.ndarray]:
        return {"entropy": np.zeros(len(points)), "H_Y": np.full(len(points), 0.5)}

    collect_tokens(
        store, {"s": scenes}, nano, TargetMaker(nano, None, objects=2, automatic=0, baselines=baselines)
    )
    asked: list[tuple[int, int]] = []
    some = collect_tokens(
        store,
        {"other name": scenes[:2]},
        nano,
        TargetMaker(nano, None, objects=2, automatic=0),
        lambda *done: asked.append(done),
    )
    assert not asked, "what was made with baselines is good without"
    assert set(some.group_N) == {f"other name/{scene.group}" for scene in scenes[:2]}
    assert (some.entropies["H_Y"][some.central_N] == 0.5).all()
    assert np.isnan(some.entropies["H_Y"][~some.central_N]).all()


def test_a_copied_set_is_known_again_and_an_image_may_be_in_two_sets(nano: Segmenter, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "first", range(950_000, 950_002))
    shutil.copytree(folder, tmp_path / "second")
    sets = {name: read_coco(tmp_path / name) for name in ("first", "second")}
    store, maker = Store(str(tmp_path / "tokens")), TargetMaker(nano, None, objects=2, automatic=0)
    first = collect_tokens(store, {"first": sets["first"]}, nano, maker)
    asked: list[tuple[int, int]] = []
    both = collect_tokens(store, sets, nano, maker, lambda *done: asked.append(done))
    assert not asked
    assert [(both.data_N == name).sum() for name in sets] == [len(first)] * 2
    with (tmp_path / "second" / sets["second"][0].name).open("ab") as file:
        file.write(b"changed")
    sets = {name: read_coco(tmp_path / name) for name in ("first", "second")}
    collect_tokens(store, sets, nano, maker, lambda *done: asked.append(done))
    assert len(asked) == 1, "only what changed is asked anew"
    for given in ({"first": sets["first"]}, {"second": sets["second"]}, sets):
        again = collect_tokens(store, given, nano, maker, lambda *done: asked.append(done))
        assert [(again.data_N == name).sum() for name in given] == [len(first)] * len(given)
    assert len(asked) == 1, "other pixels under the same labels are kept beside"
    at_once = collect_tokens(Store(str(tmp_path / "other tokens")), sets, nano, maker)
    assert [(at_once.data_N == name).sum() for name in sets] == [len(first)] * 2


def test_an_image_is_in_the_group_that_its_set_says_now(nano: Segmenter, tmp_path: Path) -> None:
    """Groups are never split: a group told later, or in a copy, must not leave samples in the old one."""
    folder = write_coco(tmp_path / "first", range(950_000, 950_002))
    store, maker = Store(str(tmp_path / "tokens")), TargetMaker(nano, None, objects=1, automatic=0)
    images = read_coco(folder)
    collect_tokens(store, {"first": images}, nano, maker)
    copied = [replace(image, group="one slide") for image in images]
    asked: list[tuple[int, int]] = []
    both = collect_tokens(
        store, {"first": images, "second": copied}, nano, maker, lambda *done: asked.append(done)
    )
    assert not asked
    assert set(both.group_N) == {"first/00.png", "first/01.png", "second/one slide"}
    assert set(both.group_N[both.data_N == "second"]) == {"second/one slide"}


def test_rows_merged_in_the_store_are_known_again(nano: Segmenter, tmp_path: Path) -> None:
    images = read_coco(write_coco(tmp_path / "set", range(950_000, 950_003)))
    store, maker = Store(str(tmp_path / "tokens")), TargetMaker(nano, None, objects=1, automatic=0)
    parts = [collect_tokens(store, {"set": [image]}, nano, maker) for image in images]
    store.compact()
    asked: list[tuple[int, int]] = []
    whole = collect_tokens(store, {"set": images}, nano, maker, lambda *done: asked.append(done))
    assert not asked
    assert len(whole) == sum(map(len, parts)) > 3


def test_what_was_asked_in_another_way_is_kept_beside(
    nano: Segmenter, scenes: list[LabelledImage], tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    makers = [TargetMaker(nano, None, objects=count, automatic=0) for count in (1, 2)]
    made = [collect_tokens(store, {"s": scenes[:2]}, nano, maker) for maker in makers]
    asked: list[tuple[int, int]] = []
    again = [
        collect_tokens(store, {"s": scenes[:2]}, nano, maker, lambda *done: asked.append(done))
        for maker in makers
    ]
    assert not asked
    assert [len(of) for of in again] == [len(of) for of in made]
    assert len(made[0]) < len(made[1])
