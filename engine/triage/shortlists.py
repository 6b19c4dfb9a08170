"""The candidates that a strategy looks at, some at a time, with their embeddings.

Shape suffixes: N candidates, S those of a shortlist, R those whose embeddings are held, C channels.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import numpy as np

from engine.triage.candidates import Candidates

_SHORTLIST = 10
"""Candidates that a strategy compares for each mask of the budget. The most uncertain come into question, and of these
the diverse ones are asked about (as Zhdanov, "Diverse mini-batch active learning", 2019, filters first): with all of a
million masks the farthest would be freaks, and comparing would take time that grows with the pool."""
_LEAST_SHORTLIST = 1000
_MOST_AHEAD = 1 << 15  # a kilobyte each


def read_shortlists(
    candidates: Candidates,
    order: np.ndarray,
    budget: int,
    room_of: Callable[[int], tuple[int, int]],
    *,
    trim: bool,
) -> Iterator[tuple[list[int], np.ndarray | None]]:
    """Positions of candidates in their order, some at a time, and embedding_SC of each, None where no mask has any; those whose image or
    stratum is full are passed over.

    Args:
        candidates: N masks.
        order: positions of those that come into question, the first ones first.
        budget: masks that are chosen, at most.
        room_of: how many more masks of the image of a mask may be chosen, and of its stratum.
        trim: let no image and no stratum fill a shortlist that it cannot fill the budget of; its other masks wait.
    """
    size = max(_SHORTLIST * budget, _LEAST_SHORTLIST)
    each = size // budget
    image_ids, strata = candidates.image_ids, candidates.strata
    embeddings = _ReadAhead(candidates.embed) if candidates.embed else None
    coming = 0  # the next place of `order`
    waiting: deque[int] = deque()
    while True:
        taken: list[int] = []
        later: list[int] = []
        images: Counter[str] = Counter()
        in_stratum: Counter[str] = Counter()
        while len(taken) < size and (waiting or coming < len(order)):
            if waiting:
                i = waiting.popleft()
            else:
                i, coming = int(order[coming]), coming + 1
            of_image, of_stratum = room_of(i)
            if of_image <= 0 or of_stratum <= 0:
                continue
            image, stratum = image_ids[i], strata[i]
            if trim and (images[image] >= of_image or in_stratum[stratum] >= each * of_stratum):
                later.append(i)
                continue
            images[image] += 1
            in_stratum[stratum] += 1
            taken.append(i)
        waiting.extendleft(reversed(later))
        if not taken:
            return
        following = chain(waiting, map(int, islice(order, coming, None)))
        next_ones = (i for i in following if min(room_of(i)) > 0)
        yield taken, None if embeddings is None else embeddings.read(taken, next_ones)


class _ReadAhead:
    """Embeddings of candidates, each time of more of those that come next: to find some in a store takes time that grows with it, and
    where nearly all are duplicates all are looked at.

    Args:
        embed: as in `Candidates`.
    """

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray]) -> None:
        self._embed = embed
        self._row: dict[int, int] = {}
        self._embedding_RC = np.zeros((0, 0), np.float32)
        self._ahead = 0  # most pushes need the first shortlist alone

    def read(self, positions: list[int], next_ones: Iterable[int]) -> np.ndarray:
        """embedding_SC of these; `next_ones` are read with them if they have to be read."""
        if not all(i in self._row for i in positions):
            some = list(dict.fromkeys([*positions, *islice(next_ones, self._ahead)]))
            self._row = {i: row for row, i in enumerate(some)}
            self._embedding_RC = np.zeros((0, 0), np.float32)  # the last ones are let go of first
            self._embedding_RC = self._embed(np.array(some))
            self._ahead = min(2 * len(some), _MOST_AHEAD)
        return self._embedding_RC[[self._row[i] for i in positions]]
