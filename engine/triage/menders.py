"""Which models can mend masks of a model: the larger one that its heads know, and itself."""

from __future__ import annotations

from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from engine.models.segmenter import Segmenter
from engine.triage.repair import Mender
from engine.uncertainty.head_files import find_heads
from engine.uncertainty.refiner_files import find_refiner
from schemas.errors import ConfigError


def find_menders(segmenter: Segmenter, larger: str | None, device: str | None = None) -> dict[str, Mender]:
    """A mender for each remedy that can be had for masks of a model.

    Args:
        segmenter: the model that made the masks.
        larger: the model that uncertain work goes to, as `load_segmenter` takes it; `none` for none, None for the one that the
            heads' model_gap speaks of, where the registry has it.
        device: of the larger model.

    Raises:
        ConfigError: a larger model was asked for that has no heads, so that nobody could say whether it did better.
    """
    heads = find_heads(segmenter)
    menders: dict[str, Mender] = {}
    asked = find_larger(segmenter, larger)
    if asked is not None:
        other = load_segmenter(asked, device=device)
        its = find_heads(other)
        if its is not None and "iou" in its.names:
            menders["larger model"] = Mender(other, its, find_refiner(other))
        elif larger is not None:
            raise ConfigError(
                f"{other.model_id} has no heads that could score what it mends. Fit some (gapmap fit-heads --model …), or go on "
                "without a larger model: --larger none"
            )
    if heads is not None and "iou" in heads.names:
        menders["better prompt"] = Mender(segmenter, heads, find_refiner(segmenter))
    return menders


def find_larger(segmenter: Segmenter, larger: str | None) -> str | None:
    """The model that uncertain work goes to, as `load_segmenter` takes it; None for none. `larger` as in `find_menders`."""
    if larger is not None:
        return None if larger == "none" else larger
    heads = find_heads(segmenter)
    known = heads.larger.partition("@")[0] if heads else ""
    return known if known in MODELS else None
