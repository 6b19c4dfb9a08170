"""Whose masks are meant where a store holds those of several models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from .store import Store

_MODELS = "SELECT model FROM images WHERE n_masks > 0 GROUP BY model ORDER BY max(committed_at) DESC"


def newest_model(store: Store, asked: str | None = None) -> str:
    """The model that labelled last, name@version.

    Args:
        asked: name@version of one that labelled, or its name alone.

    Raises:
        ConfigError: the store has no masks, or none of the model that was asked for.
    """
    models = [str(row["model"]) for row in store.query(_MODELS).to_pylist()]
    if not models:
        raise ConfigError(
            f"The store {store.files.label} holds no masks. Make some: gapmap label POOL --store …"
        )
    for model in models:
        if asked in (None, model, model.partition("@")[0]):
            return model
    raise ConfigError(f"No masks of {asked!r} are in {store.files.label}. {nearest_name(str(asked), models)}")
