"""What fine-tuning learns from: masks of people, and the model's own with their uncertainty maps, as one kind of record.

Shape suffixes: M masks, h w mask grid, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.learn.answers import is_kept_out
from engine.learn.data import LabelledImage
from engine.learn.embedded import shrink_masks
from engine.learn.image_loaders import FileLoader, PoolLoader
from engine.masks.map_crop import MapCrop
from engine.masks.rle import decode_rle
from engine.models.segmenter import Segmenter
from engine.store.connection import quote_sql
from engine.store.people import ANSWERED, SAID, find_answered
from schemas.errors import ConfigError
from schemas.records import TASKS

if TYPE_CHECKING:
    from engine.store import Store
    from engine.store.snapshot import Snapshot

# A mask of fewer cells of the grid has no shape that could be learnt.
_LEAST_CELLS = 4

# Masks that may teach: those that triage accepts, of whose object people have not said anything.
_MASKS = f"""
    SELECT m.* FROM masks m
    LEFT JOIN (SELECT image_id, mask_id, decision FROM decisions WHERE model = $model) d USING (image_id, mask_id)
    WHERE m.model = $model AND m.uncertainty <= $most_uncertain AND m.replaced_by IS NULL
      AND coalesce(d.decision = 'accept', true) AND m.mask_id NOT IN ({ANSWERED})
      AND m.mask_id NOT IN (SELECT unnest($answered::VARCHAR[]))
"""
_ANSWERED_IMAGES = f"SELECT DISTINCT image_id FROM labels WHERE {SAID}"
# Drawn before any mask is read: those of a whole pool would fill the memory.
_DRAWN = f"""
    WITH own AS (
        SELECT image_id, list(DISTINCT [uri, fingerprint] ORDER BY [uri, fingerprint]) AS copies, list(DISTINCT attempt) AS attempts,
               image_id IN ({_ANSWERED_IMAGES}) AS answered,
               md5(image_id || $seed) AS place
        FROM images WHERE model = $model AND error_kind IS NULL AND image_id NOT IN (SELECT unnest($left_out::VARCHAR[]))
        GROUP BY image_id),
    taught AS (FROM own WHERE image_id IN (SELECT image_id FROM ({_MASKS})) ORDER BY place LIMIT $images),
    held AS (FROM own WHERE NOT answered ORDER BY place LIMIT $images)
    SELECT image_id, copies, attempts, answered FROM (FROM taught UNION FROM held) ORDER BY image_id
"""
# Row groups of other attempts are passed over by their statistics, whatever the size of the store.
_PSEUDO_LABELS = f"""
    SELECT m.image_id, m.rle, m.height, m.width, m.point_x, m.point_y, p.x0, p.y0, p.x1, p.y1, p.rows, p.columns, p.values
    FROM (FROM ({_MASKS}) WHERE attempt IN ({{attempts}}) AND image_id IN (SELECT unnest($drawn::VARCHAR[]))
          QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY uncertainty, mask_id) <= $masks) m
    LEFT JOIN (FROM maps WHERE model = $model AND attempt IN ({{attempts}})) p USING (mask_id, image_id)
    ORDER BY m.image_id, m.mask_id
"""


@dataclass(frozen=True)
class TrainingMask:
    """One mask: COCO run lengths and its task (place in `TASKS`).

    Attributes:
        uncertainty: its map; None for a mask of a person.
        point: x, y (image pixels) of the prompt that it came of; None for a mask of a person.
    """

    counts: str
    size: tuple[int, int]
    task: int
    uncertainty: MapCrop | None = None
    point: tuple[float, float] | None = None

    def decode(self) -> np.ndarray:
        """bool HW."""
        return decode_rle([self.counts], *self.size)[0]


@dataclass(frozen=True)
class TrainingImage:
    """An image with masks, a person's not without; `load` gives uint8 HW3 RGB. Images of one `group` are never split.

    Attributes:
        key: the same image and masks have the same, wherever they lie; other pixels or masks have another.
        human: whether people drew the masks.
        answered: whether people have said something of the image: there, the model's former answers are no longer held to.
    """

    key: str
    group: str
    human: bool
    masks: tuple[TrainingMask, ...]
    load: Callable[[], np.ndarray] = field(repr=False)
    answered: bool = False


@dataclass(frozen=True)
class MaskTargets:
    """Masks of one image on the model's grid: share covered 0..1, certainty 0..1 and task of each."""

    share_Mhw: np.ndarray
    certainty_Mhw: np.ndarray
    task_M: np.ndarray

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return self.share_Mhw.nbytes + self.certainty_Mhw.nbytes


def human_images(images: Iterable[LabelledImage]) -> list[TrainingImage]:
    """Labelled images to learn from; masks without a pixel are left out, and so are images without a mask.

    Raises:
        ConfigError: a file cannot be read.
    """
    made = []
    for image in images:
        masks = []
        for mask in image.masks:
            if mask.area:
                task = TASKS.index(mask.task) if mask.task in TASKS else 0
                masks.append(TrainingMask(str(mask.plain_rle["counts"]), mask.size, task))
        if masks:
            made.append(TrainingImage(image.key, image.group, True, tuple(masks), image.load))
    return made


def pseudo_labelled_images(
    store: Store,
    model: str,
    *,
    labelled: Iterable[LabelledImage] = (),
    most_uncertain: float = 1.0,
    masks: int = 30,
    images: int | None = None,
    seed: int = 0,
) -> list[TrainingImage]:
    """A store's images with a model's own masks and their maps.

    Of masks that triage has decided on, those that it accepts; objects that people have answered for, whichever model's masks they
    were shown, are their word. An image of which no mask is left is there without any, to be answered as before, unless people have
    said something of it. Images whose answers are kept out (`is_kept_out`) are not there.

    Args:
        model: `name@version` that made the masks.
        labelled: images whose files are left out, wherever they lie in the pool: there people's masks teach, or the image is
            kept to judge by. Images of the store itself, which `answered` is told of, need not be given.
        most_uncertain: masks of a higher `uncertainty` are left out.
        masks: of an image, at most; the least uncertain ones.
        images: with masks, and again of which people have said nothing, at most, whatever the pool's size; None for all.
        seed: of the draw of these.

    Raises:
        ConfigError: the store holds no such masks, they have no maps, or a file of `labelled` cannot be read.
    """
    files = {image.load.image_id for image in labelled if isinstance(image.load, FileLoader)}

    def read(snapshot: Snapshot) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
        judged = {
            row["image_id"] for row in snapshot.rows(_ANSWERED_IMAGES, {}) if is_kept_out(row["image_id"])
        }
        answered = sorted(find_answered(snapshot, model))
        asked = {"model": model, "most_uncertain": most_uncertain, "answered": answered}
        draw = {"left_out": sorted(files | judged), "seed": str(seed), "images": images}
        drawn = snapshot.rows(_DRAWN, asked | draw)
        attempts = sorted({attempt for row in drawn for attempt in row["attempts"]})
        sql = _PSEUDO_LABELS.format(attempts=", ".join(map(quote_sql, attempts)) or "NULL")
        ids = [row["image_id"] for row in drawn]
        rows = snapshot.rows(sql, asked | {"drawn": ids, "masks": masks})
        any_row = snapshot.rows("SELECT 1 FROM masks WHERE model = $model LIMIT 1", {"model": model})
        return drawn, rows, bool(any_row)

    drawn, rows, known = store.read(read)
    if not known:
        raise ConfigError(
            f"The store {store.files.label} holds no masks of {model} to learn from. Label a pool with it: gapmap label"
        )
    found: dict[str, list[TrainingMask]] = {}
    for row in rows:
        uncertainty = MapCrop.from_row(row)
        if uncertainty is None:
            raise ConfigError(
                f"Masks of {model} in {store.files.label} have no uncertainty maps: they were labelled with --maps none. "
                "Label the pool again with maps."
            )
        size, point = (row["height"], row["width"]), (row["point_x"], row["point_y"])
        found.setdefault(row["image_id"], []).append(TrainingMask(row["rle"], size, 0, uncertainty, point))
    made = []
    for row in drawn:
        image_id, answered = row["image_id"], row["answered"]
        of = tuple(found.get(image_id, ()))
        if of or not answered:
            load = PoolLoader(image_id, tuple((uri, fingerprint) for uri, fingerprint in row["copies"]))
            made.append(TrainingImage(image_id, image_id, False, of, load, answered))
    return made


def draw_targets(segmenter: Segmenter, image: TrainingImage) -> MaskTargets:
    """An image's masks on the model's grid; those that are too small to be seen there are left out."""
    if not image.masks:
        nothing_Mhw = np.zeros((0, segmenter.grid_size, segmenter.grid_size), np.float16)
        return MaskTargets(nothing_Mhw, nothing_Mhw, np.zeros(0, np.int64))
    shares_Mhw = shrink_masks(segmenter, [mask.decode() for mask in image.masks])
    seen = np.flatnonzero((shares_Mhw > 0.5).sum((1, 2)) >= _LEAST_CELLS)
    certainty_Mhw = np.ones((len(seen), *shares_Mhw.shape[1:]), np.float16)
    for place, index in enumerate(seen.tolist()):
        mask = image.masks[index]
        if mask.uncertainty is not None:
            height, width = mask.size
            rows, columns = segmenter.mask_extent(mask.size)
            side = segmenter.grid_size
            frame = (0.0, 0.0, width * side / columns, height * side / rows)
            certainty_Mhw[place] = 1 - mask.uncertainty.sample(frame, (side, side))
    tasks = np.array([image.masks[i].task for i in seen.tolist()], np.int64)
    return MaskTargets(shares_Mhw[seen].astype(np.float16), certainty_Mhw, tasks)
