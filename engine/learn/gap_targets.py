"""What the heads of a model are fitted to: prompts on labelled objects, and what each fix would gain.

Of each object a few points are drawn. The model is asked with each point, and with it and seven more; the
larger model with the point. IoU are true ones, at the image's full resolution (after UncertainSAM, Kaiser et
al., ICML 2025, section 4; unlike there, no output is chosen by looking at the answer).
Shape suffixes: N prompts, P points, M outputs (3), T masks of an image, H W image, 4 box x0 y0 x1 y1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.generate.enlarge import Enlargement
from engine.learn.automatic_rows import make_automatic_rows
from engine.learn.data import LabelledImage
from engine.learn.point_prompts import DENSE_POINTS, draw_prompts
from engine.masks.entropy import mean_entropy
from engine.masks.overlap import coarsen
from engine.models.segmenter import Segmenter
from engine.uncertainty.features import describe_masks
from schemas.errors import ConfigError
from schemas.records import Decoded, Embedding, MaskEvidence, Prompts, Siblings

_PROMPTS_AT_ONCE = 32
_SIZES_KEPT = 16

Baselines = Callable[..., dict[str, np.ndarray]]
"""`engine.evaluate.monte_carlo.monte_carlo_entropies`, or nothing."""


@dataclass(frozen=True)
class _Answer:
    """What a model made of N prompts: its outputs' scores, and their true IoU with what was meant."""

    decoded: Decoded
    iou_NM: np.ndarray

    @property
    def picked_N(self) -> np.ndarray:
        """True IoU of the output the model itself scores best."""
        best_N = self.decoded.iou_NM.argmax(1).cpu().numpy()
        return self.iou_NM[np.arange(len(best_N)), best_N]


class TargetMaker:
    """Makes the rows of the `tokens` table for one image after another.

    Args:
        segmenter: whose heads are to be fitted.
        larger: the model that uncertain work goes to; without one there is no `iou_larger`.
        points: single-point prompts an object gets: the central one first, then random ones.
        objects: at most so many objects of an image, drawn at random.
        automatic: besides, at most so many prompts of an image whose masks labelling would keep; 0 for none.
        stability_offset: as the generator's `stability_score_offset`, logits.
        seed: of every draw; an image's draws depend on it and on the image's name alone.
        baselines: also the Monte-Carlo entropies of the central prompts.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        larger: Segmenter | None,
        *,
        points: int = 2,
        objects: int = 20,
        automatic: int = 64,
        stability_offset: float = 1.0,
        seed: int = 0,
        baselines: Baselines | None = None,
    ) -> None:
        self._segmenter, self._larger = segmenter, larger
        self._points, self._objects, self._seed = points, objects, seed
        self._automatic = automatic
        self._offset, self._baselines = stability_offset, baselines
        self._enlargements: dict[tuple[str, tuple[int, int]], Enlargement] = {}

    def describe(self) -> dict[str, Any]:
        """All that decides the rows, besides the model and the images."""
        return {
            "larger": self._larger.model_id if self._larger else None,
            "points": self._points,
            "objects": self._objects,
            "automatic": self._automatic,
            "stability_offset": self._offset,
            "seed": self._seed,
            "baselines": self._baselines is not None,
        }

    def make_rows(self, image: LabelledImage) -> list[dict[str, Any]]:
        """Rows of the `tokens` table, but for what names the image: of each point of each object, and of automatic masks."""
        rng = np.random.default_rng([self._seed, *image.name.encode()])
        pixels_HW3 = image.load()
        truths_THW = np.stack([mask.decode() for mask in image.masks])
        if truths_THW.shape[1:] != pixels_HW3.shape[:2]:
            raise ConfigError(
                f"{image.name} is {pixels_HW3.shape[1]} x {pixels_HW3.shape[0]} pixels, but its masks are for "
                f"{truths_THW.shape[2]} x {truths_THW.shape[1]}. Correct the sizes in its COCO file."
            )
        there = [i for i in rng.permutation(len(truths_THW)).tolist() if image.masks[i].area]
        chosen = sorted(there[: self._objects])
        if not chosen:
            return []
        objects = np.repeat(chosen, self._points)
        points_NP2 = np.stack([draw_prompts(truths_THW[i], self._points, rng) for i in chosen]).reshape(
            -1, DENSE_POINTS, 2
        )
        embedding = self._segmenter.embed([pixels_HW3])
        larger = (self._larger, self._larger.embed([pixels_HW3])) if self._larger else None
        rows: list[dict[str, Any]] = []
        for start in range(0, len(objects), _PROMPTS_AT_ONCE):
            part = slice(start, start + _PROMPTS_AT_ONCE)
            rows += self._ask(image, truths_THW, objects[part], points_NP2[part], embedding, larger)
        central = range(0, len(rows), self._points)
        if self._baselines:
            entropies = self._baselines(
                pixels_HW3, points_NP2[:: self._points], self._segmenter, self._larger, seed=self._seed
            )
            for n, place in enumerate(central):
                rows[place] |= {
                    name.lower(): float(values[n])
                    for name, values in entropies.items()
                    if name != "entropy" and np.isfinite(values[n])
                }
        for place, row in enumerate(rows):
            row["prompt"] = "central" if place in central else "random"
        if self._automatic:
            rows += make_automatic_rows(self._segmenter, image, pixels_HW3, self._automatic, self._seed)
        return rows

    def _ask(
        self,
        image: LabelledImage,
        truths_THW: np.ndarray,
        objects_N: np.ndarray,
        points_NP2: np.ndarray,
        embedding: Embedding,
        larger: tuple[Segmenter, Embedding] | None,
    ) -> list[dict[str, Any]]:
        """Rows of N prompts of one image."""
        size = truths_THW.shape[1:]
        meant = [[truths_THW[i]] for i in objects_N]
        under = [list(truths_THW[truths_THW[:, y, x]]) for x, y in points_NP2[:, 0].astype(int)]
        one = self._decode(self._segmenter, embedding, points_NP2[:, :1])
        iou_NM, nearest_NM, evidence = self._compare(self._segmenter, one, size, meant, under)
        features_NX = describe_masks(evidence).reshape(len(objects_N), -1).cpu().numpy()
        dense = self._answer(self._segmenter, embedding, points_NP2, size, meant).picked_N
        large = self._answer(*larger, points_NP2[:, :1], size, meant).picked_N if larger else None
        columns = {
            "iou_token": one.iou_token_NC.half().float().cpu().numpy(),
            "mask_tokens": one.mask_tokens_N4C.half().float().flatten(1).cpu().numpy(),
            "features": features_NX,
            "sam_score": one.iou_NM.cpu().numpy(),
            "entropy": evidence.entropy_N.reshape(-1, 3).cpu().numpy(),
            "iou": iou_NM,
            "iou_nearest": nearest_NM,
            "iou_dense": dense,
        }
        return [
            {
                "image": image.name,
                "group": image.group,
                "task": image.masks[index].task,
                "object": int(index),
                "object_area": image.masks[index].area,
                "point_x": float(points_NP2[n, 0, 0]),
                "point_y": float(points_NP2[n, 0, 1]),
                "iou_larger": None if large is None else float(large[n]),
                **{name: values[n] for name, values in columns.items()},
            }
            for n, index in enumerate(objects_N.tolist())
        ]

    def _answer(
        self,
        segmenter: Segmenter,
        embedding: Embedding,
        points_NP2: np.ndarray,
        size: tuple[int, int],
        meant: Sequence[list[np.ndarray]],
    ) -> _Answer:
        decoded = self._decode(segmenter, embedding, points_NP2)
        return _Answer(decoded, self._compare(segmenter, decoded, size, meant)[0])

    def _decode(self, segmenter: Segmenter, embedding: Embedding, points_NP2: np.ndarray) -> Decoded:
        n, p = points_NP2.shape[:2]
        labels_NP = torch.ones(n, p, dtype=torch.int64)
        prompts = Prompts(torch.zeros(n, dtype=torch.int64), torch.from_numpy(points_NP2), labels_NP)
        return segmenter.decode(embedding, prompts)

    def _compare(
        self,
        segmenter: Segmenter,
        decoded: Decoded,
        size: tuple[int, int],
        meant: Sequence[list[np.ndarray]],
        under: Sequence[list[np.ndarray]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, MaskEvidence]:
        """Best IoU of each output with one of `meant` and with one of `under`, and what it can be scored by."""
        enlargement = self._enlarge(segmenter, size)
        logits_Xhw = decoded.logits_NMhw.flatten(0, 1)
        measures = enlargement.measure(logits_Xhw, segmenter.mask_threshold, self._offset)
        crops = enlargement.draw(logits_Xhw, segmenter.mask_threshold, measures.boxes_N4)
        boxes_X4 = measures.boxes_N4.cpu().numpy()
        found = [
            np.array(
                [
                    max(_iou(crops[x], boxes_X4[x], truth_HW) for truth_HW in truths[x // 3])
                    for x in range(len(crops))
                ]
            ).reshape(-1, 3)
            for truths in (meant, under or meant)
        ]
        (height, width), (rows, columns) = size, segmenter.mask_extent(size)
        cells_4 = torch.tensor([columns / width, rows / height] * 2, device=logits_Xhw.device)
        coarse_N3rc = coarsen(decoded.logits_NMhw, segmenter.mask_threshold, (rows, columns))
        tokens = decoded.iou_token_NC, decoded.mask_tokens_N4C
        every_X = torch.arange(len(logits_Xhw), device=logits_Xhw.device)
        siblings = Siblings(every_X // 3, *tokens, decoded.iou_NM, coarse_N3rc)
        x0, y0, x1, y1 = measures.boxes_N4.unbind(1)
        evidence = MaskEvidence(
            siblings,
            every_X % 3,
            measures.stability_N,
            mean_entropy(logits_Xhw, measures.boxes_N4 * cells_4),
            measures.area_N / (height * width),
            measures.area_N / ((x1 - x0) * (y1 - y0)).clamp(min=1),
        )
        return found[0], found[1], evidence

    def _enlarge(self, segmenter: Segmenter, size: tuple[int, int]) -> Enlargement:
        key = segmenter.model_id, size
        if key not in self._enlargements:
            if len(self._enlargements) >= _SIZES_KEPT:
                self._enlargements.clear()
            self._enlargements[key] = Enlargement(segmenter, size)
        return self._enlargements[key]


def _iou(crop: np.ndarray, box_4: np.ndarray, truth_HW: np.ndarray) -> float:
    x0, y0, x1, y1 = box_4
    shared = int((crop & truth_HW[y0:y1, x0:x1]).sum())
    return shared / max(1, int(crop.sum()) + int(truth_HW.sum()) - shared)
