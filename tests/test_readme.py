"""Every command of the README, and the Python of all pages, run in their order on a small pool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coco_folder import write_coco

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_readme_run(
    prefect_server: dict[str, str], small_pool: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".venv").symlink_to(Path(sys.prefix))
    (home / "photos").mkdir()
    shutil.copyfile(small_pool / "03.png", home / "photos" / "one.png")
    shutil.copyfile(small_pool / "broken.png", home / "photos" / "broken.png")
    write_coco(home / "labelled", range(930_000, 930_012))
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=home, env=prefect_server, capture_output=True, text=True, timeout=2400,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "truncated" in result.stdout, "the query for errors shows the broken file"
    assert (home / "sheet.png").stat().st_size > 1000
    assert (home / "masks.json").is_file()
    assert "sam2.1-large" in result.stdout
    pages = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]
    for code in re.findall(r"```python\n(.*?)```", "\n".join(pages), re.S):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=home,
            env=prefect_server,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_demo_is_a_whole_round_and_ends_with_its_report(tmp_path: Path) -> None:
    """Also where a Prefect server is set that is down: the demo brings its own."""
    down = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.demo"]
    result = subprocess.run(command, cwd=tmp_path, env=down, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    ten = result.stdout.partition("The ten most uncertain masks\n")[2].splitlines()[2:12]
    scores = [float(line.split()[0]) for line in ten]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert "1 unusable" in result.stdout, "the broken file of the pool is told"
    for step in ("triage", "push", "pull", "finetune", "promote", "rescore"):
        assert f"\n  {step} " in result.stdout, step
    assert (tmp_path / "gapmap-demo" / "contact-sheet.png").stat().st_size > 10_000
    page = (tmp_path / "gapmap-demo" / "report.html").read_text()
    assert "people" in page
    assert "ERROR" not in result.stderr


def test_the_readme_asks_for_masks_that_hold() -> None:
    asked = [line for line in README.splitlines() if "FROM masks" in line]
    assert len(asked) >= 4
    assert [line for line in asked if "replaced_by IS NULL" not in line] == []


def test_every_page_and_target_the_readme_names_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"\bmake ([a-z-]+)", README):
        assert re.search(rf"^{name}:", makefile, re.M), name
