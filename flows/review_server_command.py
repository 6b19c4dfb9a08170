"""The command `gapmap review-server`: a Label Studio server for the people who answer, until it is stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer


def review_server(
    folder: Annotated[
        Path, typer.Option(help="Where the server, its data and its secrets lie.", file_okay=False)
    ] = Path(".review"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8080,
    host: Annotated[
        str,
        typer.Option(
            help="IPv4 address or name to listen on. 0.0.0.0 lets other machines in; what they send is not encrypted."
        ),
    ] = "127.0.0.1",
) -> None:
    """Run a Label Studio server that people answer in; Ctrl-C ends it.

    The first time it is installed, into an environment of its own below the folder (1 GB, some minutes). What people
    answered stays in the folder from one start to the next.

    Example: gapmap review-server --port 8090
    """
    from engine.review.server import ReviewServer
    from engine.review.server_setup import read_secrets, secrets_path

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has its way
            signal.signal(number, _interrupt)
    server = ReviewServer(folder, port=port, host=host)
    try:
        address = server.start(lambda sentence: typer.echo(sentence, err=True))
        typer.echo(f"Label Studio answers at {address.url}")
        typer.echo(f"log in as {read_secrets(folder)['email']}; the password is in {secrets_path(folder)}")
        typer.echo(f"it serves images of {address.media}; Ctrl-C ends it")
        server.wait()
    except KeyboardInterrupt:
        typer.echo("stopped; the answers stay in the folder", err=True)
    finally:
        server.stop()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
