"""A push with a strategy: triaged stores, the random share and what it tells, stores with embeddings and without."""

from __future__ import annotations

import dataclasses
import functools
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from review_sides import MODEL, FolderSide, label_pool, write_pool
from store_rows import image_row, mask_rows, tables_of

from engine.review.pull import pull_answers
from engine.review.push import push_masks
from engine.store import Store
from engine.triage.accept_error import bound_share, estimate_accept_error
from engine.triage.acquisition import select_masks
from engine.triage.reading import read_embeddings, read_free_masks
from schemas.errors import ConfigError
from schemas.settings import AcquisitionSettings, Strategy
from schemas.tables import EMBEDDINGS, MASKS


def decide(store: Store, rows: Sequence[dict[str, Any]], decision: Callable[[int], str], triage: str) -> None:
    store.append(
        "decisions",
        [
            {"triage_id": triage, "mask_id": row["mask_id"], "image_id": row["image_id"], "model": MODEL}
            | {"decision": decision(i), "p_good": 0.5, "cost": 1.0, "gain": 0.0}
            | {"decided_at": datetime.now(UTC)}
            for i, row in enumerate(rows)
        ],
    )


def chosen_by(store: Store) -> dict[str, str]:
    rows = store.query(
        "SELECT unnest(mask_ids) AS mask_id, unnest(chosen_by) AS chosen_by FROM reviews"
    ).to_pylist()
    return {row["mask_id"]: row["chosen_by"] for row in rows}


def commit_masks(store: Store, rows: list[dict[str, Any]], images: list[dict[str, Any]], **more: Any) -> None:
    schema = pa.schema([f for f in MASKS if f.name not in ("model", "attempt")])
    store.commit_shard(
        MODEL, tables_of(images)[0], {"masks": pa.Table.from_pylist(rows, schema=schema), **more}
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "masks"))


@pytest.fixture
def pool(tmp_path: Path, store: Store) -> list[dict[str, Any]]:
    """Four masks of each of ten pictures."""
    made = label_pool(store, write_pool(tmp_path / "pool", 10))
    return [row for of in made.values() for row in of]


def test_a_triaged_store_asks_only_what_is_for_people_and_draws_from_the_accepted(
    store: Store, pool: list[dict[str, Any]], tmp_path: Path
) -> None:
    words = ("accept", "accept", "people", "larger model")
    decide(store, pool, lambda i: "people", "1")
    decide(store, pool, lambda i: words[i % 4], "2")  # the newest triage counts
    report = push_masks(
        store,
        FolderSide(tmp_path / "queue").queue,
        40,
        acquisition=AcquisitionSettings(random_share=0.2),
    )
    by = chosen_by(store)
    decisions = {row["mask_id"]: words[i % 4] for i, row in enumerate(pool)}
    assert report.masks == len(by) == 10 + 8, "the budget is not filled with what machines may mend"
    assert {(decisions[name], word) for name, word in by.items()} == {
        ("people", "uncertainty"),
        ("accept", "random"),
    }


def test_a_queue_tells_how_many_accepted_masks_are_wrong(
    store: Store, pool: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert estimate_accept_error(store, MODEL, 0.8).rate is None
    decide(store, pool, lambda i: "people" if i % 4 == 0 else "accept", "1")
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 20, acquisition=AcquisitionSettings(random_share=0.5))
    drawn = {name for name, word in chosen_by(store).items() if word == "random"}
    assert len(drawn) == 10
    assert estimate_accept_error(store, MODEL, 0.8).rate is None, "nobody has answered"
    wrong, answered = 0, 0
    for place, task in enumerate(side.tasks()):
        regions = task["predictions"][0]["result"]
        of = [region for region in regions if region["id"] in drawn]
        if place == 0:
            side.answer(task, regions, skip=True)
            continue
        answered += len(of)
        gone = of[:1] if wrong < 2 else []
        wrong += len(gone)
        side.answer(task, [region for region in regions if region not in gone])
    pull_answers(store, side.queue)
    decide(store, pool[:1], lambda i: "people", "9")  # later triages change nothing of what was drawn
    error = estimate_accept_error(store, MODEL, 0.8)
    assert (error.n, error.wrong, error.drawn) == (answered, wrong, 10)
    assert error.rate == wrong / answered
    assert error.low is not None
    assert error.high is not None
    assert error.low < error.rate < error.high


def test_the_interval_covers_the_truth_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    bound = functools.cache(bound_share)
    for truth, n in ((0.02, 100), (0.1, 60), (0.3, 200)):
        wrong = np.arange(5000) < truth * 5000
        hits = []
        for _ in range(1000):
            low, high = bound(int(rng.choice(wrong, n, replace=False).sum()), n)
            hits.append(low <= wrong.mean() <= high)
        assert 0.94 <= np.mean(hits) <= 1.0


def embedded_masks(store: Store, clusters: Sequence[int], *, leave: int = 0) -> list[dict[str, Any]]:
    """Commit an image of each cluster with masks that look alike, but not the same; the first cluster is the most uncertain."""
    rng = np.random.default_rng(0)
    images, rows, embeddings = [], [], []
    for cluster, count in enumerate(clusters):
        image = image_row(f"file:///pool/{cluster}/a.jpg", n_masks=count)
        images.append(image)
        for row in mask_rows(image, "first"):
            row |= {"uncertainty": 1 - 0.1 * cluster - 0.01 * rng.random()}
            values = np.eye(8)[cluster] * 100 + rng.normal(0, 15, 8)
            rows.append(row)
            about = {"mask_id": row["mask_id"], "image_id": row["image_id"]}
            embeddings.append({**about, "values": values.astype(np.int8).tobytes()})
    schema = pa.schema([f for f in EMBEDDINGS if f.name not in ("model", "attempt")])
    commit_masks(
        store,
        rows,
        images,
        embeddings=pa.Table.from_pylist(embeddings[: len(embeddings) - leave], schema=schema),
    )
    return rows


def test_coreset_and_badge_spread_over_what_a_store_holds(store: Store) -> None:
    embedded_masks(store, (12, 6, 6, 6))
    free = read_free_masks(store.open_snapshot(), "folder:x", MODEL).candidates
    assert set(free.strata) == {f"file:///pool/{i}" for i in range(4)}
    settings = AcquisitionSettings(strategy="coreset", random_share=0)
    images = {free.image_ids[i] for i, _ in select_masks(free, 4, settings)}
    assert len(images) == 4
    plain = select_masks(free, 4, settings.model_copy(update={"strategy": "uncertainty"}))
    assert len({free.image_ids[i] for i, _ in plain}) == 1
    assert len(select_masks(free, 4, settings.model_copy(update={"strategy": "badge"}))) == 4


@pytest.mark.parametrize("strategy", ["uncertainty", "entropy", "coreset", "badge", "random"])
def test_the_choice_is_that_of_the_same_masks_in_lists(store: Store, strategy: Strategy) -> None:
    rows = embedded_masks(store, (12, 6, 6, 6))
    decide(store, rows, lambda i: ("people", "people", "accept")[i % 3], "1")
    free = read_free_masks(store.open_snapshot(), "folder:x", MODEL).candidates
    texts = {name: list(getattr(free, name)) for name in ("mask_ids", "image_ids", "strata")}
    assert texts["mask_ids"] == sorted(row["mask_id"] for row in rows)
    image_of = {row["mask_id"]: row["image_id"] for row in rows}
    assert texts["image_ids"] == [image_of[name] for name in texts["mask_ids"]]
    assert [free.strata[i] for i in range(len(free))] == texts["strata"]
    settings = AcquisitionSettings(strategy=strategy, random_share=0.3, per_image=4, per_stratum=0.5)
    chosen = select_masks(free, 12, settings)
    assert chosen == select_masks(dataclasses.replace(free, **texts), 12, settings)
    assert {by for _, by in chosen} >= {"random"}


def test_the_masks_of_a_large_pool_take_little_memory(store: Store) -> None:
    count = 20_000
    image = image_row("file:///pool/a.jpg", n_masks=count)
    commit_masks(store, mask_rows(image, "first"), [image])
    read_free_masks(store.open_snapshot(), "folder:x", MODEL)
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    free = read_free_masks(store.open_snapshot(), "folder:x", MODEL)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(free.candidates) == count
    assert (held + pa.total_allocated_bytes() - arrow) / count < 100


def test_a_mended_mask_has_the_embedding_of_the_one_that_it_mends(store: Store) -> None:
    rows = embedded_masks(store, (3,))
    last = rows[-1]
    mended = {**last, "mask_id": "0" * 32, "parent_mask_id": last["mask_id"], "repair": "better prompt"}
    again = {**mended, "mask_id": "1" * 32, "parent_mask_id": "0" * 32}
    image = image_row("file:///pool/0/a.jpg", n_masks=5)
    schema = pa.schema([f for f in EMBEDDINGS if f.name not in ("model", "attempt")])
    stored = store.query("SELECT mask_id, image_id, values FROM embeddings").to_pylist()
    last["replaced_by"], mended["replaced_by"] = mended["mask_id"], again["mask_id"]
    commit_masks(
        store,
        [*rows, mended, again],
        [image],
        embeddings=pa.Table.from_pylist(stored, schema=schema),
    )
    found = read_embeddings(
        store.open_snapshot(), MODEL, [again["mask_id"], last["mask_id"], rows[0]["mask_id"], "x"]
    )
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-6)
    free = read_free_masks(store.open_snapshot(), "folder:x", MODEL).candidates
    assert sorted(free.mask_ids) == sorted([again["mask_id"], *(row["mask_id"] for row in rows[:2])]), (
        "what was replaced is not asked about"
    )


def test_a_store_without_embeddings_pushes_and_says_what_the_other_strategies_need(
    store: Store, pool: list[dict[str, Any]], tmp_path: Path
) -> None:
    queue = FolderSide(tmp_path / "queue").queue
    for strategy in ("coreset", "badge"):
        with pytest.raises(ConfigError, match=r"no embedding.*Label their images again"):
            push_masks(store, queue, 5, acquisition=AcquisitionSettings(strategy=strategy))
    for budget, strategy in ((5, "uncertainty"), (10, "entropy"), (15, "random")):
        settings = AcquisitionSettings(strategy=strategy, random_share=0)
        assert push_masks(store, queue, budget, acquisition=settings).waiting == budget
    assert sorted(chosen_by(store).values()) == sorted(
        ["uncertainty"] * 5 + ["entropy"] * 5 + ["random strategy"] * 5
    )
    embedded_masks(store, (4, 4), leave=2)
    with pytest.raises(ConfigError, match="masks that come into question have no embedding"):
        push_masks(store, queue, 40, acquisition=AcquisitionSettings(strategy="coreset"))


def test_what_looks_like_a_mask_that_was_asked_about_is_not_asked_about(store: Store, tmp_path: Path) -> None:
    rows = embedded_masks(store, (4, 4))
    free = read_free_masks(store.open_snapshot(), "folder:x", MODEL)
    assert free.asked_ids == []
    store.append(
        "reviews",
        [
            {"queue": "folder:x", "item_key": "k", "task_id": "1", "state": "sent", "model": MODEL}
            | {"image_id": rows[0]["image_id"], "mask_ids": [rows[0]["mask_id"]], "chosen_by": ["random"]}
            | {"uncertainty": 1.0, "width": 64, "height": 48, "written_at": datetime.now(UTC)}
        ],
    )
    free = read_free_masks(store.open_snapshot(), "folder:x", MODEL)
    assert (free.asked_ids, free.n_asked, free.n_drawn) == ([rows[0]["mask_id"]], 1, 1)
    assert rows[0]["mask_id"] not in free.candidates.mask_ids
    asked = read_embeddings(store.open_snapshot(), MODEL, free.asked_ids)
    settings = AcquisitionSettings(random_share=0, duplicate_similarity=0.8)
    chosen = [free.candidates.image_ids[i] for i, _ in select_masks(free.candidates, 8, settings, asked)]
    assert set(chosen) == {rows[-1]["image_id"]}


@pytest.mark.parametrize(("option", "value"), [("--strategy", "corset"), ("--random-share", "2")])
def test_a_mistyped_choice_is_told_before_anything_is_done(
    tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import main

    with pytest.raises(SystemExit):
        main(["push", "--store", str(tmp_path), option, value])
    assert f"gapmap: {option}: " in capsys.readouterr().err
