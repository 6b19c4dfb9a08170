"""Which masks people are asked about: a random share of the accepted ones, and the best of the rest within caps.

Shape suffixes: N candidates, S those of a shortlist, M masks asked about before, C channels.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import compress

import numpy as np

from engine.triage.candidates import Candidates
from engine.triage.shortlists import read_shortlists
from engine.triage.strategies import DIVERSE, draw_numbers, score_candidates, spread_choice
from schemas.errors import ConfigError
from schemas.settings import AcquisitionSettings

FROM_ACCEPTED, FROM_ALL = "random", "random of all"
"""What `chosen_by` says of the random share: drawn from the accepted masks, or, where nothing was triaged, from all."""
_CATCH_UP = 2
"""Times its share that the random draw takes of one push, at most, where earlier ones drew too few."""


def select_masks(
    candidates: Candidates,
    budget: int,
    settings: AcquisitionSettings,
    asked_MC: np.ndarray | None = None,
    *,
    asked: int = 0,
    drawn: int = 0,
) -> list[tuple[int, str]]:
    """Choose masks to ask people about; the same arguments give the same choice.

    First the random share is drawn from the accepted masks, each as likely: no cap and no likeness keeps one out of it, or
    it would estimate something else. The strategy fills the rest of the budget.

    Args:
        candidates: N masks.
        budget: masks to choose, at most.
        settings: strategy, random share, caps, likeness and seed.
        asked_MC: embeddings of masks that people were asked about before, of length 1: duplicates of them are left out,
            and coreset covers what they do not.
        asked: masks that people were asked about before, by any strategy.
        drawn: how many of them were of the random share; together with these it comes to its share of all.

    Returns:
        Position in `candidates` and who chose it, in the order in which they were chosen. `chosen_by` is the strategy's name
        (`random strategy` for random), or `random` or `random of all` for the random share.

    Raises:
        ConfigError: the strategy needs embeddings or maps that the masks do not have.
    """
    choice = _Choice(candidates, budget, settings, asked_MC)
    share = math.floor(settings.random_share * (asked + budget) + 1e-9) - drawn
    share = max(0, min(share, math.ceil(_CATCH_UP * settings.random_share * budget - 1e-9), budget))
    accepted = np.flatnonzero(candidates.accepted_N)
    number_A = draw_numbers(compress(candidates.mask_ids, candidates.accepted_N), settings.seed)
    for i in accepted[np.argsort(number_A, kind="stable")[:share]].tolist():
        choice.add(i, FROM_ALL if candidates.people_N[i] else FROM_ACCEPTED)

    people = np.flatnonzero(candidates.people_N)
    if choice.room and len(people):
        score_N = score_candidates(candidates, settings.strategy, settings.seed)
        order = people[np.argsort(-score_N[people], kind="stable")]
        _fill(choice, order, settings)
    return choice.made


class _Choice:
    """What is chosen so far, and what may still be."""

    def __init__(
        self,
        candidates: Candidates,
        budget: int,
        settings: AcquisitionSettings,
        asked_MC: np.ndarray | None,
    ) -> None:
        self.candidates = candidates
        self.budget = budget
        self.made: list[tuple[int, str]] = []
        self.per_image = settings.per_image
        self.per_stratum = math.ceil(settings.per_stratum * budget - 1e-9)
        self._images: Counter[str] = Counter()
        self._strata: Counter[str] = Counter()
        self._taken: set[int] = set()
        self._similarity = settings.duplicate_similarity
        self._asked_MC = asked_MC
        self._chosen_BC: np.ndarray | None = None  # embeddings of those that the strategy chose
        self._compared: list[int] = []  # whose these are

    @property
    def room(self) -> int:
        """Masks that may still be chosen."""
        return self.budget - len(self.made)

    def room_of(self, i: int) -> tuple[int, int]:
        """How many more masks of the image of a mask may be chosen, and of its stratum; none for one that is chosen."""
        if i in self._taken:
            return 0, 0
        of = self.candidates
        return (
            self.per_image - self._images[of.image_ids[i]],
            self.per_stratum - self._strata[of.strata[i]],
        )

    def add(self, i: int, chosen_by: str, embedding_C: np.ndarray | None = None) -> None:
        self.made.append((i, chosen_by))
        self._taken.add(i)
        self._images[self.candidates.image_ids[i]] += 1
        self._strata[self.candidates.strata[i]] += 1
        if embedding_C is not None:
            if self._chosen_BC is None:
                self._chosen_BC = np.empty((self.budget, len(embedding_C)), np.float32)
            self._chosen_BC[len(self._compared)] = embedding_C
            self._compared.append(i)

    def is_near(self, embedding_C: np.ndarray) -> bool:
        """Whether people are asked about one that is nearly the same."""
        return any(float((part @ embedding_C).max()) >= self._similarity for part in self._parts)

    def covered(self) -> np.ndarray | None:
        """covered_MC: embeddings of what people were asked about before, and of what the strategy chose by now."""
        return np.concatenate(self._parts) if self._parts else None

    def chosen_scaled(self) -> np.ndarray | None:
        """covered_MC: embeddings of what the strategy chose by now, scaled by the uncertainty."""
        chosen_MC = self._chosen_MC
        return None if chosen_MC is None else chosen_MC * self.candidates.uncertainty_N[self._compared, None]

    @property
    def _chosen_MC(self) -> np.ndarray | None:
        return None if self._chosen_BC is None else self._chosen_BC[: len(self._compared)]

    @property
    def _parts(self) -> list[np.ndarray]:
        return [part for part in (self._asked_MC, self._chosen_MC) if part is not None and part.size]


def _fill(choice: _Choice, order: np.ndarray, settings: AcquisitionSettings) -> None:
    """Let the strategy choose until the budget is spent or nobody is left."""
    strategy = settings.strategy
    chosen_by = "random strategy" if strategy == "random" else strategy
    rng = np.random.default_rng(settings.seed) if strategy == "badge" else None
    shortlists = read_shortlists(
        choice.candidates, order, choice.budget, choice.room_of, trim=strategy in DIVERSE
    )
    for shortlist, embedding_SC in shortlists:
        if strategy in DIVERSE:
            _check_embedded(embedding_SC, strategy)

        def admit(
            place: int, among: list[int] = shortlist, embedding_SC: np.ndarray | None = embedding_SC
        ) -> bool:
            embedding_C = embedding_SC[place] if embedding_SC is not None and embedding_SC.size else None
            if min(choice.room_of(among[place])) <= 0:
                return False
            if embedding_C is not None and choice.is_near(embedding_C):
                return False
            choice.add(among[place], chosen_by, embedding_C)
            return True

        if embedding_SC is None or strategy not in DIVERSE:
            for place in range(len(shortlist)):
                if choice.room:
                    admit(place)
        elif strategy == "coreset":
            spread_choice(embedding_SC, choice.room, admit, covered_MC=choice.covered())
        else:
            scale_S1 = choice.candidates.uncertainty_N[shortlist, None]
            spread_choice(
                embedding_SC * scale_S1, choice.room, admit, covered_MC=choice.chosen_scaled(), rng=rng
            )
        if not choice.room:
            return


def _check_embedded(embedding_SC: np.ndarray | None, strategy: str) -> None:
    """Raise ConfigError where masks that come into question cannot be compared: leaving them out would go unseen."""
    lacking = 0 if embedding_SC is None else int((~embedding_SC.any(1)).sum())
    if embedding_SC is None or lacking:
        some = "None of the masks" if embedding_SC is None else f"{lacking} of {len(embedding_SC)} masks"
        has = "has" if embedding_SC is None else "that come into question have"
        raise ConfigError(
            f"{some} {has} no embedding, and the strategy {strategy} compares masks by it. Label their images again "
            "(gapmap label does so by itself where embeddings are missing), or use the strategy uncertainty."
        )
