"""Fetching weights: from a real HTTP server, through everything that goes wrong on the way."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.models import download
from engine.models.cache import file_sha256
from schemas.errors import CheckpointError, ConfigError, TransientError

pytest_plugins = ("store_fixtures",)

REPO_ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * (16 << 10)  # 4 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FileServer:
    """A web server with one file, whose manners a test chooses."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.break_after: int | None = None  # bytes, then the connection is lost
        self.damaged_answers = 0
        self.status = 200
        self.etag = '"1"'
        self.delay_s = 0.0  # between pieces
        self.asked: list[str] = []  # Range header of each request, "" without
        self.logins: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/models/weights.pt"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.asked.append(asked)
        self.logins.append(request.headers.get("Authorization"))
        if self.status != 200:
            return request.send_error(self.status)
        content = self.content
        if self.damaged_answers:
            self.damaged_answers -= 1
            content = b"x" + content[1:]
        start, end = 0, len(content)
        if asked and self.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(content)
            if start >= len(content):
                return request.send_error(416)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(end - start))
        request.send_header("ETag", self.etag)
        request.end_headers()
        if self.break_after is not None:
            end = min(end, start + self.break_after)
        for at in range(start, end, 1 << 17):
            try:
                request.wfile.write(content[at : min(at + (1 << 17), end)])
            except ConnectionError:
                return None
            time.sleep(self.delay_s)
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAPMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fetch(server: FileServer, target: Path) -> Path:
    return download.fetch(server.url, target, size_bytes=len(CONTENT), sha256=SHA256)


def test_a_file_is_fetched_once_with_progress(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    for _ in range(2):
        path = download.fetch(
            server.url, tmp_path / "a" / "w.pt", sha256=SHA256, progress=lambda *now: told.append(now)
        )
        assert path.read_bytes() == CONTENT
    assert server.asked == [""]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert not list(path.parent.glob("*.part"))


def test_a_lost_connection_goes_on_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.break_after = 3 << 20
    assert fetch(server, tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.asked == ["", f"bytes={3 << 20}-"]


def test_a_server_without_ranges_sends_it_all_again(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "w.pt.part").write_bytes(b"y" * 1000)
    assert fetch(server, tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_part_longer_than_the_file_is_dropped(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "w.pt.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path / "w.pt").read_bytes() == CONTENT


def test_a_part_that_was_complete_needs_no_request(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "w.pt.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.asked == []


def test_a_damaged_answer_is_fetched_again_once(server: FileServer, tmp_path: Path) -> None:
    server.damaged_answers = 1
    assert fetch(server, tmp_path / "w.pt").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_always_the_wrong_file_is_an_error_that_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    server.damaged_answers = 9
    with pytest.raises(CheckpointError, match=r"twice.*by hand and put it at .*w\.pt"):
        fetch(server, tmp_path / "w.pt")
    assert len(server.asked) == 2
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock" and p.is_file()] == []


@pytest.mark.parametrize("damage", [b"short", b"z" * len(CONTENT)], ids=["cut", "altered"])
def test_a_file_damaged_in_the_cache_is_fetched_anew(
    server: FileServer, tmp_path: Path, damage: bytes
) -> None:
    path = fetch(server, tmp_path / "w.pt")
    path.write_bytes(damage)
    assert fetch(server, path).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_off_line_says_what_was_wanted_and_where_to_put_it(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/w.pt"
    with pytest.raises(TransientError) as error:
        download.fetch(url, tmp_path / "w.pt")
    assert url in str(error.value)
    assert str(tmp_path / "w.pt") in str(error.value)


@pytest.mark.parametrize(("status", "kind"), [(404, ConfigError), (403, ConfigError), (503, TransientError)])
def test_a_refusal_is_a_setting_to_mend_and_an_overload_is_not(
    server: FileServer, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    server.status = status
    with pytest.raises(kind, match=str(status)):
        fetch(server, tmp_path / "w.pt")
    assert len(server.asked) == (1 if kind is ConfigError else 3)


def test_a_part_as_long_as_the_file_starts_anew_when_nobody_knows_the_size(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "w.pt.part").write_bytes(b"y" * len(CONTENT))
    assert download.fetch(server.url, tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-", ""]


def test_a_login_in_the_address_is_used(server: FileServer) -> None:
    path = download.local_copy(server.url.replace("http://", "http://me:hunter2@"))
    assert path.read_bytes() == CONTENT
    assert set(server.logins) == {"Basic " + base64.b64encode(b"me:hunter2").decode()}


def test_secrets_in_an_address_stay_out_of_errors(server: FileServer, tmp_path: Path) -> None:
    server.status = 404
    secret_url = server.url.replace("http://", "http://me:hunter2@") + "?X-Amz-Signature=deadbeef"
    for call in (download.local_copy, lambda url: download.fetch(url, tmp_path / "w.pt")):
        with pytest.raises((ConfigError, TransientError)) as error:
            call(secret_url)
        text = "".join(map(str, (error.value, error.value.__cause__)))
        assert "hunter2" not in text
        assert "deadbeef" not in text


FETCH = """
import sys, pathlib
from engine.models import download
from engine.models.cache import file_sha256
download.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), size_bytes=int(sys.argv[3]), sha256=sys.argv[4])
"""


def start_fetching(server: FileServer, target: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, server.url, str(target), str(len(CONTENT)), SHA256]
    return subprocess.Popen(command, cwd=REPO_ROOT)


def test_a_killed_process_is_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    server.delay_s = 0.05
    target, part = tmp_path / "w.pt", tmp_path / "w.pt.part"
    process = start_fetching(server, target)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    had = part.stat().st_size
    assert 0 < had < len(CONTENT)
    assert not target.exists()
    server.delay_s = 0
    assert fetch(server, target).read_bytes() == CONTENT
    assert server.asked == ["", f"bytes={had}-"]


def test_processes_that_want_the_same_file_fetch_it_once(server: FileServer, tmp_path: Path) -> None:
    server.delay_s = 0.02
    processes = [start_fetching(server, tmp_path / "w.pt") for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.asked == [""]


def test_a_url_is_copied_again_only_when_it_changed(server: FileServer) -> None:
    first = download.local_copy(server.url)
    assert first.read_bytes() == CONTENT
    assert first.name == "weights.pt"
    assert download.local_copy(server.url) == first
    assert server.asked.count("") == 1
    server.content, server.etag = CONTENT[::-1], '"2"'
    assert download.local_copy(server.url).read_bytes() == CONTENT[::-1]


def test_any_store_will_do_and_a_local_path_is_not_copied(tmp_path: Path, cache: Path) -> None:
    import fsspec

    with fsspec.open("memory://models/w.pt", "wb") as file:
        file.write(CONTENT)
    copied = download.local_copy("memory://models/w.pt")
    assert copied.read_bytes() == CONTENT
    assert cache in copied.parents
    (tmp_path / "w.pt").write_bytes(CONTENT)
    assert download.local_copy(str(tmp_path / "w.pt")) == tmp_path / "w.pt"
    assert download.local_copy((tmp_path / "w.pt").as_uri()) == tmp_path / "w.pt"


def test_a_bucket_is_gone_on_with_where_it_broke(
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("weights-of-ours")
    store.pipe("weights-of-ours/w.pt", CONTENT)
    assert download.local_copy("s3://weights-of-ours/w.pt").read_bytes() == CONTENT
    (tmp_path / "w.pt.part").write_bytes(CONTENT[: 3 << 20])
    told: list[tuple[int, int | None]] = []
    path = download.fetch(
        "s3://weights-of-ours/w.pt", tmp_path / "w.pt", progress=lambda *now: told.append(now)
    )
    assert path.read_bytes() == CONTENT
    assert told == [(len(CONTENT), len(CONTENT))]
    with pytest.raises(ConfigError, match=r"There is no checkpoint at s3://weights-of-ours/other\.pt"):
        download.local_copy("s3://weights-of-ours/other.pt")


@pytest.mark.parametrize(
    "address", ["memory://nowhere/w.pt", "nosuchscheme://a/w.pt", "http://127.0.0.1:port/w.pt"]
)
def test_an_address_that_cannot_work_is_a_setting_to_mend(address: str) -> None:
    with pytest.raises(ConfigError, match=address):
        download.local_copy(address)


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(CONTENT)
    assert file_sha256(path) == SHA256
    (stamp,) = (cache / "stamps").iterdir()
    stamp.write_text(stamp.read_text().replace(SHA256, "0" * 64))
    assert file_sha256(path) == "0" * 64, "it was read again though nothing changed"
    path.write_bytes(CONTENT[1:])
    assert file_sha256(path) == hashlib.sha256(CONTENT[1:]).hexdigest()
    stamp.write_text("not json")
    assert file_sha256(path) == hashlib.sha256(CONTENT[1:]).hexdigest()


def test_a_cache_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="GAPMAP_CACHE"):
        download.fetch("http://127.0.0.1:9/w.pt", tmp_path / "file" / "w.pt")


def test_a_bar_shows_how_far_it_is(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with download.progress_bar("sam-test") as progress:
        download.fetch(server.url, tmp_path / "w.pt", progress=progress)
    shown = capsys.readouterr()
    assert "sam-test" in shown.err
    assert "4.2/4.2 MB" in shown.err
    assert shown.out == ""
