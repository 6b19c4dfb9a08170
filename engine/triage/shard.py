"""All rows of some images as a commit takes them again, with the masks that were made to mend others beside those."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from engine.generate.records import MAP_STATISTICS, SCORES, ImageMasks
from engine.generate.tables import map_table, mask_table
from engine.masks.map_crop import MapCrop
from engine.masks.rle import encode_masks, mask_iou
from engine.triage.repair import LEAST_PARENT_IOU, Mender, Parent
from schemas.tables import IMAGES, TABLES

_A_MOMENT = timedelta(microseconds=1)


class MaskShard:
    """Rows of some images and one model.

    Args:
        model: name@version.
        rows: of `images`, `masks`, `maps` and `embeddings`, all that is seen of these images.
        decisions: what is to be carried out, by mask_id.
        of_people: mask_ids that people have answered for, or are being asked about.
    """

    def __init__(
        self,
        model: str,
        rows: Mapping[str, list[dict[str, Any]]],
        decisions: Mapping[str, str],
        of_people: frozenset[str],
    ) -> None:
        self.of_people = of_people
        self._model = model
        self._images = rows["images"]
        self._decision = decisions
        self._maps = {row["mask_id"]: row for row in rows["maps"]}
        self._embeddings = {row["mask_id"]: row for row in rows["embeddings"]}
        self._of: dict[str, list[dict[str, Any]]] = {}
        for row in rows["masks"]:
            self._of.setdefault(row["image_id"], []).append(row)
        self._tried = {(row["parent_mask_id"], row["repair"]) for row in rows["masks"]}

    def masks_of(self, image_id: str) -> list[dict[str, Any]]:
        """Rows of an image's masks."""
        return self._of.get(image_id, [])

    def copies_of(self, image_id: str) -> list[dict[str, Any]]:
        """Rows of `images` that bear the image, by uri."""
        return [row for row in self._images if row["image_id"] == image_id]

    def wants(self, row: Mapping[str, Any], remedy: str) -> bool:
        """Whether a mask is to be mended so."""
        return (
            self._decision.get(row["mask_id"]) == remedy
            and row["replaced_by"] is None
            and row["mask_id"] not in self.of_people
            and (row["mask_id"], remedy) not in self._tried
        )

    def parent_of(self, row: Mapping[str, Any]) -> Parent:
        """A mask as a mender takes it."""
        found = self._maps.get(row["mask_id"])
        edges = ("x0", "y0", "x1", "y1")
        return Parent(
            point=(row["point_x"], row["point_y"]),
            crop=tuple(row[f"crop_{edge}"] for edge in edges),
            box=tuple(row[edge] for edge in edges),
            rle=row["rle"],
            uncertainty_map=MapCrop.from_row(found) if found else None,
        )

    def add_children(
        self,
        parents: Sequence[dict[str, Any]],
        places: Sequence[int],
        made: ImageMasks,
        remedy: str,
        mender: Mender,
    ) -> list[dict[str, Any]]:
        """Add a row for each of the parents, which are of one image; returns them.

        The better of parent and child holds. Where nothing came of a parent its child has no pixel, so that the remedy
        is known to be spent.

        Args:
            parents: rows that were mended.
            places: of each mask that was made, which parent it is of.
            made: the masks.
            remedy: how.
            mender: by whom.
        """
        source = mender.refiner.source if mender.refiner else None
        by, image_id = mender.segmenter.model_id, parents[0]["image_id"]
        drawn = mask_table(made, image_id, self._model, heads=mender.heads.version, map_source=source)
        maps = map_table(made, image_id, self._model, source).to_pylist() if source else []
        found = dict(zip(places, drawn.to_pylist(), strict=True))
        map_of = dict(zip(places, maps, strict=True)) if source else {}
        children = []
        for place, parent in enumerate(parents):
            child = found.get(place) or _empty_child(parent, mender)
            output = child["output_index"] if place in found else -1
            child["mask_id"] = _child_id(parent["mask_id"], remedy, by, output)
            child |= {"parent_mask_id": parent["mask_id"], "repair": remedy}
            child["decoded_by"] = by if by != self._model else None
            if place in found and _does_better(child, parent):
                parent["replaced_by"] = child["mask_id"]
            else:
                child["replaced_by"] = parent["mask_id"]
            if place in map_of:
                self._maps[child["mask_id"]] = {**map_of[place], "mask_id": child["mask_id"]}
            # What it is of has not changed; the larger model's features would not compare with the others'.
            if place in found and parent["mask_id"] in self._embeddings:
                copied = {**self._embeddings[parent["mask_id"]], "mask_id": child["mask_id"]}
                self._embeddings[child["mask_id"]] = copied
            self._tried.add((parent["mask_id"], remedy))
            children.append(child)
        self._of[image_id] += children
        return children

    def tables(self, image_ids: Sequence[str]) -> tuple[pa.Table, dict[str, pa.Table]]:
        """The rows of these images as a commit takes them: committed a moment after those that they were made of, so that
        whoever labelled an image meanwhile has the last word."""
        wanted = set(image_ids)
        masks = [row for image_id in image_ids for row in self._of[image_id]]
        # A copy that was labelled with other settings says nothing of these masks.
        attempt = {image_id: self._of[image_id][0]["attempt"] for image_id in image_ids}
        images = [
            {
                **row,
                "n_masks": len(self._of[row["image_id"]]),
                "attempt": None,
                "committed_at": row["committed_at"] + _A_MOMENT,
            }
            for row in self._images
            if row["image_id"] in wanted and row["attempt"] == attempt[row["image_id"]]
        ]
        plain = [field for field in IMAGES if field.name != "model"]
        schema = pa.schema([field.with_nullable(True) for field in plain])
        tables = {}
        for name, of in (
            ("masks", masks),
            ("maps", self._maps.values()),
            ("embeddings", self._embeddings.values()),
        ):
            rows = [row for row in of if row["image_id"] in wanted]
            if rows:
                fields = [field for field in TABLES[name] if field.name not in ("model", "attempt")]
                tables[name] = pa.Table.from_pylist(rows, pa.schema(fields))
        return pa.Table.from_pylist(images, schema), tables


def _does_better(child: Mapping[str, Any], parent: Mapping[str, Any]) -> bool:
    """Whether a child is of its parent's object, and better."""
    overlap = mask_iou([child["rle"]], [parent["rle"]], parent["height"], parent["width"])[0, 0]
    return bool(overlap >= LEAST_PARENT_IOU and child["predicted_iou"] > parent["predicted_iou"])


def _empty_child(parent: Mapping[str, Any], mender: Mender) -> dict[str, Any]:
    """The row of a mask without a pixel."""
    [nothing] = encode_masks(np.zeros((1, parent["height"], parent["width"]), bool))
    unknown = dict.fromkeys((*SCORES, *MAP_STATISTICS, "map_source"))
    zero = dict.fromkeys(("x0", "y0", "x1", "y1", "area", "sam_score", "stability", "entropy"), 0)
    says = {"predicted_iou": 0.0, "uncertainty": 1.0, "uncertainty_source": "predicted_iou"}
    return {**parent, **unknown, **zero, **says, "rle": nothing, "heads": mender.heads.version}


def _child_id(parent: str, remedy: str, model: str, output: int) -> str:
    """Identity of a mended mask: the same parent, remedy, model and output give the same."""
    text = "\n".join([parent, remedy, model, str(int(output))])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
