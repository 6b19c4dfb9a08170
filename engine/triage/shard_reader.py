"""From the store to the shards that a pass of mending works on, without opening the store anew for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from engine.store.connection import LostFileError, explained, quote_sql
from engine.store.people import ANSWERED, WAITING
from engine.triage.shard import MaskShard

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_AHEAD = 2048
"""Images that a snapshot is opened for. To open one, and to find some images in it, takes time that grows with the store."""
_TRIES = 4
# Seen are an image's masks in one attempt, whatever else lies in the file.
_IMAGES = """
    SELECT i.*, coalesce(w.attempt, i.attempt) AS seen FROM images i
    LEFT JOIN internal.winners w ON w.image_key = md5_number(i.model || chr(0) || i.image_id)
    WHERE i.model = $model AND i.image_id IN (SELECT unnest($images::VARCHAR[])) ORDER BY uri
"""
_ROWS = """
    FROM {scan} SEMI JOIN (SELECT unnest($images::VARCHAR[]) AS image_id, unnest($seen::VARCHAR[]) AS attempt)
        USING (image_id, attempt)
"""
# With the images in the text, the newest triage is looked for among theirs alone: a tenth of the time.
_DECIDED = """
    SELECT mask_id, decision FROM decisions
    WHERE model = $model AND image_id IN ({images}) AND list_contains($remedies, decision)
"""
_PEOPLE = f"""
    SELECT mask_id FROM ({ANSWERED} AND image_id IN (SELECT unnest($images::VARCHAR[])))
    UNION {WAITING} AND image_id IN (SELECT unnest($images::VARCHAR[]))
"""
T = TypeVar("T")


class ShardReader:
    """Reads shards of images that are to be mended; use it in a `with` statement.

    What people answer and are asked is read anew each time; all else is as it was when the snapshot was opened, up to
    2,048 images before.

    Args:
        store: holds their masks.
        model: whose masks, name@version.
        image_ids: all that will be asked for, in that order.
        remedies: decisions that are to be carried out.
    """

    def __init__(self, store: Store, model: str, image_ids: Sequence[str], remedies: Sequence[str]) -> None:
        self.store, self.model = store, model
        self._image_ids, self._remedies = image_ids, list(remedies)
        self._snapshot: Snapshot | None = None
        self._start = 0
        self._ahead: list[str] = []
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._decisions: dict[str, str] = {}
        self._people: frozenset[str] = frozenset()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the snapshot; the next shard opens another."""
        if self._snapshot is not None:
            self._snapshot.con.close()
        self._snapshot, self._images = None, {}

    def read(self, image_ids: Sequence[str]) -> MaskShard:
        """All rows of the next images, or of those once more that were asked for last."""

        def rows(snapshot: Snapshot) -> MaskShard:
            images = [row for image_id in image_ids for row in self._images[image_id]]
            seen = {row["image_id"]: row["seen"] for row in images}
            asked = {"images": list(seen), "seen": list(seen.values())}
            of = {"images": images}
            for table in ("masks", "maps", "embeddings"):
                scan = snapshot.scan_attempts(table, self.model, sorted(set(seen.values())))
                of[table] = snapshot.rows(_ROWS.format(scan=scan), asked)
            return MaskShard(self.model, of, self._decisions, self._people)

        return self._use(image_ids, rows)

    def people_of(self, image_ids: Sequence[str]) -> frozenset[str]:
        """Masks, of these images and others, that people have answered for or are being asked about by now."""
        return self._use(image_ids, lambda _: self._people)

    def _use(self, image_ids: Sequence[str], make: Callable[[Snapshot], T]) -> T:
        """What `make` makes of a snapshot with these images; done again when a sweep took a file from under it."""
        for again in range(_TRIES):
            try:
                if self._snapshot is None or not all(name in self._images for name in image_ids):
                    self._open(image_ids)
                assert self._snapshot is not None
                with explained(self.store.files, self._snapshot.paths):
                    if self._snapshot.renew("labels", "reviews"):
                        self._read_people(self._snapshot)
                    return make(self._snapshot)
            except BaseException as error:
                self.close()  # or what was read in part would be taken for all
                if not isinstance(error, LostFileError) or again == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _open(self, image_ids: Sequence[str]) -> None:
        """Open a snapshot, and find in it what takes time that grows with the store, for these images and those behind them."""
        self.close()
        self._start = self._image_ids.index(image_ids[0], self._start)
        behind = self._image_ids[self._start : self._start + _AHEAD]
        self._ahead = list(dict.fromkeys([*image_ids, *behind]))
        self._snapshot = snapshot = self.store.open_snapshot()
        with explained(self.store.files, snapshot.paths):
            self._images = {image_id: [] for image_id in self._ahead}
            for row in snapshot.rows(_IMAGES, {"model": self.model, "images": self._ahead}):
                self._images[row["image_id"]].append(row)
            sql = _DECIDED.format(images=", ".join(map(quote_sql, self._ahead)))
            decided = snapshot.rows(sql, {"model": self.model, "remedies": self._remedies})
            self._decisions = {row["mask_id"]: row["decision"] for row in decided}
            self._read_people(snapshot)

    def _read_people(self, snapshot: Snapshot) -> None:
        rows = snapshot.rows(_PEOPLE, {"images": self._ahead})
        self._people = frozenset(row["mask_id"] for row in rows)
