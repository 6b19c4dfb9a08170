"""A real http server with a few images, which behaves as its paths say."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image


def png_bytes(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 3), shade).save(file, "png")
    return file.getvalue()


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder over http; the first part of the path says how the server behaves."""

    server: Server

    def do_GET(self) -> None:
        part, _, rest = self.path.lstrip("/").partition("/")
        self.server.asked[self.path] += 1
        if part == "locked":
            wanted = "Basic " + base64.b64encode(b"user:s3cret").decode()
            if self.headers.get("Authorization") != wanted:
                return self.send_error(401)
            self.path = f"/{rest}"
        elif part == "signed":
            if "token=s3cret" not in self.path:
                return self.send_error(403)
            self.path = f"/{rest}"
        elif part == "shut" and rest.startswith("sub"):
            return self.send_error(403)
        elif part == "shut":
            self.path = f"/{rest}"
        elif part == "flaky" and self.server.asked[self.path] <= 2:
            return self.send_error(503)
        elif part == "flaky":
            self.path = f"/{rest}"
        elif part == "weak" and self.server.asked[self.path] <= 5:
            return self.send_error(503)
        elif part == "weak":
            self.path = f"/{rest}"
        elif part == "down":
            return self.send_error(500)
        elif part == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(png_bytes())
            return None
        elif part == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(b"\x89PNG\r\n\x1a\n" * (1 << 14))
                    self.server.sent += 1 << 17
            except OSError:
                pass
            return None
        super().do_GET()
        self.server.answered[self.path] += 1
        return None

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}"
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # to the end
        self.sent = 0

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up early are part of the tests


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "web"
    for shade, name in enumerate(["b.png", "a b.png", "sub/c.JPG", "notes.txt2", "sub/deep/d.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png_bytes(shade))
    server = Server(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
