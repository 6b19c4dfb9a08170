"""Labelling with heads: every mask says why the model is unsure of it; without heads nothing is made up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import pytest
import torch

from engine.generate.generator import generate_masks
from engine.mask_maker import MaskMaker
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.scenes import make_scene
from engine.store import Store
from engine.uncertainty.features import FEATURES
from engine.uncertainty.head_files import find_heads, write_heads
from engine.uncertainty.heads import GAPS, HeadSet, Pairing
from flows.cli import main
from schemas.errors import ConfigError
from schemas.settings import GenerateSettings, PoolSettings

FEW = GenerateSettings(points_per_side=6, pred_iou_thresh=0.2, stability_score_thresh=0.2)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture(scope="module")
def heads(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> HeadSet:
    """A set that was never fitted, with all heads and features, read from its file."""
    generator = torch.Generator().manual_seed(0)
    names = (*GAPS, "iou")
    shapes = [(32, 512 + len(FEATURES)), (32, 32), (len(names), 32)]
    weights = tuple(
        (torch.randn(2, o, i, generator=generator) * 0.2, torch.randn(2, o, generator=generator))
        for o, i in shapes
    )
    scale, offset = torch.tensor([2.0, 2, 2, 1]), torch.tensor([1.0, 1, 1, 0])
    made = HeadSet(names, weights, scale, offset, Pairing.own, segmenter.model_id, len(FEATURES))
    path = tmp_path_factory.mktemp("heads") / "own.heads.safetensors"
    return write_heads(made, path)


def label(segmenter: Segmenter, heads: HeadSet | None, pool: Path, store: Store) -> int:
    labeller = Pseudolabeller(MaskMaker(segmenter, FEW, heads), store, PoolSettings())
    done = labeller.find_done()
    pending = done.pending(list(list_pool(str(pool), PoolSettings())))
    if pending:
        labeller.label(pending)
    return len(pending)


def test_every_mask_has_gaps_and_a_predicted_iou(
    segmenter: Segmenter, heads: HeadSet, small_pool: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    label(segmenter, heads, small_pool, store)
    rows = store.query(
        "SELECT model_gap, prompt_gap, task_gap, predicted_iou, uncertainty, uncertainty_source, heads FROM masks"
    ).to_pylist()
    assert len(rows) > 20
    for row in rows:
        assert all(-1 <= row[name] <= 1 for name in GAPS)
        assert row["uncertainty"] == pytest.approx(1 - row["predicted_iou"], abs=1e-6)
        assert (row["uncertainty_source"], row["heads"]) == ("predicted_iou", heads.version)
    assert len({row["task_gap"] for row in rows}) > 10


def test_without_heads_gaps_are_unknown_not_zero(
    segmenter: Segmenter, small_pool: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    label(segmenter, None, small_pool, store)
    [row] = store.query(
        """SELECT count(*) AS n, count(model_gap) + count(prompt_gap) + count(task_gap) + count(predicted_iou)
        + count(heads) AS known, any_value(uncertainty_source) AS source, max(abs(uncertainty - (1 - sam_score))) AS off
        FROM masks WHERE sam_score <= 1"""
    ).to_pylist()
    assert row["n"] > 20
    assert row["known"] == 0
    assert row["source"] == "sam_score"
    assert row["off"] < 1e-6


def test_heads_change_no_mask(segmenter: Segmenter, heads: HeadSet) -> None:
    pixels = [make_scene(seed, 128).image for seed in (1, 2)]
    plain = generate_masks(segmenter, pixels, FEW)
    scored = generate_masks(segmenter, pixels, FEW, scorer=heads)
    for one, other in zip(plain, scored, strict=True):
        assert len(one) > 5
        assert one.rles == other.rles
        assert np.isnan(one.rows_N["predicted_iou"]).all()
        assert np.isfinite(other.rows_N["predicted_iou"]).all()


def test_scores_do_not_depend_on_the_batches(segmenter: Segmenter, heads: HeadSet) -> None:
    pixels = [make_scene(seed, 128).image for seed in (1, 2)]
    batched = generate_masks(segmenter, pixels, FEW, scorer=heads)
    single = [
        generate_masks(segmenter, [image], FEW, scorer=heads, points_per_batch=7)[0] for image in pixels
    ]
    for one, other in zip(batched, single, strict=True):
        for name in (*GAPS, "predicted_iou"):
            np.testing.assert_allclose(one.rows_N[name], other.rows_N[name], atol=1e-3)


def test_masks_joined_across_tiles_are_scored(segmenter: Segmenter, heads: HeadSet) -> None:
    [masks] = generate_masks(
        segmenter, [make_scene(4, 256).image], FEW.model_copy(update={"tile_size": 128}), scorer=heads
    )
    assert len(masks) > 3
    assert np.isfinite(masks.rows_N["task_gap"]).all()


def test_new_heads_score_the_pool_anew_and_the_same_heads_do_not(
    segmenter: Segmenter, heads: HeadSet, small_pool: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    files = label(segmenter, None, small_pool, store)
    assert label(segmenter, None, small_pool, store) == 0
    [row] = store.query("SELECT DISTINCT settings LIKE '%heads%' AS named FROM images").to_pylist()
    assert not row["named"], "without heads the settings are the generator's own, as before there were heads"
    assert label(segmenter, heads, small_pool, store) == files
    assert label(segmenter, heads, small_pool, store) == 0
    [row] = store.query("SELECT count(*) - count(heads) AS old FROM masks").to_pylist()
    assert row["old"] == 0


def test_heads_of_another_version_are_refused_before_anything_is_labelled(
    segmenter: Segmenter, heads: HeadSet, tmp_path: Path
) -> None:
    other = write_heads(
        HeadSet(**{**heads.__dict__, "model_id": "sam-nano@0123456789ab"}), tmp_path / "other"
    )
    with pytest.raises(ConfigError, match="fitted to sam-nano@0123456789ab"):
        Pseudolabeller(MaskMaker(segmenter, FEW, other), Store(str(tmp_path / "s")), PoolSettings())
    with pytest.raises(ConfigError, match="gapmap fit-heads"):
        find_heads(segmenter, str(tmp_path / "other"))
    assert not (tmp_path / "s").exists()


def test_a_relative_file_of_heads_is_recorded_by_its_whole_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What Prefect records has to name the same file wherever the run is looked at or repeated."""
    import flows.label_command
    import flows.pseudolabel

    recorded: dict[str, Any] = {}

    def record(*_: object, **parameters: Any) -> NoReturn:
        recorded.update(parameters)
        raise ConfigError("recorded")

    monkeypatch.setattr(flows.label_command, "tether_server", lambda: None)
    monkeypatch.setattr(flows.pseudolabel, "pseudolabel", record)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("photos/1.png", "a.heads", "b/c.refiner"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for asked, expected in (
        (["--heads", "a.heads", "--maps", "b/c.refiner"], [tmp_path / "a.heads", tmp_path / "b/c.refiner"]),
        (["--heads", "~/a.heads", "--maps", "self"], [Path.home() / "a.heads", "self"]),
        (["--heads", "s3://ours/a.heads", "--maps", "none"], ["s3://ours/a.heads", "none"]),
        (["--heads", "none"], ["none", None]),
    ):
        with pytest.raises(SystemExit):
            main(["label", "photos", "--store", "masks", *asked])
        assert [recorded["heads"], recorded["maps"]] == [of and str(of) for of in expected]


def test_heads_and_refiners_at_a_url_are_fetched(
    segmenter: Segmenter, heads: HeadSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a worker on another machine reads them; those of another model show that they arrived whole."""
    from prefect.logging import disable_run_logger

    from flows.pseudolabel import pseudolabel

    monkeypatch.setenv("GAPMAP_CACHE", str(tmp_path / "cache"))
    of_another = HeadSet(**{**heads.__dict__, "model_id": "sam-nano@0123456789ab"})
    write_heads(of_another, tmp_path / "other.heads.safetensors")
    with fsspec.open("memory://ours/other.heads.safetensors", "wb") as file:
        file.write((tmp_path / "other.heads.safetensors").read_bytes())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"heads": "memory://ours/other.heads.safetensors"}, "fitted to sam-nano@0123456789ab"),
        ({"heads": "memory://ours/none"}, "There is no .* at memory://ours/none"),
        ({"maps": "memory://ours/other.heads.safetensors"}, "not to sam-nano@.*--maps self"),
    ]
    with disable_run_logger():
        for asked, message in cases:
            with pytest.raises(ConfigError, match=message):
                pseudolabel.fn(str(tmp_path), str(tmp_path / "store"), device="cpu", **asked)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("option", "what"), [("heads", "heads file"), ("maps", "refiner file")])
def test_files_of_heads_with_credentials_or_without_a_name_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, what: str
) -> None:
    import flows.label_command
    from flows.pseudolabel import pseudolabel

    def heard() -> NoReturn:
        raise AssertionError("Prefect hears of it")

    monkeypatch.setattr(flows.label_command, "quiet_prefect", heard)
    for address, message in (
        (
            "https://host/a.heads?X-Amz-Signature=s3cret",
            f"The {what} https://host/a.heads carries credentials",
        ),
        ("", f"The {what} needs an address"),
    ):
        with pytest.raises(SystemExit):
            main(["label", "photos", "--store", "masks", f"--{option}", address])
        said = capsys.readouterr().err
        assert message in said
        assert "s3cret" not in said
        asked: dict[str, Any] = {option: address}
        with pytest.raises(ConfigError, match=re.escape(message)):
            pseudolabel.fn("photos", "masks", **asked)
