"""A receiver for Label Studio's webhooks: it takes them as a knock at the door, and looks for itself.

What a webhook says is neither read nor kept: Label Studio does not sign it, does not send it again, and puts a token into it.
Every knock with the right secret leads to one pull, several while one runs to one more; and without any, one comes every
few minutes.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from fastapi import FastAPI, Request, Response

from flows.own_prefect import is_raised_by_prefect
from schemas.errors import ConfigError, GapmapError

HEADER = "x-gapmap-secret"
SECRET_FILE = Path(".review") / "webhook-secret"
_MOST_BYTES = 1 << 20
_MOST_FAILURES = 5  # in a row, of one kind: then the next one would be no other


class Puller:
    """Pulls in one thread: when woken, and every so often.

    Args:
        fetch: one pull; its result has `answers`.
        every_s: seconds.
        tell: takes a line for the person who watches.
        give_up: called once it is of no use to go on.

    Attributes:
        failure: why it is of no use.
    """

    def __init__(
        self,
        fetch: Callable[[], Any],
        every_s: float,
        tell: Callable[[str], None],
        give_up: Callable[[], None],
    ) -> None:
        self._fetch, self._every_s, self._tell, self._give_up = fetch, every_s, tell, give_up
        self.failure: GapmapError | None = None
        self._wake, self._stop = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """The first pull begins at once: nothing may have come while nobody listened."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """One more pull, soon."""
        self._wake.set()

    def stop(self) -> None:
        """Ends after the pull that runs."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        unforeseen: deque[str] = deque(maxlen=_MOST_FAILURES)  # kinds of the last failures, in a row
        while True:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._stop:
                return
            try:
                found = self._fetch()
                if found.answers:
                    self._tell(f"{found.answers} new or changed answers")
                unforeseen.clear()
            except GapmapError as error:  # the next pull finds what this one did not
                self._tell(str(error))
                unforeseen.clear()
            except Exception as error:
                kind = type(error).__name__
                if not is_raised_by_prefect(error):  # Prefect's own troubles may not end the listening
                    _show_place(error)
                    unforeseen.append(kind)
                if unforeseen.count(kind) == _MOST_FAILURES:
                    self.failure = GapmapError(
                        f"{_MOST_FAILURES} pulls in a row failed alike ({kind}), and not as was foreseen; the places are shown above. "
                        "No answer is lost: the next `gapmap pull` that succeeds fetches what these did not."
                    )
                    self._give_up()
                    return
                self._tell(f"a pull failed ({kind}); the next one tries again")


def _show_place(error: Exception) -> None:
    """The traceback without what the error says: a token or an answer may be in it."""
    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    typer.echo("".join(lines) + type(error).__name__, err=True)


def make_receiver(puller: Puller, secret: str) -> FastAPI:
    """The ASGI application: POST / with the secret in the header `X-Gapmap-Secret` wakes the puller."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/")
    async def knock(request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get(HEADER, "").encode(), secret.encode()):
            return Response(status_code=403)
        size = 0
        async for part in request.stream():  # read, or the sender would see a broken connection
            size += len(part)
            if size > _MOST_BYTES:
                return Response(status_code=413)
        puller.wake()
        return Response(status_code=202)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP"}

    return app


def find_secret() -> str:
    """From GAPMAP_WEBHOOK_SECRET, else from the file that only its owner can read; made at the first call."""
    if secret := os.environ.get("GAPMAP_WEBHOOK_SECRET"):
        return secret
    if not SECRET_FILE.exists():
        _make_secret()
    if not (secret := SECRET_FILE.read_text().strip()):
        raise ConfigError(f"{SECRET_FILE} is empty. Remove it, or set GAPMAP_WEBHOOK_SECRET.")
    return secret


def _make_secret() -> None:
    """Whole or not at all, and never over another's."""
    SECRET_FILE.parent.mkdir(parents=True, exist_ok=True)
    new = SECRET_FILE.with_name(f".{SECRET_FILE.name}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32))
    with suppress(FileExistsError):
        os.link(new, SECRET_FILE)
    new.unlink()


def serve(fetch: Callable[[], Any], *, host: str, port: int, every_s: float) -> None:
    """Listen until Ctrl-C.

    Raises:
        ConfigError: the port is taken.
        GapmapError: several pulls in a row failed alike, as none should.
    """
    import socket

    import uvicorn

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Nobody can listen on {host}:{port} ({error.strerror}). Choose another --port."
            ) from None
    named = (
        "GAPMAP_WEBHOOK_SECRET" if os.environ.get("GAPMAP_WEBHOOK_SECRET") else str(SECRET_FILE.absolute())
    )

    def end() -> None:
        server.should_exit = True

    puller = Puller(fetch, every_s, lambda line: typer.echo(line), end)
    app = make_receiver(puller, find_secret())
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    typer.echo(f"listening on http://{host}:{port}/ for the header X-Gapmap-Secret; the secret is in {named}")
    puller.start()
    try:
        with suppress(KeyboardInterrupt):
            server.run()
    finally:
        puller.stop()
    if puller.failure:
        raise puller.failure
