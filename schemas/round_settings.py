"""Settings of a whole round. Checked when made; an error says what to write instead."""

from __future__ import annotations

from pydantic import Field

from schemas.fitting_settings import REFIT_SCENES, REFIT_STEPS
from schemas.settings import (
    AcquisitionSettings,
    FinetuneSettings,
    GenerateSettings,
    TriageSettings,
    _Settings,
)


class RoundSettings(_Settings):
    """How each step of a round works; all of it has defaults."""

    generate: GenerateSettings = Field(GenerateSettings(), description="automatic masks")
    triage: TriageSettings = Field(TriageSettings(), description="costs that triage begins with")
    acquisition: AcquisitionSettings = Field(
        AcquisitionSettings(), description="which masks people are asked about"
    )
    finetune: FinetuneSettings = Field(FinetuneSettings(), description="fine-tuning")
    refiner_steps: int = Field(REFIT_STEPS, ge=1, description="updates of a new version's refiner")
    refit_scenes: int = Field(
        REFIT_SCENES,
        ge=0,
        description="procedural scenes that heads and refiner are fitted to beside the labels",
    )
    judged_images: int | None = Field(
        None, ge=1, description="images of a set that the gate looks at, at most; null = all"
    )
    shard_size: int = Field(64, ge=1, le=4096, description="images committed together")
    batch_size: int = Field(4, ge=1, le=256, description="images encoded together")
