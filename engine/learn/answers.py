"""People's answers in a store as labelled images: what fine-tuning and the gate learn from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.learn.data import LabelledImage, LabelledMask, read_sets
from engine.learn.image_loaders import LostImageError, PoolLoader
from engine.learn.splits import keep_out_everywhere, learnable_images
from engine.store.people import JUDGED, group_shapes, read_counting, read_rejected
from schemas.records import TASKS

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_log = logging.getLogger(__name__)

ANSWERS = "answers"
"""What the set of a store's answers is called."""
_COPIES = """
    SELECT image_id, list(DISTINCT [uri, fingerprint] ORDER BY [uri, fingerprint]) AS copies FROM images
    WHERE image_id IN (SELECT image_id FROM labels) GROUP BY image_id
"""

_VERDICTS = """
    SELECT verdict, count(*) AS n FROM labels WHERE pulled_at >= $began AND verdict <> 'withdrawn' GROUP BY verdict
    ORDER BY n DESC, verdict
"""
LEARNT_UNTIL = """
    CASE WHEN json_exists(data, '$.answered_until') THEN coalesce((data ->> '$.answered_until')::TIMESTAMPTZ, '1970-01-01')
    ELSE created_at END
"""
"""SQL of a row of `models`: the `pulled_at` of the newest answer that was there when the version began to learn. Of older ones that
is not known: when their row was written."""
# Answers that a round could learn nothing from are not new either, or it would begin, and end, for ever.
_NEW = f"""
    SELECT count(*) AS n, date_part('epoch', now() - min(pulled_at)) / 3600 AS oldest_h FROM labels
    WHERE verdict IN {JUDGED}
    AND pulled_at > (SELECT coalesce(max(until), '1970-01-01'::TIMESTAMPTZ) FROM (
        SELECT {LEARNT_UNTIL} AS until FROM models WHERE parent IS NOT NULL AND name = $name
        UNION ALL SELECT (numbers ->> '$.answered_until')::TIMESTAMPTZ FROM rounds
        WHERE step = 'finetune' AND outcome = 'skipped' AND split_part(model, '@', 1) = $name))
"""
_LATEST = "SELECT max(pulled_at) AS pulled_at FROM labels"


def read_every_set(data: Iterable[Path], store: Store | None) -> dict[str, list[LabelledImage]]:
    """Images of COCO sets by name, and what people answered in a store (as `ANSWERS`), where there is any; what one of them keeps
    out is kept out of all, see `keep_out_everywhere`.

    Raises:
        ConfigError: a file is missing or no COCO file, or two folders have one name.
    """
    sets = read_sets(data)
    if store is not None and (answers := read_answers(store)):
        sets[ANSWERS] = answers
    return keep_out_everywhere(sets)


def read_lessons(
    data: Iterable[Path], store: Store | None, *, openable: bool = False
) -> dict[str, list[LabelledImage]]:
    """The same without people's answers as long as all of them are kept out: there is nothing to learn from those yet.

    Args:
        openable: without images that are gone, see `leave_out_lost`.

    Raises:
        ConfigError: as `read_every_set`.
    """
    sets = read_every_set(data, store)
    if openable:
        sets = leave_out_lost(sets)
    if ANSWERS in sets and not learnable_images(sets[ANSWERS]):
        del sets[ANSWERS]
    return sets


def count_verdicts(store: Store, began: datetime) -> dict[str, int]:
    """How many rows of each verdict were pulled since a moment, the most frequent first."""
    rows = store.read(lambda snapshot: snapshot.rows(_VERDICTS, {"began": began}))
    return {str(row["verdict"]): int(row["n"]) for row in rows}


def find_latest_answer(store: Store) -> datetime | None:
    """`pulled_at` of the newest row of `labels`; None where nobody has answered. Ask before the answers are read: what is pulled
    in between is new after it."""
    (row,) = store.read(lambda snapshot: snapshot.rows(_LATEST, {}))
    return row["pulled_at"]


def why_wait(store: Store, name: str, least_new: int, longest_wait_h: float | None = None) -> str:
    """Why fine-tuning has to wait for more answers; empty where it has not to.

    Args:
        name: what the model is called, whatever its version.
        least_new: masks that are enough, of those answered since a version of it began to learn last, or since a round found
            nothing to learn from in all that there were.
        longest_wait_h: hours after which fewer are enough; None for never.
    """
    (new,) = store.read(lambda snapshot: snapshot.rows(_NEW, {"name": name}))
    late = longest_wait_h is not None and new["n"] and new["oldest_h"] >= longest_wait_h
    if new["n"] >= least_new or late:
        return ""
    or_when = "" if longest_wait_h is None else f", or {longest_wait_h:g} h have to pass since the first"
    return f"{new['n']} masks were answered since the last fine-tuning; {least_new} have to be{or_when}."


def read_answers(store: Store) -> list[LabelledImage]:
    """Images with the masks that people left, mended or added, and those that they took away; each image is a group.

    A fifth of the images, told by their ids, is kept out for ever, however many more are answered.
    """

    def read(snapshot: Snapshot) -> tuple[list[dict[str, Any]], ...]:
        return read_counting(snapshot), read_rejected(snapshot), snapshot.rows(_COPIES, {})

    rows, rejected, found = store.read(read)
    away = group_shapes(rejected)
    copies = {
        row["image_id"]: tuple((uri, fingerprint) for uri, fingerprint in row["copies"]) for row in found
    }
    by_image: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["image_id"] in copies:
            by_image.setdefault(row["image_id"], []).append(row)
    return [
        LabelledImage(
            name=image_id,
            group=image_id,
            modality="",
            masks=tuple(
                LabelledMask(
                    {"size": [row["height"], row["width"]], "counts": row["rle"]},
                    int(str(row["area"])),
                    str(row["task"] or TASKS[0]),
                )
                for row in of
            ),
            load=PoolLoader(image_id, copies[image_id]),
            kept_out=is_kept_out(image_id),
            rejected=tuple(away.get((image_id, of[0]["height"], of[0]["width"]), ())),
        )
        for image_id, of in by_image.items()
    ]


def leave_out_lost(sets: Mapping[str, Sequence[LabelledImage]]) -> dict[str, list[LabelledImage]]:
    """Sets without those images of the pool that cannot be opened any more, and without sets of which nothing is left.

    Reads every image of the pool in them, and says how many are lost.
    """
    there: dict[str, list[LabelledImage]] = {name: [] for name in sets}
    lost: list[LostImageError] = []
    for name, images in sets.items():
        for image in images:
            try:
                if isinstance(image.load, PoolLoader):
                    image.load()
                there[name].append(image)
            except LostImageError as error:
                lost.append(error)
    if lost:
        _log.warning(
            "%d images that people answered for are left out: they are gone. First: %s", len(lost), lost[0]
        )
    return {name: images for name, images in there.items() if images or not sets[name]}


def is_kept_out(image_id: str) -> bool:
    """Whether answers about this image are never learnt from."""
    return int(image_id[:8], 16) % 5 == 0
