"""From the store to candidates: the masks that people were neither asked about nor have answered for.

Shape suffixes: N candidates, M masks, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.generate.pooling import unpack_embeddings
from engine.store.people import ANSWERED, find_answered
from engine.triage.acquisition import FROM_ACCEPTED, FROM_ALL
from engine.triage.candidates import Candidates, Texts
from schemas.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.store.snapshot import Snapshot

# What was asked about in this queue, or answered in any.
_ASKED = f"""
    SELECT unnest(mask_ids) AS mask_id FROM reviews WHERE queue = $queue
    UNION {ANSWERED}
"""
# Numbered, so that a mask bears four bytes instead of two texts.
_NUMBER_IMAGES = """
    CREATE OR REPLACE TEMP TABLE numbered_images AS
    SELECT (row_number() OVER (ORDER BY image_id) - 1)::INTEGER AS place, image_id, regexp_extract(min(uri), '^(.*)/', 1) AS stratum
    FROM images WHERE model = $model GROUP BY image_id
"""
_FREE = f"""
    SELECT mask_id, place, height, width, uncertainty, entropy, map_mean, coalesce(decision = 'people', false) AS people,
        coalesce(decision = 'accept', false) AS accepted
    FROM masks JOIN numbered_images USING (image_id)
    LEFT JOIN (SELECT mask_id, decision FROM decisions WHERE model = $model) USING (mask_id)
    WHERE model = $model AND replaced_by IS NULL AND ($every OR image_id IN (SELECT unnest($images::VARCHAR[])))
        AND mask_id NOT IN ({_ASKED})
    ORDER BY mask_id
"""
_ASKED_OF_MODEL = f"SELECT mask_id FROM masks WHERE model = $model AND mask_id IN ({_ASKED}) ORDER BY mask_id"
_THERE = """
    SELECT EXISTS (FROM decisions WHERE model = $model) AS decisions, EXISTS (FROM embeddings WHERE model = $model) AS embeddings
"""
_COUNTS = """
    SELECT count(*) AS asked, count(*) FILTER (chosen_by IN ($accepted, $every)) AS drawn
    FROM (SELECT unnest(mask_ids), unnest(chosen_by) AS chosen_by FROM reviews WHERE queue = $queue AND model = $model)
"""
_EMBEDDINGS = """
    SELECT mask_id AS wanted, values FROM embeddings WHERE model = $model AND mask_id IN (SELECT unnest($mask_ids::VARCHAR[]))
"""
# A mask that was made to mend another shows the same object, and has that one's embedding where it has none.
_OF_PARENTS = """
    WITH RECURSIVE source AS (
        SELECT mask_id AS wanted, mask_id, parent_mask_id FROM masks
        WHERE model = $model AND mask_id IN (SELECT unnest($mask_ids::VARCHAR[]))
        UNION
        SELECT s.wanted, m.mask_id, m.parent_mask_id FROM source s JOIN masks m ON m.mask_id = s.parent_mask_id
        WHERE m.model = $model AND s.mask_id NOT IN (SELECT mask_id FROM embeddings WHERE model = $model)
    )
    SELECT wanted, values FROM source JOIN (SELECT mask_id, values FROM embeddings WHERE model = $model) USING (mask_id)
"""


@dataclass(frozen=True)
class FreeMasks:
    """Masks that people may be asked about, and what was asked before.

    Attributes:
        candidates: in the order of their ids.
        size_N2: (height, width) of each one's image, pixels.
        asked_ids: masks of the same model that were asked about, or are of objects that people have answered for.
        n_asked, n_drawn: masks of this model that this queue was ever sent, and how many of them were drawn at random.
    """

    candidates: Candidates
    size_N2: np.ndarray
    asked_ids: list[str]
    n_asked: int
    n_drawn: int


def read_free_masks(
    snapshot: Snapshot, queue: str, model: str, images: Sequence[str] | None = None
) -> FreeMasks:
    """Masks of a model that people may be asked about.

    Free is what holds (was not replaced by a mended one), is in no item of this queue, was not answered in any, and is not
    of an object that people have answered for (see `find_answered`). Where masks of
    the model were triaged, people are for those whose newest decision says so. The folder of an image is its stratum.

    Args:
        snapshot: of the store; it is read on for embeddings while masks are chosen.
        queue: its name.
        model: that made them, name@version.
        images: only of these image_ids; None for all.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    asked: dict[str, Any] = {"model": model, "queue": queue}
    of = {**asked, "every": images is None, "images": list(images or [])}
    snapshot.con.execute(_NUMBER_IMAGES, {"model": model})
    of_images = snapshot.con.sql("FROM numbered_images ORDER BY place").to_arrow_table()
    table = snapshot.con.sql(_FREE, params=of).to_arrow_table()
    known = find_answered(snapshot, model)
    sent = [row["mask_id"] for row in snapshot.rows(_ASKED_OF_MODEL, asked)]
    [counts] = snapshot.rows(_COUNTS, {**asked, "accepted": FROM_ACCEPTED, "every": FROM_ALL})
    [there] = snapshot.rows(_THERE, {"model": model})
    if known:
        table = table.filter(pc.invert(pc.is_in(table["mask_id"], pa.array(sorted(known)))))
    mask_ids = Texts(table["mask_id"])
    every_N, place_N = np.ones(len(table), bool), table["place"].to_numpy()
    candidates = Candidates(
        mask_ids,
        Texts(of_images["image_id"], place_N),
        Texts(of_images["stratum"], place_N),
        _floats(table["uncertainty"]),
        _floats(table["entropy"]),
        _floats(table["map_mean"]),
        table["people"].to_numpy() if there["decisions"] else every_N,
        table["accepted"].to_numpy() if there["decisions"] else every_N,
        partial(_embed, snapshot, model, mask_ids) if there["embeddings"] else None,
    )
    size_N2 = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], 1)
    return FreeMasks(candidates, size_N2, sorted({*sent, *known}), counts["asked"], counts["drawn"])


def read_embeddings(snapshot: Snapshot, model: str, mask_ids: Sequence[str]) -> np.ndarray:
    """embedding_MC of masks of a model, float32, of length 1; zeros for those that have none.

    Raises:
        ConfigError: embeddings of one model differ in length.
    """
    wanted, values = _find_embeddings(snapshot, _EMBEDDINGS, model, mask_ids)
    there = set(wanted)
    if lacking := [name for name in mask_ids if name not in there]:
        of_parents = _find_embeddings(snapshot, _OF_PARENTS, model, lacking)
        wanted, values = wanted + of_parents[0], values + of_parents[1]
    if len({len(of) for of in values}) > 1:
        raise ConfigError(f"Embeddings of {model} are of several lengths: something else wrote to the store.")
    place = {name: i for i, name in enumerate(wanted)}
    channels = len(values[0]) if values else 0
    values_MC = np.zeros((len(values) + 1, channels), np.int8)  # the last stands for none
    values_MC[: len(values)] = np.frombuffer(b"".join(values), np.int8).reshape(len(values), channels)
    return unpack_embeddings(values_MC[[place.get(name, len(values)) for name in mask_ids]])


def _find_embeddings(
    snapshot: Snapshot, sql: str, model: str, mask_ids: Sequence[str]
) -> tuple[list[str], list[bytes]]:
    found = snapshot.con.sql(sql, params={"model": model, "mask_ids": list(mask_ids)}).to_arrow_table()
    return found["wanted"].to_pylist(), found["values"].to_pylist()


def _embed(snapshot: Snapshot, model: str, mask_ids: Sequence[str], positions: np.ndarray) -> np.ndarray:
    return read_embeddings(snapshot, model, [mask_ids[i] for i in positions.tolist()])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """Its numbers, float32, NaN for NULL."""
    return column.to_numpy().astype(np.float32)
