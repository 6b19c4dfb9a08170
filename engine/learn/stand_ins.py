"""Images of the pool that cannot be opened any more, and others that are learnt from in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from engine.learn.image_loaders import LostImageError, PoolLoader
from engine.learn.training_images import TrainingImage
from schemas.errors import ConfigError

_log = logging.getLogger(__name__)
_TRIES = 20  # images in a row that cannot be opened: then too few are left to go on with


class StandIns:
    """Gives a lesson with another image where the drawn one is lost. Which one is in its place depends on the draw alone, so that
    a run that was killed ends as an undisturbed one.

    Args:
        lost: image_ids that are known not to be there.

    Attributes:
        lost: those, and what was found out since.
    """

    def __init__(self, lost: Iterable[str] = ()) -> None:
        self.lost = set(lost)

    def give(
        self,
        lesson: Callable[[TrainingImage], float],
        image: TrainingImage,
        others: Sequence[TrainingImage],
        draw: Sequence[int],
    ) -> float:
        """What the lesson returns for the image, or for one of the others.

        Args:
            lesson: raises LostImageError where an image is lost, before anything else.
            image: drawn.
            others: that may stand in for it; itself may be among them.
            draw: numbers that no other draw has: they say which one does.

        Raises:
            ConfigError: too many in a row are lost.
        """
        why = ""
        for shown in self._line_up(image, others, draw):
            if not self._is_lost(shown):
                try:
                    return lesson(shown)
                except LostImageError as error:
                    why = f" {error}"
                    self._note(error)
        raise ConfigError(
            f"Too few images of the pool can still be opened to learn from: {len(self.lost)} cannot.{why} Bring them back, "
            "or label the pool where it lies now."
        )

    def leave_out(self, images: Iterable[TrainingImage]) -> list[TrainingImage]:
        """Those that can be opened."""
        return [image for image in images if self._opens(image)]

    def _opens(self, image: TrainingImage) -> bool:
        if isinstance(image.load, PoolLoader) and not self._is_lost(image):
            try:
                image.load()
            except LostImageError as error:
                self._note(error)
        return not self._is_lost(image)

    def _line_up(
        self, image: TrainingImage, others: Sequence[TrainingImage], draw: Sequence[int]
    ) -> Iterator[TrainingImage]:
        yield image
        for place in np.random.default_rng(draw).permutation(len(others))[:_TRIES].tolist():
            yield others[place]

    def _is_lost(self, image: TrainingImage) -> bool:
        return isinstance(image.load, PoolLoader) and image.load.image_id in self.lost

    def _note(self, error: LostImageError) -> None:
        if not self.lost:
            _log.warning("%s Others are learnt from in the place of such images.", error)
        self.lost.add(error.image_id)
