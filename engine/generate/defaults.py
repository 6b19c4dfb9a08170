"""The thresholds each model's authors use, for settings the user did not choose."""

from __future__ import annotations

from engine.models.segmenter import Segmenter
from schemas.settings import GenerateSettings

# Of the packages' own automatic mask generators.
_OF_PACKAGE = {
    "segment-anything": {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95},
    "sam2": {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.95},
}
# Small models score themselves lower; these were chosen on training images.
_OF_MODEL = {
    "sam-nano": {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.5},
    "sam2-mini": {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.5},
}


def complete_settings(chosen: GenerateSettings, segmenter: Segmenter) -> GenerateSettings:
    """The chosen settings; thresholds that were not set explicitly are the model's own."""
    own = _OF_MODEL.get(segmenter.name, _OF_PACKAGE[segmenter.package])
    return GenerateSettings(**{**own, **{name: getattr(chosen, name) for name in chosen.model_fields_set}})
