"""An annotator who knows the truth: for demonstrations, tests and simulations, never for labels that count.

Shown a mask, they look for the object that it is of, and draw that; where there is none they say so. How exactly they draw can
be set. What they answer is Label Studio's JSON, so it goes through the same doors as a person's answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from engine.review.brush import decode_brush, encode_brush
from engine.review.label_studio_json import IMAGE, VERDICT

_SAME_OBJECT = 0.25  # IoU from which a mask is taken for one of an object
_RIGHT = 0.9  # and from which nobody would touch it
_LOOK_S, _FIX_S = 2.5, 12.0


class SimulatedAnnotator:
    """One annotator.

    Args:
        truth: for each image_id the masks of its objects, bool HW; images that are not in it are skipped.
        noise: how far from the true edge they draw, pixels (a standard deviation over answers).
        seed: of the noise.
    """

    def __init__(
        self, truth: Mapping[str, Sequence[np.ndarray]], *, noise: float = 0.0, seed: int = 0
    ) -> None:
        self._truth, self._noise = truth, noise
        self._rng = np.random.default_rng(seed)

    def answer(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """An annotation of a task: `result`, `lead_time` (seconds that a person may take) and `was_cancelled`.

        Args:
            task: of Label Studio, with its first prediction.
        """
        objects = self._truth.get(task["data"]["image_id"])
        if objects is None:
            return {"result": [], "lead_time": 1.0, "was_cancelled": True}
        result: list[dict[str, Any]] = []
        seconds = 0.0
        for region in task["predictions"][0]["result"]:
            answered, taken = self._answer_region(region, objects)
            result += answered
            seconds += taken
        return {"result": result, "lead_time": round(seconds, 1), "was_cancelled": False}

    def _answer_region(
        self, region: dict[str, Any], objects: Sequence[np.ndarray]
    ) -> tuple[list[dict[str, Any]], float]:
        size = region["original_height"], region["original_width"]
        shown_HW = decode_brush(region["value"]["rle"], size) >= 128
        ious = [float((of & shown_HW).sum() / max((of | shown_HW).sum(), 1)) for of in objects]
        best = int(np.argmax(ious)) if ious else -1
        if best < 0 or ious[best] < _SAME_OBJECT:
            return [region, _choose(region, "no object")], _LOOK_S
        if ious[best] >= _RIGHT:
            return [region], _LOOK_S
        drawn = {**region["value"], "rle": encode_brush(self._draw(objects[best]))}
        return [{**region, "value": drawn}], _LOOK_S + _FIX_S * (1 - ious[best]) + _LOOK_S

    def _draw(self, mask_HW: np.ndarray) -> np.ndarray:
        steps = round(float(self._rng.normal(0, self._noise)))
        if not steps:
            return mask_HW
        change = cv2.dilate if steps > 0 else cv2.erode
        drawn_HW = change(mask_HW.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=abs(steps)).astype(
            bool
        )
        return drawn_HW if drawn_HW.any() else mask_HW


def _choose(region: Mapping[str, Any], verdict: str) -> dict[str, Any]:
    about = {key: region[key] for key in ("id", "original_width", "original_height", "image_rotation")}
    return {
        **about,
        "from_name": VERDICT,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [verdict]},
    }
