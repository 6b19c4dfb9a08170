"""The rules of the house, as checks: imports go down, the base stays light, every column is documented."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import nearest_name
from schemas.tables import TABLES

ROOT = Path(__file__).parents[1]
FLOORS = {"schemas": 0, "engine": 1, "tasks": 2, "flows": 3}
ROOMS = (
    "scenes",
    "pool",
    "masks",
    "models",
    "generate",
    "uncertainty",
    "store",
    "triage",
    "review",
    "learn",
    "evaluate",
    "report",
)  # bottom up
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_and_rooms_stay_small(path: Path) -> None:
    floor = FLOORS[path.relative_to(ROOT).parts[0]]
    above = {name for name in imported(path) if FLOORS.get(name, -1) > floor}
    assert not above, f"imports from a floor above: {above}"
    assert floor != 1 or "prefect" not in imported(path), "the engine knows no Prefect"
    assert len(path.read_text().splitlines()) <= 250


def test_no_imports_go_in_circles() -> None:
    """Nor do those inside functions, or for types alone."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        written = {node.module for node in nodes if node.module and not node.level}
        written |= {f"{node.module}.{of.name}" for node in nodes for of in node.names if not node.level}
        graph[name] = written & names.keys()
    assert graph["flows.round"], "imports are found"
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("room", sorted(path.name for path in (ROOT / "engine").iterdir() if path.is_dir()))
def test_a_room_of_the_engine_uses_only_rooms_below(room: str) -> None:
    if room == "__pycache__":
        return
    above = ROOMS[ROOMS.index(room) + 1 :]
    for path in (ROOT / "engine" / room).glob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) engine\.(\w+)", path.read_text(), re.M):
            assert name not in above, f"{path.name} imports engine.{name}"


@pytest.mark.parametrize(
    "module", ["schemas.tables", "schemas.settings", "engine.models.registry", "flows.cli"]
)
def test_importing_the_base_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'duckdb', 'prefect', 'matplotlib', 'cv2') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_column_says_what_it_is() -> None:
    for table, schema in TABLES.items():
        for field in schema:
            assert field.name.islower(), table
            assert len(field.metadata[b"doc"]) > 10, f"{table}.{field.name}"


def test_a_wrong_name_suggests_the_nearest() -> None:
    assert nearest_name("sam-nan", ["sam-nano", "sam2-mini"]).startswith("Did you mean 'sam-nano'?")
    assert "Did you mean" not in nearest_name("zzzz", ["sam-nano"])
