"""A Label Studio server of one folder: started, watched, stopped; and where others find it.

Below the folder: `environment/` (its packages), `data/` (its database and uploads), `media/` (images it may serve),
`secrets.json` (who may log in), `server.lock` (held while it runs, and saying where), `server.log`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.review import server_setup as setup
from schemas.errors import ConfigError

_STOP_S = 15.0
_LOG_LINES = 20
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads back to this machine


@dataclass(frozen=True)
class ServerAddress:
    """Where a Label Studio server answers, and as whom to ask it.

    Attributes:
        url: address without a slash at the end.
        token: legacy API token (`Authorization: Token …`); never shown.
        media: folder on this machine whose files the server serves; None where there is none.
    """

    url: str
    token: str = field(repr=False)
    media: Path | None = None


def read_server(folder: Path) -> ServerAddress:
    """The server that runs in a folder; ConfigError if none does."""
    running: dict[str, Any] = {}
    with suppress(FileNotFoundError), (folder / "server.lock").open() as file:
        if not _lock(file.fileno(), fcntl.LOCK_SH):
            running = _read_note(file.fileno())
    if not running.get("answers"):
        raise ConfigError(
            f"No review server runs in {folder}. Start one: make review, or gapmap review-server --folder {folder}"
        )
    return ServerAddress(running["url"], setup.read_secrets(folder)["token"], Path(running["media"]))


class ReviewServer:
    """One Label Studio server, as a context or by start() and stop(). Its data and secrets stay in the folder.

    Args:
        folder: see the top of this module.
        port: TCP port; one that is taken is an error.
        host: IPv4 address or name to listen on; 0.0.0.0 lets other machines in, unencrypted.
        media: folder whose files are served to those who are logged in. Default: `media` in the folder.
        environment: where Label Studio is installed. Default: `environment` in the folder.
        loopback_webhooks: whether webhooks may go to this machine.
        wait_s: seconds after which a server that does not answer is given up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 8080,
        host: str = "127.0.0.1",
        media: Path | None = None,
        environment: Path | None = None,
        loopback_webhooks: bool = False,
        wait_s: float = 300.0,
    ) -> None:
        self.folder = folder.resolve()
        self.media = (media or self.folder / "media").resolve()
        self.environment = (environment or self.folder / "environment").resolve()
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        self._host, self._port, self._webhooks, self._wait_s = host, port, loopback_webhooks, wait_s
        self._process: subprocess.Popen[bytes] | None = None
        self._held: int | None = None

    def start(self, tell: Callable[[str], None] = lambda _: None) -> ServerAddress:
        """Install what is missing (`install_server`), start, and return once the server answers.

        ConfigError: one runs here already, the port is taken, or it did not come up (with the end of its log).
        """
        if self.folder.is_relative_to(self.media):
            raise ConfigError(
                f"Everyone who is logged in can see {self.media}. Choose a folder without secrets."
            )
        for folder in (self.folder, self.folder / "data", self.media):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held = self._take_lock()
        try:
            self._note(answers=False)
            self._refuse_taken_port()
            setup.install_server(self.environment, tell)
            setup.copy_empty_database(self.environment, self.folder / "data")
            tell("starting Label Studio")
            self._spawn()
            self._await_answer()
            self._note(answers=True)
        except BaseException:
            self.stop()
            raise
        return ServerAddress(self.url, setup.read_secrets(self.folder)["token"], self.media)

    def wait(self) -> None:
        """Block as long as the server runs; ConfigError when it has ended by itself."""
        if self._process:
            self._process.wait()
            raise ConfigError(f"Label Studio ended by itself. {self._log_end()}")

    def stop(self) -> None:
        """End the server and all it started. Stopping twice does no harm."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
        if self._held is not None:
            os.ftruncate(self._held, 0)
            os.close(self._held)
            self._held = None

    def __enter__(self) -> ReviewServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_lock(self) -> int:
        """The open lock file, locked. The server inherits it, so that it is held until the last process has ended."""
        handle = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _STOP_S
        while not _lock(handle, fcntl.LOCK_EX):
            owner = _read_note(handle)
            # What was killed just now leaves a server that is ending.
            if _alive(owner.get("pid", -1)) or time.monotonic() > deadline:
                os.close(handle)
                raise ConfigError(
                    f"A review server of {self.folder} runs already, at {owner.get('url')}. Use it, or stop it first."
                )
            time.sleep(0.2)
        return handle

    def _note(self, answers: bool) -> None:
        """Write into the lock who holds it, and where its server answers."""
        note = {"pid": os.getpid(), "url": self.url, "media": str(self.media), "answers": answers}
        if self._held is not None:
            os.ftruncate(self._held, 0)
            os.pwrite(self._held, json.dumps(note).encode(), 0)

    def _refuse_taken_port(self) -> None:
        # Label Studio takes the next port without a word, also when the port is taken on 127.0.0.1 alone.
        for host in dict.fromkeys((self._host, "127.0.0.1")):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, self._port))
                except (OSError, OverflowError) as error:
                    raise ConfigError(
                        f"Nothing can listen on port {self._port} of {host} ({error}). If another program has it, stop that, "
                        f"or choose another port: --port {self._port % 65535 + 1}"
                    ) from None

    def _spawn(self) -> None:
        command = [
            str(self.environment / "bin" / "label-studio"), "start", "--no-browser",
            "--internal-host", self._host, "--port", str(self._port),
        ]  # fmt: skip
        log = os.open(self.folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._process = subprocess.Popen(
                setup.tether(command), env=setup.server_variables(self.folder, self.media, self._webhooks),
                cwd=self.folder / "data", stdin=subprocess.PIPE, stdout=log, stderr=log, umask=0o077,
                start_new_session=True, pass_fds=[self._held] if self._held is not None else [],
            )  # fmt: skip
        finally:
            os.close(log)

    def _await_answer(self) -> None:
        """Return when our server answers, asked by our token: another program might have taken the port meanwhile."""
        headers = {"Authorization": f"Token {setup.read_secrets(self.folder)['token']}"}
        deadline = time.monotonic() + self._wait_s
        while self._process and self._process.poll() is None and time.monotonic() < deadline:
            try:
                _direct.open(f"{self.url}/health", timeout=5).close()
                asked = urllib.request.Request(f"{self.url}/api/current-user/whoami", headers=headers)
                _direct.open(asked, timeout=30).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (401, 403):
                    raise ConfigError(
                        f"The server refuses the token in {setup.secrets_path(self.folder)}: it is not the one that "
                        f"{self.folder / 'data'} was made with. Restore the one that was, or move both away."
                    ) from None
            except OSError:
                pass  # not up yet
            time.sleep(0.2)
        ended = self._process is None or self._process.poll() is not None
        what = "ended while it started" if ended else f"did not answer at {self.url} in {self._wait_s:.0f} s"
        raise ConfigError(f"Label Studio {what}. {self._log_end()}")

    def _log_end(self) -> str:
        """Where the log is and its last lines, without secrets."""
        path = self.folder / "server.log"
        text = "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        for secret in setup.read_secrets(self.folder).values():
            text = text.replace(secret, "***")
        return f"The end of {path}:\n{text}"


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _read_note(handle: int) -> dict[str, Any]:
    """What the last holder of the lock wrote; empty where it wrote nothing, or is writing now."""
    try:
        return dict(json.loads(os.pread(handle, 4096, 0)))
    except ValueError:
        return {}
