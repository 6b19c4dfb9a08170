"""`make review`: a real Label Studio server that people log in to, that is killed, stopped and started again."""

from __future__ import annotations

import signal
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from label_studio import ENVIRONMENT, LabelStudio, ServerCommand, Visitor, arguments_of, free_port

from engine.review import server_setup
from engine.review.server import ReviewServer, ServerAddress, read_server
from schemas.errors import ConfigError


@pytest.mark.slow
def test_a_person_logs_in_and_nobody_signs_up_without_a_link(label_studio: LabelStudio) -> None:
    assert label_studio.ask("/health", authorization=None)["status"] == "UP"
    stranger = Visitor(label_studio)
    status, _, _ = stranger.send("/user/signup/", email="else@example.com", password="long-enough-7")
    assert status == 403
    assert stranger.send("/user/login/", email=label_studio.email, password="no")[1].endswith("/user/login/")
    person = Visitor(label_studio)
    person.log_in()
    assert label_studio.email.encode() in person.see("/api/current-user/whoami")[1]
    assert b"collect_analytics: false" in person.see("/projects/")[1], "its pages tell nobody what people do"


@pytest.mark.slow
def test_a_program_asks_with_the_legacy_token_or_with_a_personal_one(label_studio: LabelStudio) -> None:
    assert label_studio.ask("/api/current-user/whoami")["email"] == label_studio.email
    asked = {"refresh": label_studio.personal_token}
    access = label_studio.ask("/api/token/refresh", asked, authorization=None)["access"]
    whoami = label_studio.ask("/api/current-user/whoami", authorization=f"Bearer {access}")
    assert whoami["email"] == label_studio.email
    for refused in ("Token 0123456789", None):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            label_studio.ask("/api/current-user/whoami", authorization=refused)


@pytest.mark.slow
def test_images_of_the_media_folder_are_seen_by_who_is_logged_in_and_nothing_else_is(
    label_studio: LabelStudio,
) -> None:
    project = label_studio.ask("/api/projects/", {"title": "served images"})["id"]
    folder = label_studio.media / "served"
    folder.mkdir()
    (folder / "one.png").write_bytes(b"\x89PNG one")
    storage = {"project": project, "path": str(folder), "use_blob_urls": True, "title": "media"}
    assert label_studio.ask("/api/storages/localfiles", storage)["path"] == str(folder)
    with pytest.raises(urllib.error.HTTPError, match="400"):  # only below the media folder
        label_studio.ask("/api/storages/localfiles", {**storage, "path": str(label_studio.folder)})

    person = Visitor(label_studio)
    assert person.see("/data/local-files/?d=served/one.png")[0] == 401
    person.log_in()
    assert person.see("/data/local-files/?d=served/one.png") == (200, b"\x89PNG one")
    secrets = label_studio.folder / "secrets.json"
    for path in ("../secrets.json", "served/../../secrets.json", str(secrets), "%2e%2e/secrets.json"):
        status, body = person.see(f"/data/local-files/?d={path}")
        assert status >= 400, path
        assert label_studio.token.encode() not in body


@pytest.mark.slow
def test_webhooks_reach_this_machine_where_they_are_let_and_no_other_closed_network(
    label_studio: LabelStudio,
) -> None:
    project = label_studio.ask("/api/projects/", {"title": "webhooks"})["id"]
    assert label_studio.ask("/api/webhooks/", {"url": "http://127.0.0.1:9/", "project": project})["id"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        label_studio.ask("/api/webhooks/", {"url": "http://192.168.0.1/", "project": project})


@pytest.mark.slow
def test_secrets_are_the_owners_alone(label_studio: LabelStudio) -> None:
    for path in ("secrets.json", "server.log", "server.lock", "data/.env", "data/label_studio.sqlite3"):
        assert (label_studio.folder / path).stat().st_mode & 0o077 == 0, path
    arguments = [word for process in psutil.process_iter() for word in arguments_of(process)]
    assert any(label_studio.url.endswith(word) for word in arguments if word.isdigit()), "it is looked at"
    log = (label_studio.folder / "server.log").read_text()
    for secret in (label_studio.token, label_studio.password):
        assert len(secret) >= 24
        assert secret not in log
        assert not any(secret in word for word in arguments)
    found = read_server(label_studio.folder)
    assert found == ServerAddress(label_studio.url, label_studio.token, label_studio.media)
    assert label_studio.token not in f"{found} {found!r}"


@pytest.mark.slow
def test_a_second_start_says_where_the_first_runs_and_a_taken_port_is_told(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"runs already, at {label_studio.url}"):
        ReviewServer(label_studio.folder, port=free_port(), environment=ENVIRONMENT).start()
    taken = int(label_studio.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"port {taken} .*--port {taken + 1}"):
        ReviewServer(tmp_path, port=taken, environment=ENVIRONMENT).start()
    assert label_studio.ask("/health")["status"] == "UP"


@pytest.fixture
def folder(tmp_path: Path, label_studio: LabelStudio) -> Path:
    """A server's folder that shares the installed environment (which `label_studio` has seen to)."""
    path = tmp_path / "review"
    path.mkdir()
    (path / "environment").symlink_to(ENVIRONMENT)
    return path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], ServerCommand]]:
    """Runs `gapmap review-server` in the folder; what still runs in the end is killed."""
    started: list[ServerCommand] = []

    def start_one() -> ServerCommand:
        started.append(ServerCommand(folder))
        return started[-1]

    yield start_one
    for command in started:
        command.process.kill()


@pytest.mark.slow
def test_killed_started_again_and_terminated_it_keeps_its_data_and_leaves_no_process(
    folder: Path, start: Callable[[], ServerCommand]
) -> None:
    killed = start()
    killed.read_until("Ctrl-C ends it")
    address = read_server(folder)
    server = LabelStudio(address.url, address.token, folder / "media", "", "", folder)
    server.ask("/api/projects/", {"title": "kept"})
    assert len(killed.processes()) >= 2
    for process in killed.processes():
        assert not killed.leaks.keys() & process.environ().keys()
    killed.process.kill()
    killed.process.wait()

    again = start()
    again.read_until("Ctrl-C ends it")
    killed.assert_nothing_is_left()
    known = server_setup.read_secrets(folder)
    assert known["email"] in again.printed
    assert str(folder / "secrets.json") in again.printed
    assert known["password"] not in again.printed
    assert known["token"] not in again.printed
    address = read_server(folder)
    server = LabelStudio(address.url, address.token, folder / "media", "", "", folder)
    assert [project["title"] for project in server.ask("/api/projects/")["results"]] == ["kept"]
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(30) == 0
    again.assert_nothing_is_left()

    (folder / "secrets.json").unlink()
    with pytest.raises(ConfigError, match="refuses the token"):
        ReviewServer(folder, port=free_port()).start()


@pytest.mark.slow
def test_ctrl_c_while_it_starts_leaves_no_process(start: Callable[[], ServerCommand]) -> None:
    command = start()
    command.read_until("starting Label Studio")
    time.sleep(1)
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(30) == 0
    command.assert_nothing_is_left()


@pytest.mark.slow
def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "label_studio.sqlite3").write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="ended while it started") as failure:
        ReviewServer(folder, port=free_port()).start()
    assert "file is not a database" in str(failure.value)
    assert not any(secret in str(failure.value) for secret in server_setup.read_secrets(folder).values())


def test_secrets_that_others_can_read_or_that_are_damaged_are_refused(tmp_path: Path) -> None:
    known = server_setup.read_secrets(tmp_path)
    assert server_setup.read_secrets(tmp_path) == known
    path = server_setup.secrets_path(tmp_path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        server_setup.read_secrets(tmp_path)
    path.chmod(0o600)
    path.write_text('{"email": ')
    with pytest.raises(ConfigError, match="damaged"):
        server_setup.read_secrets(tmp_path)


def test_a_media_folder_with_the_secrets_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without secrets"):
        ReviewServer(tmp_path / "review", media=tmp_path).start()


def test_an_installation_that_fails_says_why_and_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "pins.lock"
    pins.write_text("these are no pins\n")
    monkeypatch.setattr(server_setup, "_PINS", pins)
    environment = tmp_path / "environment"
    environment.mkdir()
    (environment / "half").write_text("left by one that was killed")
    told: list[str] = []
    with pytest.raises(ConfigError, match="could not be installed") as failure:
        server_setup.install_server(environment, told.append)
    assert "pins.lock" in str(failure.value)
    assert "installing Label Studio" in told[0]
    assert not (environment / "half").exists()
    assert not (environment / ".installed").exists()


def test_nobody_is_told_of_a_server_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make review"):
        read_server(tmp_path)
