"""What a store holds already of one model and settings: lean enough for 10^7 images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from schemas.records import PoolItem

if TYPE_CHECKING:
    from .snapshot import Snapshot


class DoneIndex:
    """The committed images of one model and settings, found by 128-bit hashes kept in memory.

    About 16 bytes an image for `pending` and 50 more for `find_content`.
    """

    def __init__(self, snapshot: Snapshot, model: str, settings: str, *, retry_errors: bool = False) -> None:
        redo = " AND error_kind IS NULL" if retry_errors else ""
        self._files = _Hashed(
            snapshot.con.sql(
                f"SELECT {_hash_columns('uri || chr(0) || fingerprint')} FROM images WHERE model = ? AND settings = ?{redo}",
                params=[model, settings],
            ).to_arrow_table()
        )
        # Of several rows for one content only the latest says which settings made the masks that are seen.
        self._contents = _Hashed(
            snapshot.con.sql(
                f"""SELECT {_hash_columns("i.image_id")}, width, height, mode, i.n_masks, i.attempt FROM images i
                LEFT JOIN internal.winners w ON w.image_key = md5_number(i.model || chr(0) || i.image_id)
                WHERE i.model = ? AND settings = ? AND error_kind IS NULL AND i.image_id IS NOT NULL
                AND (w.attempt IS NULL OR (w.attempt = i.attempt AND w.committed_at = i.committed_at))""",
                params=[model, settings],
            ).to_arrow_table()
        )

    def __len__(self) -> int:
        return len(self._files)

    def pending(self, items: Sequence[PoolItem]) -> list[PoolItem]:
        """Those of a batch that are not committed, or whose file has changed since."""
        found = self._files.find(f"{item.uri}\0{item.fingerprint}" for item in items)
        return [item for item, row in zip(items, found, strict=True) if row < 0]

    def find_content(self, image_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """For contents whose masks are committed under whatever uri: `width`, `height`, `mode`, `n_masks`
        and the `attempt` that an images row for another uri of the same content is to name."""
        found = self._contents.find(image_ids)
        hits = {image_id: row for image_id, row in zip(image_ids, found, strict=True) if row >= 0}
        rows = self._contents.rows.take(pa.array(hits.values(), pa.int64())).to_pylist()
        return dict(zip(hits, rows, strict=True))


class _Hashed:
    """Rows found by the MD5 of a text: sorted by its first half, checked by its second."""

    def __init__(self, table: pa.Table) -> None:
        first, second = table["first_half"].to_numpy(), table["second_half"].to_numpy()
        order = np.argsort(first, kind="stable")
        self._first, self._second = first[order], second[order]
        rows = table.drop_columns(["first_half", "second_half"])
        for index, field in enumerate(rows.schema):
            if pa.types.is_string(field.type):
                rows = rows.set_column(index, field.name, rows[field.name].dictionary_encode())
        self.rows = rows.take(pa.array(order)) if rows.num_columns else rows

    def __len__(self) -> int:
        return len(self._first)

    def find(self, texts: Iterable[str]) -> np.ndarray:
        """Row of each text, -1 where there is none; int64."""
        digests = b"".join(hashlib.md5(text.encode(), usedforsecurity=False).digest() for text in texts)
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        if not len(self._first):
            return np.full(len(halves), -1)
        at = np.minimum(np.searchsorted(self._first, halves[:, 0]), len(self._first) - 1)
        return np.where((self._first[at] == halves[:, 0]) & (self._second[at] == halves[:, 1]), at, -1)


def _hash_columns(text: str) -> str:
    return f"md5_number_upper({text}) AS first_half, md5_number_lower({text}) AS second_half"
