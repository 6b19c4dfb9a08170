"""Which version of a model is in use: decided by the gate, kept as rows, undone by one more row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine.evaluate.gate import Verdict, compare_models
from engine.learn.data import LabelledImage
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS, entry_of
from engine.models.segmenter import Segmenter
from engine.store import Store
from schemas.errors import ConfigError

CURRENT = "current:"
"""`current:NAME` stands for the version of NAME that is in use."""


@dataclass(frozen=True)
class ModelInUse:
    """A version, and where its weights are; `model` is empty for a registry model that was never replaced."""

    model: str
    source: str


def find_current(store: Store, name: str) -> ModelInUse:
    """The version of a model that is in use: of its promotions the newest, else the registry's own.

    Raises:
        ConfigError: neither is there.
    """
    rows = [row for row in _read_decisions(store, name) if row["action"] != "refused"]
    if rows:
        return ModelInUse(rows[0]["model"], rows[0]["source"])
    if name in MODELS:
        return ModelInUse("", name)
    raise ConfigError(
        f"No version of {name} was promoted in {store.files.label}. Promote one: gapmap models promote WEIGHTS --store …"
    )


@dataclass(frozen=True)
class ModelVersion:
    """A version that a store knows.

    Attributes:
        model: name@version.
        parent: it was fine-tuned from, name@version; None for one that was not.
        created_at: when the store first heard of it, UTC.
        state: `in use` (`current:NAME`), `replaced` after it was, `refused`, or empty: never judged.
    """

    model: str
    parent: str | None
    created_at: datetime
    state: str


def list_versions(store: Store) -> list[ModelVersion]:
    """Every version that a store knows, by name, the oldest first."""
    rows, decisions = store.read(
        lambda snapshot: (
            snapshot.rows("FROM models ORDER BY created_at", {}),
            snapshot.rows("FROM promotions ORDER BY decided_at", {}),
        )
    )
    known = {row["model"]: (row["name"], row["created_at"], row["parent"]) for row in rows}
    # Of a model none of whose versions was promoted the registry's own is in use, the newest that came with gapmap.
    current = {
        row["name"]: row["model"] for row in rows if entry_of(row["name"], row["sha256"], row["source"])
    }
    states: dict[str, str] = {}
    for row in decisions:
        known.setdefault(row["model"], (row["name"], row["decided_at"], None))
        states[row["model"]] = "refused" if row["action"] == "refused" else "replaced"
        if row["action"] != "refused":
            states[row["previous"]] = "replaced"
            current[row["name"]] = row["model"]
    states |= dict.fromkeys(current.values(), "in use")
    ordered = sorted(known.items(), key=lambda item: item[1][:2])
    return [
        ModelVersion(model, parent, created_at, states.get(model, ""))
        for model, (_, created_at, parent) in ordered
    ]


def find_decision(store: Store, name: str, model: str) -> dict[str, Any] | None:
    """The newest row of `promotions` about a version of a model; None where it was never judged."""
    return next((row for row in _read_decisions(store, name) if row["model"] == model), None)


def resolve_model(store: Store, asked: str) -> str:
    """What to load for a model that was asked for: `current:NAME` becomes the weights in use, all else stays."""
    return find_current(store, asked.removeprefix(CURRENT)).source if asked.startswith(CURRENT) else asked


def load_labeller(store: Store, model: str, device: str | None = None) -> Segmenter:
    """The model that made masks of a store, from where its weights were.

    Args:
        model: name@version.

    Raises:
        ConfigError: the store does not know it, or other weights are there now.
    """
    rows = store.read(lambda snapshot: snapshot.rows("FROM models WHERE model = $model", {"model": model}))
    if not rows:
        raise ConfigError(f"{store.files.label} does not say where the weights of {model} are.")
    name, source = rows[0]["name"], rows[0]["source"]
    own = name in MODELS and source in (MODELS[name].url, f"weights/{MODELS[name].path.name}")
    segmenter = load_segmenter(name if own else source, device=device)
    if segmenter.model_id != model:
        raise ConfigError(
            f"The weights at {source} are those of {segmenter.model_id} now, not of {model}, which labelled. Label the pool again."
        )
    return segmenter


def promote_model(
    store: Store,
    new: Segmenter,
    present: Segmenter,
    sets: Mapping[str, Sequence[LabelledImage]],
    *,
    name: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verdict:
    """Judge a version against the one in use; the verdict is recorded, and where it passes it is in use from then on.

    Runs that have begun keep the model they began with.

    Args:
        store: keeps the decisions.
        new, present: the version, and the one in use.
        sets: human masks that neither learnt from.
        name: what the model is called, whatever its version.
        progress: called with (which model, images done, images in all).

    Raises:
        ConfigError: it is in use already.
    """
    if new.model_id == present.model_id:
        raise ConfigError(f"{new.model_id} is in use already.")
    verdict = compare_models(new, present, sets, progress)
    data = {name: len(images) for name, images in sets.items()}
    _record(
        store,
        name,
        "promoted" if verdict.passed else "refused",
        new,
        present,
        verdict.reason,
        {
            "images": data,
            "differences": verdict.numbers,
        },
    )
    return verdict


def roll_back(store: Store, name: str) -> ModelInUse:
    """Put the version back that was in use before the present one; returns it.

    Raises:
        ConfigError: no version was promoted.
    """
    rows = [row for row in _read_decisions(store, name) if row["action"] != "refused"]
    if not rows:
        raise ConfigError(
            f"No version of {name} was promoted in {store.files.label}: there is nothing to go back from."
        )
    # Going back twice goes two versions back: what restored rows put away does not count.
    stack: list[ModelInUse] = []
    for row in reversed(rows):
        if row["action"] == "restored":
            stack.pop()
        else:
            stack = stack or [ModelInUse(row["previous"], row["previous_source"])]
            stack.append(ModelInUse(row["model"], row["source"]))
    if len(stack) < 2:
        raise ConfigError(f"{rows[0]['model']} is what {name} began as: there is nothing to go back to.")
    present, before = stack[-1], stack[-2]
    store.record_promotion(
        {
            "model": before.model,
            "name": name,
            "action": "restored",
            "source": before.source,
            "previous": present.model,
            "previous_source": present.source,
            "reason": "rolled back",
        }
    )
    return before


def _record(
    store: Store, name: str, action: str, new: Segmenter, present: Segmenter, reason: str, numbers: Any
) -> None:
    store.record_promotion(
        {
            "model": new.model_id,
            "name": name,
            "action": action,
            "source": _address(new),
            "previous": present.model_id,
            "previous_source": _address(present),
            "reason": reason,
            "numbers": json.dumps(numbers),
        }
    )


def _address(segmenter: Segmenter) -> str:
    """What `load_segmenter` takes to load it again."""
    ships = entry_of(segmenter.name, segmenter.sha256, segmenter.source)
    return segmenter.name if ships else segmenter.source


def _read_decisions(store: Store, name: str) -> list[dict[str, Any]]:
    """Decisions about versions of a model, the newest first."""

    def read(snapshot: Any) -> list[dict[str, Any]]:
        found = snapshot.con.sql("FROM promotions WHERE name = $1 ORDER BY decided_at DESC", params=[name])
        return found.to_arrow_table().to_pylist()

    return store.read(read)
