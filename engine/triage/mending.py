"""Carry out what triage decided a machine can mend, a shard of images at a time.

An image whose masks are mended is committed anew, whole or not at all: its rows as they were, the new ones beside them, and who
holds instead of whom. So a run that was killed has done nothing to the images it had in hand, and goes on with them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.generate.records import ImageMasks
from engine.generate.tables import map_table, mask_table
from engine.masks.map_crop import MapCrop
from engine.masks.rle import mask_iou
from engine.pool import reread_image
from engine.triage.duplicates import settle_duplicates
from engine.triage.repair import SAME_OBJECT, Mender, Parent
from schemas.errors import ImageError
from schemas.tables import IMAGES, TABLES

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

_PENDING = """
    SELECT DISTINCT d.image_id FROM decisions d
    JOIN (SELECT mask_id, image_id FROM masks WHERE model = $model AND replaced_by IS NULL) m USING (mask_id, image_id)
    WHERE d.model = $model AND list_contains($remedies, d.decision)
      AND NOT EXISTS (FROM masks c WHERE c.model = $model AND c.parent_mask_id = d.mask_id AND c.repair = d.decision)
    ORDER BY d.image_id
"""
_DECIDED = """
    SELECT mask_id, decision FROM decisions
    WHERE model = $model AND list_contains($images, image_id) AND list_contains($remedies, decision)
"""
_ANSWERED = (
    "SELECT DISTINCT mask_id FROM labels WHERE list_contains($images, image_id) AND mask_id IS NOT NULL"
)


@dataclass
class RepairReport:
    """What mending came to, by remedy: masks tried, those that hold instead of their parents, and seconds of the machine.

    `left_out` names images that could not be opened, and why.
    """

    tried: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

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


def find_pending(store: Store, model: str, remedies: Sequence[str]) -> list[str]:
    """Images (image_id) with masks that were decided to be mended and have not been.

    Args:
        model: whose masks, name@version.
        remedies: those that can be had, of `engine.triage.decisions.REMEDIES`.
    """
    parameters = {"model": model, "remedies": list(remedies)}
    return [row["image_id"] for row in store.read(lambda snapshot: snapshot.rows(_PENDING, parameters))]


def mend_images(
    store: Store, model: str, image_ids: Sequence[str], menders: Mapping[str, Mender]
) -> RepairReport:
    """Mend what was decided of these images, and commit them.

    Args:
        store: holds their masks.
        model: whose masks, name@version.
        image_ids: some of what `find_pending` gave.
        menders: the model that carries out each remedy.
    """
    shard = store.read(lambda snapshot: _Shard(snapshot, model, image_ids, list(menders)))
    report = RepairReport()
    done = [image_id for image_id in image_ids if _mend_image(shard, image_id, menders, report)]
    if done:
        images, tables = shard.tables(done)
        store.commit_shard(model, images, tables)
    return report


class _Shard:
    """All rows of some images, as they are."""

    def __init__(
        self, snapshot: Snapshot, model: str, image_ids: Sequence[str], remedies: Sequence[str]
    ) -> None:
        asked = {"model": model, "images": list(image_ids)}
        self.model = model
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for table in ("images", "masks", "maps", "embeddings"):
            sql = f"FROM {table} WHERE model = $model AND list_contains($images, image_id)"
            self.rows[table] = snapshot.rows(sql, asked)
        decided = snapshot.rows(_DECIDED, {**asked, "remedies": list(remedies)})
        self.decision = {row["mask_id"]: row["decision"] for row in decided}
        answered = snapshot.rows(_ANSWERED, {"images": list(image_ids)})
        self.answered = {row["mask_id"] for row in answered}
        self.maps = {row["mask_id"]: row for row in self.rows["maps"]}

    def of(self, image_id: str) -> list[dict[str, Any]]:
        return [row for row in self.rows["masks"] if row["image_id"] == image_id]

    def tables(self, image_ids: Sequence[str]) -> tuple[pa.Table, dict[str, pa.Table]]:
        """The rows of these images as a commit takes them."""
        wanted = set(image_ids)
        counts: dict[str, int] = {}
        for row in self.rows["masks"]:
            counts[row["image_id"]] = counts.get(row["image_id"], 0) + 1
        images = [
            {**row, "n_masks": counts.get(row["image_id"], 0), "attempt": None}
            for row in self.rows["images"]
            if row["image_id"] in wanted
        ]
        plain = [field for field in IMAGES if field.name not in ("model", "committed_at")]
        schema = pa.schema([field.with_nullable(True) for field in plain])
        tables = {}
        for name in ("masks", "maps", "embeddings"):
            rows = [row for row in self.rows[name] if row["image_id"] in wanted]
            if rows:
                fields = [field for field in TABLES[name] if field.name not in ("model", "attempt")]
                tables[name] = pa.Table.from_pylist(rows, pa.schema(fields))
        return pa.Table.from_pylist(images, schema), tables


def _mend_image(shard: _Shard, image_id: str, menders: Mapping[str, Mender], report: RepairReport) -> bool:
    """Add an image's mended masks to the shard; False where the image cannot be opened."""
    source = min(
        (row for row in shard.rows["images"] if row["image_id"] == image_id), key=lambda row: row["uri"]
    )
    rows = shard.of(image_id)
    tried = {(row["parent_mask_id"], row["repair"]) for row in rows}
    try:
        pixels_HW3 = reread_image(source["uri"], source["fingerprint"], image_id).pixels
    except ImageError as error:
        report.left_out.append((source["uri"].rpartition("/")[2], str(error)))
        return False
    for remedy, mender in menders.items():
        asked = [
            row
            for row in rows
            if shard.decision.get(row["mask_id"]) == remedy
            and row["replaced_by"] is None
            and (row["mask_id"], remedy) not in tried
        ]
        if not asked:
            continue
        began = time.monotonic()
        places, made = mender.mend(
            pixels_HW3, [_parent(shard, row) for row in asked], dense=remedy == "better prompt"
        )
        parents = [asked[place] for place in places]
        children = _add_rows(shard, image_id, parents, made, remedy, mender)
        settle_duplicates(shard.of(image_id), {row["mask_id"] for row in children}, shard.answered)
        held = sum(parent["replaced_by"] is not None for parent in parents)
        report.add(RepairReport({remedy: len(asked)}, {remedy: held}, {remedy: time.monotonic() - began}))
    return True


def _parent(shard: _Shard, row: Mapping[str, Any]) -> Parent:
    found = shard.maps.get(row["mask_id"])
    edges = ("x0", "y0", "x1", "y1")
    return Parent(
        mask_id=row["mask_id"],
        point=(row["point_x"], row["point_y"]),
        crop=tuple(row[f"crop_{edge}"] for edge in edges),
        box=tuple(row[edge] for edge in edges),
        rle=row["rle"],
        uncertainty_map=MapCrop.from_row(found) if found else None,
    )


def _add_rows(
    shard: _Shard,
    image_id: str,
    parents: Sequence[dict[str, Any]],
    made: ImageMasks,
    remedy: str,
    mender: Mender,
) -> list[dict[str, Any]]:
    """Rows of what was made, beside their parents; the better of the two holds."""
    source = mender.refiner.source if mender.refiner else None
    by = mender.segmenter.model_id
    children = mask_table(
        made, image_id, shard.model, heads=mender.heads.version, map_source=source
    ).to_pylist()
    maps = map_table(made, image_id, shard.model, source).to_pylist() if source else []
    embeddings = {row["mask_id"]: row for row in shard.rows["embeddings"]}
    for place, (parent, child) in enumerate(zip(parents, children, strict=True)):
        child["mask_id"] = _child_id(parent["mask_id"], remedy, by, child["output_index"])
        child |= {"parent_mask_id": parent["mask_id"], "repair": remedy}
        child["decoded_by"] = by if by != shard.model else None
        overlap = mask_iou([child["rle"]], [parent["rle"]], made.height, made.width)[0, 0]
        if overlap >= SAME_OBJECT and child["predicted_iou"] > parent["predicted_iou"]:
            parent["replaced_by"] = child["mask_id"]
        else:
            child["replaced_by"] = parent["mask_id"]
        if maps:
            maps[place]["mask_id"] = child["mask_id"]
        # What it is of has not changed; the larger model's features would not compare with the others'.
        if parent["mask_id"] in embeddings:
            shard.rows["embeddings"].append({**embeddings[parent["mask_id"]], "mask_id": child["mask_id"]})
    shard.rows["masks"] += children
    shard.rows["maps"] += maps
    return children


def _child_id(parent: str, remedy: str, model: str, output: int) -> str:
    """Identity of a mended mask: the same parent, remedy, model and output give the same."""
    text = "\n".join([parent, remedy, model, str(int(output))])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
