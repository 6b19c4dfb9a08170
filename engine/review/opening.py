"""The queue that an address stands for: a folder, a server of this machine, or any Label Studio."""

from __future__ import annotations

from pathlib import Path

from engine.review.connection import Connection
from engine.review.folder_queue import FolderQueue
from engine.review.label_studio import LabelStudioQueue
from engine.review.queue import ReviewQueue
from engine.review.server import read_server
from engine.review.server_setup import secrets_path
from schemas.errors import ConfigError

LOCAL_SERVER = Path(".review")
"""Folder of the server that `make review` starts."""
LOCAL_FILES = "/data/local-files/?d="


def open_queue(
    address: str | None,
    *,
    project: str = "gapmap",
    token: str | None = None,
    media: str | None = None,
    media_url: str | None = None,
    annotators: int = 1,
) -> ReviewQueue:
    """A review queue.

    Args:
        address: URL of a Label Studio server; the folder of a server that `gapmap review-server` runs; any other folder for
            a queue of files; None for the server in `.review`.
        project: name of the queue on a server, and in its pictures' addresses.
        token: of a user of a server given by its URL.
        media: folder that pictures are written to, for a server given by its URL; of one of this machine it is known.
        media_url: what annotators' browsers call that folder.
        annotators: answers to each task.

    Raises:
        ConfigError: there is no such server, or something is missing to use it.
    """
    # It is also the name of a folder: ".." would be the one that the pictures' lies in.
    if not project.strip() or project.startswith(".") or any(mark in project for mark in "/\\\n?#%"):
        raise ConfigError(
            f"{project!r} is no name for a queue: letters, digits, blanks, - and _ are. Name another: --project"
        )
    if address is not None and "://" in address:
        if media is None:
            raise ConfigError(
                "Say where the pictures of the tasks may lie, and what annotators' browsers call that place: --media FOLDER "
                f"--media-url https://files.example.org/, or {LOCAL_FILES} for a folder that the server itself serves."
            )
        connection = Connection(address, token or "")
        folder = Path(media).absolute() / project
        return LabelStudioQueue(
            connection, project, folder, _join(media_url or LOCAL_FILES, project), annotators=annotators
        )
    folder = Path(address) if address is not None else LOCAL_SERVER
    if secrets_path(folder).exists():
        server = read_server(folder)
        if server.media is None:
            raise ConfigError(
                f"The server in {folder} serves no pictures. Start it anew: gapmap review-server"
            )
        return LabelStudioQueue(
            Connection(server.url, server.token),
            project,
            server.media / project,
            _join(LOCAL_FILES, project),
            annotators=annotators,
        )
    if address is None:
        raise ConfigError(
            "Say where people answer: --queue FOLDER for files, --queue https://labels.example.org for a Label Studio server; or "
            "start a server here: make review"
        )
    return FolderQueue(folder)


def _join(url: str, project: str) -> str:
    return f"{url if url.endswith(('/', '=')) else url + '/'}{project}/"
