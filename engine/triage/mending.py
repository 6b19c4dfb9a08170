"""Carry out what triage decided a machine can mend, a shard of images at a time.

An image whose masks are mended is committed anew, whole or not at all: its rows as they were, the new ones beside them, and who
holds instead of whom. So a run that was killed has done nothing to the images it had in hand, and goes on with them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.pool import reread_copy
from engine.store.people import ANSWERED, WAITING, find_answered
from engine.triage.duplicates import settle_duplicates
from engine.triage.repair import Mender
from engine.triage.shard import MaskShard
from engine.triage.shard_reader import ShardReader
from schemas.errors import ImageError

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

# In the order in which they lie in the store, so that a shard is found in few files.
_PENDING = f"""
    SELECT m.image_id FROM masks m
    JOIN (SELECT mask_id, image_id, decision FROM decisions WHERE model = $model AND list_contains($remedies, decision)) d
        USING (mask_id, image_id)
    ANTI JOIN (SELECT parent_mask_id AS mask_id, repair AS decision FROM masks
               WHERE model = $model AND parent_mask_id IS NOT NULL) c USING (mask_id, decision)
    WHERE m.model = $model AND m.replaced_by IS NULL AND m.mask_id NOT IN ({ANSWERED}) AND m.mask_id NOT IN ({WAITING})
        AND m.mask_id NOT IN (SELECT unnest($answered::VARCHAR[]))
    GROUP BY m.image_id ORDER BY min(m.attempt), m.image_id
"""


@dataclass
class RepairReport:
    """What mending came to, by remedy: masks tried, those that hold instead of their parents, and seconds of the machine.

    `left_out` names images that could not be opened, and why; `gone` has their image_ids.
    """

    tried: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def add(self, other: RepairReport) -> None:
        """Count another report in."""
        for mine, its in (
            (self.tried, other.tried),
            (self.held, other.held),
            (self.seconds, other.seconds),
        ):
            for remedy, count in its.items():
                mine[remedy] = mine.get(remedy, 0) + count  # type: ignore[assignment]
        self.left_out += other.left_out
        self.gone |= other.gone


def find_pending(store: Store, model: str, remedies: Sequence[str]) -> list[str]:
    """Images (image_id) with masks that were decided to be mended, have not been, and are not people's meanwhile.

    Args:
        model: whose masks, name@version.
        remedies: those that can be had, of `engine.triage.decisions.REMEDIES`.
    """

    def read(snapshot: Snapshot) -> list[str]:
        asked = {
            "model": model,
            "remedies": list(remedies),
            "answered": sorted(find_answered(snapshot, model)),
        }
        return [row["image_id"] for row in snapshot.rows(_PENDING, asked)]

    return store.read(read)


def mend_images(reader: ShardReader, image_ids: Sequence[str], menders: Mapping[str, Mender]) -> RepairReport:
    """Mend what was decided of these images, and commit them.

    Images of which people have answered for more masks by then, or are asked about more, stay as they are; so do those
    that were labelled anew meanwhile.

    Args:
        reader: of the images that `find_pending` gave.
        image_ids: the next of these.
        menders: the model that carries out each remedy.
    """
    shard = reader.read(image_ids)
    report = RepairReport()
    mended = {image_id: _mend_image(shard, image_id, menders, report) for image_id in image_ids}
    if not any(mended.values()):
        return report
    theirs = reader.people_of(image_ids) - shard.of_people
    done = []
    for image_id, made in mended.items():
        if made is not None and not any(row["mask_id"] in theirs for row in shard.masks_of(image_id)):
            done.append(image_id)
            report.add(made)
    if done:
        images, tables = shard.tables(done)
        reader.store.commit_shard(reader.model, images, tables)
    return report


def _mend_image(
    shard: MaskShard, image_id: str, menders: Mapping[str, Mender], report: RepairReport
) -> RepairReport | None:
    """Add an image's mended masks to the shard; returns what they are, None where there are none."""
    rows = shard.masks_of(image_id)
    asked = {remedy: [row for row in rows if shard.wants(row, remedy)] for remedy in menders}
    if not any(asked.values()):
        return None
    copies = [(row["uri"], row["fingerprint"]) for row in shard.copies_of(image_id)]
    try:
        pixels_HW3 = reread_copy(copies, image_id).pixels
    except ImageError as error:
        name = copies[0][0].rpartition("/")[2]
        report.left_out.append((name, str(error)))
        report.gone.add(image_id)
        return None
    made_of_it = RepairReport()
    for remedy in menders:
        for mender in menders.values():
            parents = [
                row
                for row in asked[remedy]
                if row["replaced_by"] is None and _mender_of(row, remedy, menders) is mender
            ]
            if not parents:
                continue
            began = time.monotonic()
            places, made = mender.mend(
                pixels_HW3, [shard.parent_of(row) for row in parents], dense=remedy == "better prompt"
            )
            children = shard.add_children(parents, places, made, remedy, mender)
            settle_duplicates(shard.masks_of(image_id), {row["mask_id"] for row in children}, shard.of_people)
            held = sum(child["replaced_by"] is None for child in children)
            seconds = time.monotonic() - began
            made_of_it.add(RepairReport({remedy: len(parents)}, {remedy: held}, {remedy: seconds}))
    return made_of_it


def _mender_of(row: Mapping[str, Any], remedy: str, menders: Mapping[str, Mender]) -> Mender:
    """Who mends a mask: a better prompt is for the model that drew it, whose prompt it is that its prompt_gap speaks of."""
    if remedy == "better prompt":
        for mender in menders.values():
            if mender.segmenter.model_id == row["decoded_by"]:
                return mender
    return menders[remedy]
