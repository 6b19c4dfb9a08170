"""Thresholds that suit a model, for settings in which the user chose none."""

from __future__ import annotations

from engine.models.segmenter import Segmenter
from schemas.settings import GenerateSettings

# (pred_iou_thresh, stability_score_thresh) of the packages' own automatic mask generators.
_OF_PACKAGE = {"segment-anything": (0.88, 0.95), "sam2": (0.8, 0.95)}
# Small models score themselves lower; chosen on training images.
_OF_MODEL = {"sam-nano": (0.4, 0.6), "sam2-mini": (0.4, 0.6)}


def complete_settings(chosen: GenerateSettings, segmenter: Segmenter) -> GenerateSettings:
    """The chosen settings; thresholds that are None become those that suit the model."""
    own = _OF_MODEL.get(segmenter.name, _OF_PACKAGE[segmenter.package])
    names = ("pred_iou_thresh", "stability_score_thresh")
    missing = {name: value for name, value in zip(names, own, strict=True) if getattr(chosen, name) is None}
    return chosen.model_copy(update=missing)
