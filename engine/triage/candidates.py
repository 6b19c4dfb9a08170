"""Masks that people may be asked about, and the little that the choice looks at: columns, not pixels.

Shape suffixes: N candidates, K of them, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


_AT_ONCE = 4096


class Texts(Sequence[str]):
    """Texts of N rows as they lie in Arrow, a third of what they take in a list.

    Args:
        values: one a row, or, with `place_N`, each text once.
        place_N: of each row its text's place in `values`, int32.
    """

    def __init__(self, values: pa.ChunkedArray, place_N: np.ndarray | None = None) -> None:
        import pyarrow as pa

        self._values = values.cast(pa.large_string()).combine_chunks()
        self._place_N = place_N

    def __len__(self) -> int:
        return len(self._values if self._place_N is None else self._place_N)

    def __getitem__(self, row: Any) -> Any:
        return self._values[int(row if self._place_N is None else self._place_N[row])].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):  # one by one takes three times as long
            rows = slice(start, start + _AT_ONCE)
            of = self._values[rows] if self._place_N is None else self._values.take(self._place_N[rows])
            yield from of.to_pylist()


@dataclass(frozen=True)
class Candidates:
    """N masks in a fixed order; where two are equally good, the earlier is chosen.

    About 80 bytes each, so ten million fit easily. Embeddings would take a kilobyte each: they are read for the few
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
