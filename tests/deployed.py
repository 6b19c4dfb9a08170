"""The repository's deployments on a real Prefect server: how they are made, worked on, and run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def prefect(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def deploy_all(server: dict[str, str], **places: str) -> None:
    """`prefect deploy --all` with GAPMAP_POOL and the like, in a work pool `local` that is made where it is not there."""
    if prefect(server, "work-pool", "inspect", "local").returncode:
        pool = prefect(server, "work-pool", "create", "local", "--type", "process")
        assert pool.returncode == 0, pool.stderr
    deployed = prefect({**server, **places}, "deploy", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr


@contextmanager
def running_worker(server: dict[str, str], folder: Path, **variables: str) -> Iterator[Path]:
    """A worker started in a folder, with more environment variables; its log."""
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"],
            cwd=folder, env={**server, "PREFECT_WORKER_QUERY_SECONDS": "1", **variables}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield folder / "worker.log"
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:  # a worker on a busy machine may wait for its own polls
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
