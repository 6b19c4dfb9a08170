"""Stores on a local disk, in memory and on a real S3 protocol server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from engine.store import Store

SECRET = "s3cr3t-of-the-bucket"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server on the loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(s3_server: str) -> tuple[str, dict[str, Any]]:
    """A fresh bucket's URL with a prefix, and the storage options that reach it."""
    import fsspec

    options = {"key": "a-key-of-the-bucket", "secret": SECRET, "client_kwargs": {"endpoint_url": s3_server}}
    bucket = f"b{uuid4().hex}"
    fsspec.filesystem("s3", **options).mkdir(bucket)
    return f"s3://{bucket}/some/store", options


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Address and storage options of an empty store, on a disk and on S3."""
    if request.param == "local":
        return str(tmp_path / "store"), {}
    return request.getfixturevalue("s3_root")


@pytest.fixture
def store(root: tuple[str, dict[str, Any]]) -> Store:
    return Store(*root)


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))
