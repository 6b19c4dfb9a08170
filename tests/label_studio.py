"""A real Label Studio server for tests, and how a person and a program ask it."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from engine.review.server import ReviewServer
from engine.review.server_setup import read_secrets

ROOT = Path(__file__).resolve().parents[1]
# Installed once for all test runs of this checkout.
ENVIRONMENT = ROOT / ".review" / "environment"


@dataclass(frozen=True)
class LabelStudio:
    """A server that runs.

    Attributes:
        url: address without a slash at the end.
        token: legacy API token of the one user.
        media: folder whose files it serves; a storage's path must be strictly below it.
        email: the user's, as is password.
        folder: the server's, as `read_server` takes it.
    """

    url: str
    token: str
    media: Path
    email: str
    password: str
    folder: Path

    @cached_property
    def personal_token(self) -> str:
        """The user's personal access token: Label Studio makes only one."""
        return str(self.ask("/api/token/", {})["token"])

    def ask(
        self, path: str, data: Any = None, method: str | None = None, authorization: str | None = ""
    ) -> Any:
        """JSON that the API answers; HTTPError for a status from 400 on. Authorization: None for none, "" for the token."""
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if authorization is not None:
            headers["Authorization"] = authorization or f"Token {self.token}"
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with _opener().open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")


class Visitor:
    """A person's browser: keeps cookies, fills forms. Not logged in at first."""

    def __init__(self, server: LabelStudio) -> None:
        self._server = server
        self._opener = _opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def log_in(self) -> None:
        status, url, _ = self.send("/user/login/", email=self._server.email, password=self._server.password)
        assert status == 200
        assert not url.endswith("/login/"), "the login page was shown again"

    def see(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page."""
        status, _, body = self._open(urllib.request.Request(self._server.url + path))
        return status, body

    def send(self, path: str, **fields: str) -> tuple[int, str, bytes]:
        """Fill the form of a page; status, address and body of what comes after it."""
        _, page = self.see(path)
        mark = re.search(rb'csrfmiddlewaretoken" value="([^"]+)"', page)
        fields["csrfmiddlewaretoken"] = mark[1].decode() if mark else ""
        url = self._server.url + path
        return self._open(
            urllib.request.Request(url, urllib.parse.urlencode(fields).encode(), {"Referer": url})
        )

    def _open(self, request: urllib.request.Request) -> tuple[int, str, bytes]:
        try:
            with self._opener.open(request, timeout=60) as answer:
                return answer.status, answer.url, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.url, error.read()


@contextmanager
def running_label_studio(folder: Path) -> Iterator[LabelStudio]:
    """A server in a folder, on a free port, whose webhooks may go to this machine; stopped in the end."""
    server = ReviewServer(
        folder, port=free_port(), environment=ENVIRONMENT, loopback_webhooks=True, wait_s=600
    )
    try:
        address = server.start()
        known = read_secrets(server.folder)
        yield LabelStudio(
            address.url, address.token, server.media, known["email"], known["password"], server.folder
        )
    finally:
        server.stop()


def _heed_ctrl_c() -> None:
    """What was started in the background of a shell ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class ServerCommand:
    """`gapmap review-server` in a folder, as a person runs it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "flows.cli", "review-server", "--folder", str(folder)]
        # What must not reach the server: another Python's packages, and settings that it takes from bare names.
        self.leaks = {
            "PYTHONPATH": str(ROOT),
            "VIRTUAL_ENV": "/nowhere",
            "DEBUG": "true",
            "HOST": "http://nowhere",
        }
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], cwd=ROOT, env={**os.environ, **self.leaks},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_heed_ctrl_c,
        )  # fmt: skip
        self.printed = ""

    def read_until(self, part: str) -> None:
        for line in self.process.stdout or ():
            self.printed += line
            if part in line:
                return
        raise AssertionError(f"ended before it printed {part!r}:\n{self.printed}")

    def processes(self) -> list[psutil.Process]:
        """Label Studio's, and the shell that it hangs on."""
        wanted = {"--internal-host", str(self.port)}
        return [process for process in psutil.process_iter() if wanted <= set(arguments_of(process))]

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + 20
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == []


def arguments_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
