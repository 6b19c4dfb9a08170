"""`gapmap doctor` on this machine, and on one whose torch and torchvision do not go together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from flows.doctor import _not_newer

ROOT = Path(__file__).parents[1]


def run_doctor(
    *arguments: str, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    places = [str(path)] if path else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, str(ROOT)]), **variables}
    command = [sys.executable, "-m", "flows.cli", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
def test_a_machine_that_is_fine() -> None:
    result = run_doctor()
    assert result.returncode == 0, result.stdout
    assert "ok   torch + torchvision" in result.stdout
    assert "bad" not in result.stdout
    assert "bad" not in run_doctor("--quiet").stdout


@pytest.mark.slow
def test_a_copy_that_was_installed_without_its_checkout_is_told(tmp_path: Path) -> None:
    """As pip lays it out: the packages alone, somewhere else."""
    for floor in ("flows", "tasks", "engine", "schemas"):
        shutil.copytree(ROOT / floor, tmp_path / floor, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "flows.cli", "doctor", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 1, ran.stderr
    assert f"checkout: {tmp_path} has no weights, weights/kept-out.json, label-studio.lock" in ran.stdout
    assert "make install" in ran.stdout


@pytest.mark.slow
def test_a_torchvision_of_another_build_is_recognised(tmp_path: Path) -> None:
    """torchvision registers fakes for its operators at import; without its binary, torch answers exactly this."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n@torch.library.register_fake('torchvision::nms')\ndef nms(boxes, scores, threshold): ...\n"
    )
    result = run_doctor("--quiet", path=tmp_path)
    assert result.returncode == 1
    assert "operator torchvision::nms does not exist" in result.stdout
    assert "uv pip install --reinstall -r requirements.lock" in result.stdout


@pytest.mark.slow
def test_a_prefect_server_that_is_down() -> None:
    result = run_doctor("--quiet", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert result.returncode == 1
    assert "prefect server: no answer" in result.stdout


@pytest.mark.parametrize(("version", "fine"), [("2.0.51", True), ("2.1b1", False), ("2.1.0rc2", False)])
def test_a_version_before_its_release_is_read_as_one(
    version: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert _not_newer("sqlalchemy", (2, 1), "schedules never fire").fine is fine
