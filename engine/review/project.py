"""The project of a queue on a Label Studio server: found by a line of its description, made, and furnished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.review.connection import Connection
from engine.review.label_studio_json import INSTRUCTION, LABEL_CONFIG, MODEL_VERSION

_AT_ONCE = 100
_MARK = "gapmap:"


def find_project(http: Connection, name: str) -> int | None:
    """Number of the project whose description bears our mark; None where there is none."""
    page = 1
    while found := http.get("/api/projects", {"page": page, "page_size": _AT_ONCE}, missing_is_none=True):
        for project in found.get("results") or []:
            if _MARK + name in (project.get("description") or "").split("\n"):
                return int(project["id"])
        if not found.get("next"):
            return None
        page += 1
    return None


def make_project(http: Connection, name: str, annotators: int) -> int:
    """A new project for a queue, in which tasks are served in the order of their uncertainty; its number."""
    made = http.post(
        "/api/projects",
        {
            "title": name[:50],
            "description": f"{_MARK}{name}\nKeep the line above: gapmap knows the project by it.",
            "label_config": LABEL_CONFIG,
            "expert_instruction": INSTRUCTION,
            "show_instruction": False,
            "sampling": "Uncertainty sampling",
            "show_collab_predictions": True,
            "model_version": MODEL_VERSION,
            "maximum_annotations": annotators,
        },
    )
    return int(made["id"])


def furnish_project(http: Connection, project: int, media: Path, media_url: str) -> None:
    """What a project needs beside its tasks; looked at each time, for the making of it may have been killed."""
    if media_url.startswith("/data/local-files/"):
        media.mkdir(parents=True, exist_ok=True)
        if not http.get("/api/storages/localfiles", {"project": project}):
            folder = {
                "project": project,
                "title": "gapmap",
                "path": str(media),
                "use_blob_urls": True,
            }
            http.post("/api/storages/localfiles", folder)
    if not http.get("/api/dm/views", {"project": project}):
        waiting = [data_filter("filter:tasks:total_annotations", "equal", "Number", 0)]
        view = {
            "title": "Most uncertain first",
            "ordering": ["tasks:predictions_score"],
            "filters": {"conjunction": "and", "items": waiting},
        }
        http.post("/api/dm/views", {"project": project, "data": view})


def data_filter(name: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """One condition of a query of the Data Manager."""
    return {"filter": name, "operator": operator, "type": kind, "value": value}
