"""Whom to ask about: each strategy on masks whose clusters are known, caps, duplicates, seeds and the random share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from engine.triage.acquisition import FROM_ACCEPTED, FROM_ALL, select_masks
from engine.triage.candidates import Candidates
from engine.triage.strategies import draw_numbers, spread_choice
from schemas.errors import ConfigError
from schemas.settings import AcquisitionSettings, Strategy

EVERY: tuple[Strategy, ...] = ("uncertainty", "entropy", "map", "coreset", "badge", "random")


def make_candidates(
    count: int = 400, clusters: int = 8, *, spread: float = 0.15, seed: int = 0, per_image: int = 5
) -> tuple[Candidates, np.ndarray]:
    """Masks in clusters of very different sizes, and the cluster of each; nothing was triaged."""
    rng = np.random.default_rng(seed)
    share = 0.5 ** np.arange(clusters)
    of = np.sort(rng.choice(clusters, count, p=share / share.sum()))
    of[-clusters:] = np.arange(clusters)  # none is empty
    points = np.eye(clusters, 32)[of] + rng.normal(0, spread / 32**0.5, (count, 32))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    numbers = rng.random((3, count)).astype(np.float32)
    return (
        Candidates(
            [f"mask-{i}" for i in range(count)],
            [f"image-{i // per_image}" for i in range(count)],
            [f"folder-{i // per_image % 4}" for i in range(count)],
            *numbers,
            np.ones(count, bool),
            np.ones(count, bool),
            lambda places: points[places],
        ),
        of,
    )


def choose(candidates: Candidates, budget: int, **settings: object) -> list[int]:
    """Positions that a strategy chooses where nothing is drawn besides."""
    asked = AcquisitionSettings(**{"random_share": 0.0, "duplicate_similarity": 1.0, **settings})
    return [i for i, _ in select_masks(candidates, budget, asked)]


@pytest.mark.parametrize(("strategy", "column"), [("uncertainty", 0), ("entropy", 1), ("map", 2)])
def test_the_strategies_of_one_number_take_the_highest(strategy: str, column: int) -> None:
    candidates, _ = make_candidates()
    number = (candidates.uncertainty_N, candidates.entropy_N, candidates.map_N)[column]
    assert choose(candidates, 20, strategy=strategy) == np.argsort(-number)[:20].tolist()


def test_masks_without_a_map_come_last_and_without_any_map_another_strategy_is_named() -> None:
    candidates, _ = make_candidates(20)
    candidates.map_N[:15] = np.nan
    assert set(choose(candidates, 5, strategy="map")) == set(range(15, 20))
    candidates.map_N[:] = np.nan
    with pytest.raises(ConfigError, match="refiner"):
        choose(candidates, 5, strategy="map")


def test_coreset_covers_every_cluster_where_uncertainty_does_not() -> None:
    candidates, of = make_candidates()
    candidates.uncertainty_N[of == 0] += 1  # the largest cluster is the most uncertain
    assert len(set(of[choose(candidates, 8, strategy="uncertainty")])) == 1
    assert set(of[choose(candidates, 8, strategy="coreset")]) == set(range(8))


def test_coreset_covers_what_earlier_questions_do_not() -> None:
    candidates, of = make_candidates()
    assert candidates.embed
    asked = candidates.embed(np.flatnonzero(of < 5))
    settings = AcquisitionSettings(strategy="coreset", random_share=0, duplicate_similarity=1)
    chosen = [i for i, _ in select_masks(candidates, 3, settings, asked)]
    assert set(of[chosen]) == {5, 6, 7}


def test_badge_takes_uncertain_masks_of_many_clusters() -> None:
    covered, sure, uncertain = [], [], []
    for seed in range(20):
        candidates, of = make_candidates(seed=seed)
        uncertain.append(candidates.uncertainty_N[choose(candidates, 8, strategy="badge", seed=seed)].mean())
        sure.append(candidates.uncertainty_N[choose(candidates, 8, strategy="coreset", seed=seed)].mean())
        covered.append(len(set(of[choose(candidates, 8, strategy="badge", seed=seed)])))
    at_random = np.mean(
        [
            len(set(make_candidates(seed=s)[1][np.random.default_rng(s).choice(400, 8, False)]))
            for s in range(20)
        ]
    )
    assert np.mean(covered) > at_random + 0.5
    assert np.mean(uncertain) > np.mean(sure) + 0.05


def test_k_means_plus_plus_spreads_as_well_as_scikit_learns() -> None:
    from sklearn.cluster import kmeans_plusplus

    points = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)

    def potential(chosen: np.ndarray) -> float:
        return float(((points[:, None] - points[chosen]) ** 2).sum(2).min(1).sum())

    ours, theirs = [], []
    for seed in range(20):
        chosen: list[int] = []
        spread_choice(
            points,
            20,
            lambda place, chosen=chosen: chosen.append(place) or True,
            rng=np.random.default_rng(seed),
        )
        ours.append(potential(np.array(chosen)))
        theirs.append(potential(kmeans_plusplus(points, 20, random_state=seed, n_local_trials=1)[1]))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.03)


def test_random_is_uniform_over_many_seeds() -> None:
    candidates, _ = make_candidates(50)
    for settings in ({"strategy": "random"}, {"random_share": 1.0}):
        counts = Counter(i for seed in range(2000) for i in choose(candidates, 5, seed=seed, **settings))
        assert chisquare([counts[i] for i in range(50)]).pvalue > 1e-3


@pytest.mark.parametrize("strategy", EVERY)
def test_caps_hold_and_the_budget_is_filled_all_the_same(strategy: Strategy) -> None:
    candidates, _ = make_candidates(per_image=20)
    candidates.uncertainty_N[:100] += 1  # five images want to be everything
    chosen = choose(candidates, 40, strategy=strategy, per_image=3, per_stratum=0.25)
    assert len(set(chosen)) == 40
    assert max(Counter(candidates.image_ids[i] for i in chosen).values()) <= 3
    assert max(Counter(candidates.strata[i] for i in chosen).values()) <= 10
    few = choose(candidates, 100, strategy=strategy, per_image=3)
    assert len(few) == 60, "twenty images, three of each"


@pytest.mark.parametrize("strategy", EVERY)
def test_near_duplicates_go(strategy: Strategy) -> None:
    candidates, of = make_candidates(spread=1e-3)  # all of a cluster are nearly the same
    chosen = choose(candidates, 50, strategy=strategy, duplicate_similarity=0.99)
    assert sorted(of[chosen]) == list(range(8))
    assert candidates.embed
    settings = AcquisitionSettings(strategy=strategy, random_share=0, duplicate_similarity=0.99)
    again = select_masks(candidates, 50, settings, candidates.embed(np.flatnonzero(of == 2)))
    assert sorted(of[[i for i, _ in again]]) == [0, 1, 3, 4, 5, 6, 7], "those asked about before count"


@pytest.mark.parametrize("strategy", EVERY)
def test_the_same_seed_chooses_the_same(strategy: Strategy) -> None:
    candidates, _ = make_candidates()
    settings = AcquisitionSettings(strategy=strategy)
    assert select_masks(candidates, 30, settings) == select_masks(candidates, 30, settings)
    other = settings.model_copy(update={"seed": 1})
    assert select_masks(candidates, 30, settings) != select_masks(candidates, 30, other)


def test_the_random_share_is_drawn_from_accepted_masks_only_and_no_cap_touches_it() -> None:
    candidates, _ = make_candidates(per_image=100)
    accepted = np.arange(400) % 4 != 0
    people = np.arange(400) % 8 == 0
    triaged = replace(candidates, accepted_N=accepted, people_N=people)
    settings = AcquisitionSettings(random_share=0.5, per_image=9, duplicate_similarity=0.5)
    chosen = select_masks(triaged, 60, settings)
    by = Counter(by for _, by in chosen)
    assert by[FROM_ACCEPTED] == 30
    for i, chosen_by in chosen:
        assert accepted[i] if chosen_by == FROM_ACCEPTED else people[i]
    assert {by for _, by in chosen} == {FROM_ACCEPTED, "uncertainty"}
    untriaged = select_masks(candidates, 60, AcquisitionSettings(random_share=0.5))
    assert {by for _, by in untriaged} == {"uncertainty", FROM_ALL}


def test_the_share_is_kept_however_small_the_pushes_are() -> None:
    candidates, _ = make_candidates()
    settings = AcquisitionSettings(random_share=0.1)
    drawn = 0
    for asked in range(0, 100, 4):
        chosen = select_masks(candidates, 4, settings, asked=asked, drawn=drawn)
        assert len(chosen) == 4
        drawn += sum(by == FROM_ALL for _, by in chosen)
    assert drawn == 10
    late = select_masks(candidates, 100, settings, asked=1000, drawn=0)
    assert sum(by == FROM_ALL for _, by in late) == 20, "what earlier pushes did not draw takes no whole push"


def test_a_draw_that_goes_on_with_new_masks_is_one_draw_from_all() -> None:
    names = [f"mask-{i}" for i in range(300)]
    number_N = draw_numbers(names, 7)
    assert np.array_equal(draw_numbers(names[100:], 7), number_N[100:]), "each keeps its number"
    assert not np.array_equal(draw_numbers(names, 8), number_N)


@pytest.mark.parametrize("strategy", ["coreset", "badge"])
def test_without_embeddings_the_diverse_strategies_say_what_to_do(strategy: Strategy) -> None:
    candidates, _ = make_candidates()
    with pytest.raises(ConfigError, match="Label their images again"):
        choose(replace(candidates, embed=None), 5, strategy=strategy)
    some = np.where(np.arange(400)[:, None] % 2, 1.0, 0.0) * np.ones((400, 4), np.float32)
    with pytest.raises(ConfigError, match="200 of 400 masks"):
        choose(replace(candidates, embed=lambda places: some[places]), 5, strategy=strategy)
    assert len(choose(replace(candidates, embed=None), 5)) == 5


@pytest.mark.parametrize("strategy", EVERY)
def test_nothing_to_choose_from_is_no_error(strategy: Strategy) -> None:
    candidates, _ = make_candidates()
    nothing = replace(candidates, people_N=np.zeros(400, bool), accepted_N=np.zeros(400, bool))
    assert select_masks(nothing, 5, AcquisitionSettings(strategy=strategy)) == []


def test_coreset_covers_what_it_has_not_chosen_from_earlier_candidates_of_the_same_push() -> None:
    """A thousand near copies of five kinds are the most uncertain, as the frames of a film; behind them are masks of forty kinds."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(40, 64))
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    of = np.concatenate([rng.integers(0, 5, 1000), rng.integers(0, 40, 1000)])
    spread = np.where(np.arange(2000) < 1000, 0.0005, 0.012)[:, None]
    points = kinds[of] + rng.normal(size=(2000, 64)) * spread
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    candidates = Candidates(
        [f"mask-{i}" for i in range(2000)],
        [f"image-{i}" for i in range(2000)],
        ["folder"] * 2000,
        *np.tile(np.linspace(1, 0.5, 2000, dtype=np.float32), (3, 1)),
        np.ones(2000, bool),
        np.ones(2000, bool),
        lambda places: points[places],
    )
    chosen = choose(candidates, 40, strategy="coreset", duplicate_similarity=0.998)
    assert len(set(of[chosen])) == 40
    by_badge = [
        len(set(of[choose(candidates, 40, strategy="badge", duplicate_similarity=0.998, seed=seed)]))
        for seed in range(5)
    ]
    assert np.mean(by_badge) > 36


@pytest.mark.parametrize("strategy", EVERY)
def test_a_pool_of_frames_that_are_all_alike_is_read_in_few_parts_and_the_choice_stays(
    strategy: Strategy,
) -> None:
    candidates, of = make_candidates(9000, spread=1e-3, per_image=3)
    candidates.uncertainty_N[:] = np.linspace(1, 0.1, 9000, dtype=np.float32)  # one kind after another
    assert candidates.embed
    embed, asked_for = candidates.embed, []

    def count(places: np.ndarray) -> np.ndarray:
        asked_for.append(len(places))
        return embed(places)

    settings: dict[str, object] = {"strategy": strategy, "duplicate_similarity": 0.99, "per_image": 2}
    chosen = choose(replace(candidates, embed=count), 20, **settings)
    assert sorted(of[chosen]) == list(range(8))
    assert len(asked_for) <= 4
    assert asked_for[0] == 1000, "most pushes look at no more"


def test_masks_without_an_embedding_are_asked_about_beside_those_that_have_one() -> None:
    candidates, of = make_candidates(1200, spread=1e-3)
    candidates.uncertainty_N[:] = np.linspace(1, 0.1, 1200, dtype=np.float32)
    assert candidates.embed
    embed = candidates.embed

    def embed_some(places: np.ndarray) -> np.ndarray:
        return embed(places) if (places < 1000).any() else np.zeros((len(places), 0), np.float32)

    kinds = len(set(of[:1000]))
    for asked_MC in (None, np.zeros((3, 0), np.float32)):
        settings = AcquisitionSettings(random_share=0, duplicate_similarity=0.99)
        chosen = select_masks(replace(candidates, embed=embed_some), 20, settings, asked_MC)
        assert len(chosen) == 20
        assert sum(i >= 1000 for i, _ in chosen) == 20 - kinds
