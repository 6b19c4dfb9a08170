"""Masks that people may be asked about, and the little that the choice looks at: columns, not pixels.

Shape suffixes: N candidates, K of them, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """N masks in a fixed order; where two are equally good, the earlier is chosen.

    About 200 bytes each, so a million fit easily. Embeddings would take a kilobyte each: they are read for the few
    that come into question.

    Attributes:
        mask_ids, image_ids: as in the table `masks`.
        strata: what the choice is to be spread over; the folder of the image, say.
        uncertainty_N: 0..1, float32.
        entropy_N: mean pixel entropy, bits, 0..1, float32.
        map_N: mean of the uncertainty map, 0..1, float32; NaN where there is none.
        people_N: bool, where people are to be asked: the strategy chooses among these.
        accepted_N: bool, where the mask was accepted: the random share is drawn from these. Where nothing was
            triaged, both hold of every mask.
        embed: from positions_K to embedding_KC, float32, of length 1, zeros for masks that have none; None where no mask has.
    """

    mask_ids: Sequence[str]
    image_ids: Sequence[str]
    strata: Sequence[str]
    uncertainty_N: np.ndarray
    entropy_N: np.ndarray
    map_N: np.ndarray
    people_N: np.ndarray
    accepted_N: np.ndarray
    embed: Callable[[np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.mask_ids)
