"""Everything that makes a pool's rows from pixels: a model with its settings, its heads and its refiner."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.generate.defaults import complete_settings
from engine.generate.generator import generate_masks
from engine.generate.tables import embedding_table, map_table, mask_table
from engine.models.segmenter import Segmenter
from engine.uncertainty.heads import HeadSet
from engine.uncertainty.maps import Refiner
from schemas.errors import ConfigError
from schemas.settings import GenerateSettings


class MaskMaker:
    """One model with all that decides its masks, scores and maps.

    Args:
        segmenter: the model.
        generate: which masks are kept; thresholds not set explicitly are the model's own.
        heads: that score the masks; None for none.
        refiner: that draws their uncertainty maps; None for none.

    Attributes:
        model_id: `name@version` of the model.
        settings: canonical JSON of everything besides the model that decides the rows.

    Raises:
        ConfigError: the heads were fitted to another model.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        generate: GenerateSettings,
        heads: HeadSet | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        if heads:
            heads.check_model(segmenter.model_id)
        self.segmenter = segmenter
        self.model_id = segmenter.model_id
        self._generate = complete_settings(generate, segmenter)
        self._heads, self._refiner = heads, refiner
        # Other heads make other scores and other refiners other maps: with new ones, images are labelled anew.
        # What was labelled before there were embeddings counts as labelled otherwise, so that it gets them, too.
        settings = {**json.loads(self._generate.canonical()), "embeddings": "mean"}
        if heads:
            settings["heads"] = heads.version
        if refiner:
            settings["maps"] = refiner.version or refiner.source
            settings["map"] = "doubt"  # what is kept; maps of another kind are made anew with it
        self.settings = json.dumps(settings, sort_keys=True)

    def make(self, images: Sequence[tuple[str, np.ndarray]]) -> list[dict[str, pa.Table]]:
        """Rows of each image by table: `masks`, `embeddings`, and `maps` where there is a refiner.

        Args:
            images: image_id and uint8 HW3 RGB of each; embedded together.

        Raises:
            ConfigError: the device has too little memory.
        """
        import torch

        if not images:
            return []
        try:
            made = generate_masks(
                self.segmenter,
                [pixels for _, pixels in images],
                self._generate,
                scorer=self._heads,
                mapper=self._refiner,
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The device ran out of memory with {len(images)} images at once. Use a smaller --batch-size, "
                "a smaller model, or --device cpu."
            ) from error
        heads = self._heads.version if self._heads else None
        source = self._refiner.source if self._refiner else None
        rows = []
        for (image_id, _), masks in zip(images, made, strict=True):
            tables = {"masks": mask_table(masks, image_id, self.model_id, heads=heads, map_source=source)}
            tables["embeddings"] = embedding_table(masks, image_id, self.model_id)
            if source:
                tables["maps"] = map_table(masks, image_id, self.model_id, source)
            rows.append(tables)
        return rows
