"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from label_studio import LabelStudio, running_label_studio

REPO_ROOT = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many runs as cores, each on one: also the commands that they start. (Before torch is there.)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, a file stays together, as do all that ask the Label Studio server.

    Files of long tests come first, so that none is begun when the others are done.
    """
    asks = {item.path for item in items if "label_studio" in getattr(item, "fixturenames", ())}
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in asks, item.path not in long))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("label studio" if item.path in asks else item.path.name))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared data sets, beside the checkout; skips where there is none."""
    path = REPO_ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"the shared data sets are not beside the checkout (looked for {path})")
    return path


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real Prefect server of its own on loopback; yields the environment that leads to it."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(REPO_ROOT),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=5):
                    break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"Prefect's server did not start:\n{(home / 'server.log').read_text()}"
                    ) from None
                time.sleep(0.5)
        yield environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def small_pool(tmp_path: Path) -> Path:
    """Twelve small pictures, two of them of equal content, and one file that is broken."""
    from PIL import Image

    from engine.scenes import make_scene

    folder = tmp_path / "pool"
    folder.mkdir()
    for seed in range(11):
        Image.fromarray(make_scene(seed, 96).image).save(folder / f"{seed:02}.png")
    (folder / "copy.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "broken.png").write_bytes((folder / "01.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """A real Label Studio server of its own on loopback, one for all tests: each makes its own project."""
    with running_label_studio(tmp_path_factory.mktemp("label-studio")) as server:
        yield server
