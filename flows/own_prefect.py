"""Prefect for a command that runs a flow in its own process: quiet, leaving nothing behind, its own troubles told apart."""

from __future__ import annotations

import functools
import os
import subprocess
import traceback
from typing import Any
from unittest.mock import patch


def quiet_prefect() -> None:
    """Settings for a flow in process, where the user has not chosen others: no chatter, no telemetry."""
    for name, value in {
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy machine takes longer than the usual 20
    }.items():
        os.environ.setdefault(name, value)


def tether_server() -> None:
    """Let the temporary server that Prefect starts where none is set end with this process, however that ends.

    Prefect itself ends it at a regular exit only; after kill -9 it would run for ever.
    """
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    class TetheredServer(SubprocessASGIServer):
        _watch: subprocess.Popen[bytes] | None = None

        def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
            self._dismiss()
            # Ctrl-C reaches every process of the terminal, and whoever ends a job ends all of its group. The server is in
            # neither, so that this one still has it to tell that the run ended; a server that is gone is asked again for
            # more than a minute.
            apart = functools.partial(subprocess.Popen, start_new_session=True)
            with patch.object(subprocess, "Popen", apart):
                server = super()._run_uvicorn_command()
            # The pipe closes with this process, and nobody else can have the server's number before that:
            # the server stays this process's child, and at a regular end the watch is dismissed first.
            self._watch = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r dismissed || kill "$1"', "watch", str(server.pid)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            return server

        def stop(self) -> None:
            self._dismiss()
            super().stop()

        def _dismiss(self) -> None:
            if self._watch:
                self._watch.communicate(b"dismissed\n")
                self._watch = None

    TetheredServer()  # the one instance there is, also for Prefect


def is_raised_by_prefect(error: Exception) -> bool:
    """Prefect has no class for all of its errors (a server that does not answer is a RuntimeError)."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return module.partition(".")[0] in ("prefect", "httpx")
