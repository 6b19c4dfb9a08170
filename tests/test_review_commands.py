"""What the README tells of people: push, answer, pull, learn; and what is said when something is wrong."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from label_studio import LabelStudio, free_port
from review_sides import FolderSide, ServerSide, label_pool, write_pool

from engine.learn.answers import ANSWERS, find_latest_answer, read_answers, why_wait
from engine.learn.splits import learnable_images, split_groups
from engine.learn.training_images import human_images
from engine.review.connection import Connection
from engine.review.label_studio import LabelStudioQueue
from engine.review.opening import open_queue
from engine.review.pull import pull_answers
from engine.review.push import push_masks
from engine.rounds import RoundJournal
from engine.store import Store
from schemas.errors import ConfigError, GapmapError, TransientError
from schemas.round_settings import RoundSettings

ROOT = Path(__file__).parents[1]
TOKEN = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four masks of each of eight pictures."""
    made = Store(str(tmp_path / "masks"))
    label_pool(made, write_pool(tmp_path / "pool", 8))
    return made


def gapmap(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def server_queue(server: LabelStudio) -> LabelStudioQueue:
    """A project of its own."""
    name = f"commands-{uuid4().hex[:8]}"
    connection = Connection(server.url, server.token)
    return LabelStudioQueue(connection, name, server.media / name, f"/data/local-files/?d={name}/")


@pytest.mark.slow
def test_push_answer_pull_with_a_folder(store: Store, tmp_path: Path) -> None:
    queue = tmp_path / "review"
    pushed = gapmap("push", "--store", tmp_path / "masks", "--queue", queue, "--budget", 6)
    assert pushed.returncode == 0, pushed.stderr
    assert "6 masks of nano@0123456789ab sent in" in pushed.stdout
    assert "6 masks wait for people" in pushed.stdout
    assert str(queue) in pushed.stdout
    side = FolderSide(queue)
    task = side.tasks()[0]
    side.answer(task, task["predictions"][0]["result"])
    pulled = gapmap("pull", "--store", tmp_path / "masks", "--queue", queue)
    assert pulled.returncode == 0, pulled.stderr
    assert "1 new or changed answers" in pulled.stdout
    assert "correct" in pulled.stdout
    choice = ("--strategy", "entropy", "--random-share", 0.5, "--per-image", 2, "--seed", 3)
    again = gapmap("push", "--store", tmp_path / "masks", "--queue", queue, "--budget", 6, *choice)
    answered = len(task["predictions"][0]["result"])
    assert f"{answered} masks of" in again.stdout, "people get new ones for those that they answered"


@pytest.mark.parametrize(
    ("address", "options", "said"),
    [
        ("http://127.0.0.1:9", {}, "--media FOLDER"),
        ("http://127.0.0.1:9", {"media": "m"}, "LABEL_STUDIO_API_KEY"),
        ("http://me:secret-word@127.0.0.1:9", {"media": "m", "token": TOKEN}, "no password into the address"),
        ("ftp://127.0.0.1", {"media": "m", "token": TOKEN}, "must look like http"),
        ("queue", {"project": "a/b"}, "no name for a queue"),
        (
            "http://127.0.0.1:9",
            {"project": "..", "media": "m", "token": TOKEN},
            "'..' is no name for a queue",
        ),
        ("queue", {"project": ".hidden"}, "no name for a queue"),
    ],
)
def test_what_cannot_work_says_what_to_do(address: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_queue(address, **options)
    assert "secret-word" not in str(caught.value)


def test_without_a_queue_it_says_where_people_could_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="make review"):
        open_queue(None)


def test_a_model_is_named_with_or_without_its_version(store: Store, tmp_path: Path) -> None:
    queue = FolderSide(tmp_path / "queue").queue
    assert push_masks(store, queue, 1, model="nano").model == "nano@0123456789ab"
    assert push_masks(store, queue, 2, model="nano@0123456789ab").masks == 1
    with pytest.raises(ConfigError, match=r"Did you mean 'nano@0123456789ab'\?"):
        push_masks(store, queue, 3, model="nano@0123456789ac")


def test_answers_become_labels_to_learn_from(store: Store, tmp_path: Path) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 100)
    for number, task in enumerate(side.tasks()):
        regions = task["predictions"][0]["result"]
        about = {"id": regions[0]["id"], "to_name": "image", "type": "choices"}
        kind = {**about, "from_name": "kind", "value": {"choices": ["part"]}}
        no = {**about, "id": regions[1]["id"], "from_name": "verdict", "value": {"choices": ["no object"]}}
        side.answer(task, [*regions, kind, no], skip=number == 0)
    pull_answers(store, side.queue)
    images = read_answers(store)
    assert len(images) == 7, "a skipped one teaches nothing"
    assert {len(image.masks) for image in images} == {3}, "nothing is learnt from what is no object"
    assert sorted(mask.task for mask in images[0].masks) == ["part", "unspecified", "unspecified"]
    assert why_wait(store, "nano", 29).startswith("28 masks were answered")
    assert not why_wait(store, "nano", 28)
    assert not why_wait(store, "nano", 29, longest_wait_h=0)
    learnt, kept_out = split_groups(images)
    assert {image.name for image in kept_out} == {
        image.name for image in images if int(image.name[:8], 16) % 5 == 0
    }
    assert len(learnt) + len(kept_out) == 7
    for image in human_images(learnable_images(images)):
        assert image.human
        assert image.load().shape[:2] == image.masks[0].size


def test_answers_pulled_while_a_model_learnt_are_new_to_it_and_to_every_other_model(
    store: Store, tmp_path: Path
) -> None:
    """The row of a version is written when it has learnt, hours after its lessons were read."""
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 100)
    tasks = side.tasks()
    side.answer(tasks[0], tasks[0]["predictions"][0]["result"])
    pull_answers(store, side.queue)
    began = find_latest_answer(store)
    assert began is not None
    side.answer(tasks[1], tasks[1]["predictions"][0]["result"])
    pull_answers(store, side.queue)
    new = len(tasks[1]["predictions"][0]["result"])
    both = new + len(tasks[0]["predictions"][0]["result"])

    about = {"package": "segment-anything", "source": "s", "sha256": "0", "parameters": 1, "image_size": 512}
    about |= {"parent": "nano@0123456789ab"}

    def learn(version: str, data: dict[str, Any], name: str = "nano") -> None:
        text = json.dumps({"human": {ANSWERS: 1}, **data})
        named = {"model": f"{name}@{version}", "name": name, "version": version}
        store.record_model({**about, **named, "data": text})

    learn("1", {"answered_until": began.isoformat()})
    assert why_wait(store, "nano", new + 1).startswith(f"{new} masks were answered")
    assert not why_wait(store, "nano", new)
    assert why_wait(store, "other", both + 1).startswith(f"{both} masks"), "another model learnt nothing"
    learn("2", {"answered_until": None}, "other")
    assert not why_wait(store, "other", both), "nobody had answered when it began"
    learn("3", {})
    assert why_wait(store, "nano", 1).startswith("0 masks"), "a row of before says when it was written"


def test_a_round_that_found_nothing_to_learn_from_is_not_begun_again_for_the_same_answers(
    store: Store, tmp_path: Path
) -> None:
    from flows.round_steps import RoundSteps

    model, side = "nano@0123456789ab", FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 100)
    first, *others = side.tasks()

    def answer_no_object(tasks: list[Any]) -> int:
        answered = 0
        for task in tasks:
            regions = task["predictions"][0]["result"]
            about = {"to_name": "image", "type": "choices", "from_name": "verdict"}
            no = [{**about, "id": of["id"], "value": {"choices": ["no object"]}} for of in regions]
            side.answer(task, [*regions, *no])
            answered += len(regions)
        pull_answers(store, side.queue)
        return answered

    page, wait = tmp_path / "report.html", 1
    work = RoundSteps(
        store, "pool", store.files.label, "nano", tmp_path / "models", [], None, ("gapmap", None, None), 100, None, wait,
        None, page, RoundSettings(), "cpu",
    )  # fmt: skip
    answer_no_object(others)
    assert not work.why_wait(model)
    skipped = RoundJournal(store).run("finetune", model, lambda: work.learn(model))
    assert "nothing to learn from" in skipped["skipped"]
    assert work.why_wait(model, exhausted=True).startswith("0 masks were answered"), (
        "or every run would be a round"
    )
    new = answer_no_object([first])
    assert new
    assert not why_wait(store, "nano", new)
    assert why_wait(store, "nano", new + 1).startswith(f"{new} masks")
    assert not why_wait(store, "other", new + 1), "another model's round has not tried"


def test_a_mask_that_all_others_took_away_is_not_learnt_from(store: Store, tmp_path: Path) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 100)
    task = side.tasks()[0]
    regions = task["predictions"][0]["result"]
    side.answer(task, regions)
    side.answer(task, regions[1:], user=2)
    pull_answers(store, side.queue)
    [image] = read_answers(store)
    assert len(image.masks) == len(regions) - 1 == 3


def test_listening_goes_on_whatever_a_pull_dies_of() -> None:
    from flows.webhook import Puller

    said, tried = [], threading.Semaphore(0)
    troubles = [TransientError("the server is down"), RuntimeError("token=secret-word")]

    def fetch() -> Any:
        tried.release()
        raise troubles.pop(0) if troubles else TransientError("still")

    puller = Puller(fetch, 3000, said.append, lambda: said.append("gave up"))
    puller.start()
    for _ in range(2):
        assert tried.acquire(timeout=30)
        puller.wake()
    assert tried.acquire(timeout=30)
    puller.stop()
    assert said[:2] == ["the server is down", "a pull failed (RuntimeError); the next one tries again"]
    assert "gave up" not in said


def test_listening_ends_where_every_pull_fails_alike_and_shows_the_place_but_no_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.webhook import serve

    monkeypatch.setenv("GAPMAP_WEBHOOK_SECRET", "a-shared-secret")
    odd = "token=secret-word"
    pulls = iter([KeyError(odd), TransientError("the server is down")])

    def fetch() -> Any:
        raise next(pulls, KeyError(odd))

    with pytest.raises(GapmapError, match=r"5 pulls in a row failed alike \(KeyError\).*No answer is lost"):
        serve(fetch, host="127.0.0.1", port=free_port(), every_s=0.01)
    said = capsys.readouterr()
    assert said.err.count("in fetch\n") == 1 + 5, "those before the one that was foreseen do not count"
    assert "test_review_commands.py" in said.err
    assert "secret-word" not in said.out + said.err


KILLED = """
import sys
from pathlib import Path
from engine.review.connection import Connection
from engine.review.label_studio import LabelStudioQueue
from engine.review.push import push_masks
from engine.store import Store
url, token, name, media, store, budget = sys.argv[1:]
queue = LabelStudioQueue(Connection(url, token), name, Path(media), f"/data/local-files/?d={name}/")
print("begun", flush=True)
push_masks(Store(store), queue, int(budget))
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_push_killed_at_any_moment_sends_everything_once(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 at ten moments spread over the time that a push takes, each push asked for more than the one before."""
    store = Store(str(tmp_path / "masks"))
    label_pool(store, write_pool(tmp_path / "pool", 60), masks=2)
    queue = server_queue(label_studio)
    name = queue.name.rpartition("/")[2]

    def push(budget: int) -> subprocess.Popen[str]:
        places = [label_studio.url, label_studio.token, name, str(label_studio.media / name)]
        command = [sys.executable, "-c", KILLED, *places, str(tmp_path / "masks"), str(budget)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process

    whole = push(10)
    begun = time.monotonic()
    assert whole.communicate(timeout=300)[0] == "done\n"
    takes = time.monotonic() - begun
    killed = 0
    for number in range(10):
        process = push(20 + 10 * number)
        time.sleep(takes * (number + 0.5) / 10)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 5
    assert push(120).communicate(timeout=300)[0] == "done\n"
    push_masks(store, queue, 120)
    tasks = ServerSide(label_studio.url, label_studio.token, queue).tasks()
    regions = [region["id"] for task in tasks for region in task["predictions"][0]["result"]]
    assert len(regions) == len(set(regions)) == 120


@contextmanager
def broken_server(
    answers: list[tuple[int, bytes]], seconds: float = 0.0, location: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that gives these answers in turn, the last one for ever, each after some seconds and with this header;
    its address, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            asked.append(f"{self.command} {self.path.partition('?')[0]}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(seconds)
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = reply

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, b'{"detail": "Invalid token."}', ConfigError, "refuses the token"),
        (403, b"{}", ConfigError, "refuses the token"),
        (413, b"too large", ConfigError, "Raise the limit of the proxy"),
        (500, b"<html>/home/someone/secret/path</html>", TransientError, "run the same command again"),
        (200, b'{"results": [{"id"', TransientError, "half an answer"),
        (400, b'{"validation_errors": {"label_config": ["no"]}}', ConfigError, "label_config"),
    ],
)
def test_a_server_that_fails_is_told_from_one_that_refuses(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    kind: type,
    said: str,
) -> None:
    monkeypatch.setattr("engine.review.connection._WAIT_S", 0.01)
    with broken_server([(status, body)]) as (url, _):
        queue = LabelStudioQueue(Connection(url, TOKEN), "broken", tmp_path / "media")
        with pytest.raises(kind, match=said) as caught:
            push_masks(store, queue, 3)
    text = str(caught.value)
    assert TOKEN not in text
    assert "/home/someone" not in text
    assert TOKEN not in repr(Connection(url, TOKEN))


@pytest.mark.parametrize(
    ("status", "body", "location", "said"),
    [
        (308, b"", "https://labels.example.org/api/projects?token=secret-word", "--queue https://labels.example.org/ls$"),
        (301, b"<html>Moved</html>", "https://me:secret-word@[::1]:8443/", r"--queue https://\[::1\]:8443/ls$"),
        (302, b"", "/ls/login/secret-word", "another path of its own"),
    ],
)  # fmt: skip
def test_a_server_that_has_moved_says_where_to(
    store: Store, tmp_path: Path, status: int, body: bytes, location: str, said: str
) -> None:
    with broken_server([(status, body)], location=location) as (url, asked):
        queue = LabelStudioQueue(Connection(f"{url}/ls", TOKEN), "moved", tmp_path / "media")
        for work in (lambda: push_masks(store, queue, 3), lambda: pull_answers(store, queue)):
            with pytest.raises(ConfigError, match=said) as caught:
                work()
            assert "secret-word" not in str(caught.value)
        assert asked == ["GET /ls/api/projects"] * 2, "once each"
    assert TOKEN not in str(caught.value)


def test_a_server_that_fails_in_passing_is_asked_again_but_nothing_is_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.review.connection._WAIT_S", 0.01)
    with broken_server([(502, b""), (503, b""), (200, b'{"fine": 1}')]) as (url, asked):
        assert Connection(url, TOKEN).get("/api/projects") == {"fine": 1}
        assert asked == ["GET /api/projects"] * 3
    with broken_server([(502, b""), (200, b"{}")]) as (url, asked):
        with pytest.raises(TransientError):
            Connection(url, TOKEN).post("/api/projects/1/import", [])
        assert asked == ["POST /api/projects/1/import"], "it may have been done"


def test_a_server_of_this_machine_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    fine = (200, b'{"access": "short-lived"}')
    with broken_server([(502, b"")]) as (proxy, by_proxy), broken_server([fine]) as (url, asked):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for host in ("127.0.0.1", "localhost"):
            address = url.replace("127.0.0.1", host)
            Connection(address, TOKEN).change("PATCH", "/api/tasks/1")
            Connection(address, "a.b.c").post("/api/projects", {})  # fetches an access token first
        assert (len(asked), by_proxy) == (6, [])
        with pytest.raises(TransientError):
            Connection("http://labels.example.org", TOKEN).post("/api/projects", {})
        assert len(by_proxy) == 1, "others are"


def test_a_server_that_is_too_slow_is_told_and_a_slow_one_waited_for(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.review.connection._WAIT_S", 0.01)
    with broken_server([(200, b'{"fine": 1}')], seconds=0.5) as (url, _):
        assert Connection(url, TOKEN).get("/api/projects") == {"fine": 1}
        queue = LabelStudioQueue(Connection(url, TOKEN, timeout_s=0.1), "slow", tmp_path / "media")
        with pytest.raises(TransientError, match="run the same command again"):
            push_masks(store, queue, 3)
    planned = store.query("SELECT state, sum(len(mask_ids)) AS masks FROM reviews GROUP BY state").to_pylist()
    assert planned in ([], [{"state": "planned", "masks": 3}])
    assert push_masks(store, FolderSide(tmp_path / "queue").queue, 3).masks == 3


def test_a_server_that_is_down_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr("engine.review.connection._WAIT_S", 0.01)
    queue = LabelStudioQueue(Connection(f"http://127.0.0.1:{free_port()}", TOKEN), "down", tmp_path / "media")
    with pytest.raises(TransientError, match="Is it running"):
        push_masks(store, queue, 3)
    side = FolderSide(tmp_path / "queue")
    assert push_masks(store, side.queue, 3).masks == 3, "another queue goes on"


@pytest.mark.slow
def test_both_kinds_of_token_work_and_a_project_may_be_renamed(
    store: Store, label_studio: LabelStudio, tmp_path: Path
) -> None:
    queue = server_queue(label_studio)
    push_masks(store, queue, 4)
    label_studio.ask(f"/api/projects/{queue.project_id}", {"title": "Renamed by hand"}, "PATCH")
    personal = label_studio.personal_token
    again = LabelStudioQueue(
        Connection(label_studio.url, personal), queue.name.rpartition("/")[2], tmp_path / "unused"
    )
    assert again.project_id == queue.project_id
    assert push_masks(store, again, 4).masks == 0
    with pytest.raises(ConfigError, match="refuses the token") as caught:
        LabelStudioQueue(Connection(label_studio.url, TOKEN), "x1", tmp_path).project_id  # noqa: B018
    assert TOKEN not in str(caught.value)


@pytest.mark.slow
def test_a_token_that_prefect_keeps_is_used_and_told_nowhere(
    store: Store, label_studio: LabelStudio, prefect_server: dict[str, str], tmp_path: Path
) -> None:
    environment = {key: value for key, value in prefect_server.items() if key != "LABEL_STUDIO_API_KEY"}

    def ask_prefect(code: str) -> None:
        code = f"import sys; from prefect.blocks.system import Secret; {code}"
        command = [sys.executable, "-c", code, "label-studio-api-key"]
        subprocess.run(
            command, env=environment, input=label_studio.token, check=True, capture_output=True, text=True
        )

    project = f"secret-{uuid4().hex[:8]}"
    command = [sys.executable, "-m", "flows.cli", "push", "--store", str(tmp_path / "masks"), "--budget", "4"]
    command += ["--queue", label_studio.url, "--media", str(label_studio.media), "--project", project]
    ask_prefect("Secret(value=sys.stdin.read()).save(sys.argv[1])")
    try:
        pushed = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
    finally:
        ask_prefect("Secret.delete(sys.argv[1])")
    assert pushed.returncode == 0, pushed.stderr
    [row] = store.query("SELECT count(*) AS tasks FROM reviews WHERE state = 'sent'").to_pylist()
    assert row["tasks"] > 0
    told = httpx.post(f"{prefect_server['PREFECT_API_URL']}/flow_runs/filter", json={}, timeout=30).text
    written = b"".join(path.read_bytes() for path in Path(store.files.root).rglob("*.parquet"))
    assert project in told
    assert label_studio.token not in pushed.stdout + pushed.stderr + told
    assert label_studio.token.encode() not in written


@pytest.mark.slow
def test_label_studio_wakes_the_listener_and_a_stranger_does_not(
    store: Store, label_studio: LabelStudio, tmp_path: Path
) -> None:
    queue = server_queue(label_studio)
    name = queue.name.rpartition("/")[2]
    push_masks(store, queue, 8)
    side = ServerSide(label_studio.url, label_studio.token, queue)
    secret, port = "a-shared-secret", free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "flows.cli", "listen", "--store", str(tmp_path / "masks")]
    command += ["--queue", label_studio.url, "--media", str(label_studio.media), "--project", name]
    command += ["--port", str(port), "--every", "3000"]
    environment = {**os.environ, "GAPMAP_WEBHOOK_SECRET": secret, "LABEL_STUDIO_API_KEY": label_studio.token}
    with (tmp_path / "listen.log").open("w") as log:
        listener = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)
    try:
        wait_for(lambda: httpx.get(url + "health").status_code == 200)
        assert httpx.post(url, content=b"{}").status_code == 403
        headers = {"X-Gapmap-Secret": secret}
        assert httpx.post(url, content=b"x" * (2 << 20), headers=headers).status_code == 413
        hook = {"url": url, "project": queue.project_id, "headers": {**headers}, "send_for_all_actions": True}
        label_studio.ask("/api/webhooks/", hook, "POST")
        task = side.tasks()[0]
        time.sleep(20)  # past the pull that every start begins with
        side.answer(task, task["predictions"][0]["result"])
        count = "SELECT count(DISTINCT annotation_id) AS n FROM labels"
        wait_for(lambda: store.query(count).to_pylist() == [{"n": 1}])
    finally:
        listener.terminate()
        listener.wait(60)
    said = (tmp_path / "listen.log").read_text()
    assert secret not in said
    assert label_studio.token not in said


def wait_for(come_true: Any, seconds: float = 120) -> None:
    """Until it is true; the last failure is raised."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if come_true():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_made_up_secret_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.webhook import SECRET_FILE, find_secret

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAPMAP_WEBHOOK_SECRET", raising=False)
    secret = find_secret()
    assert len(secret) > 30
    assert find_secret() == secret
    assert stat.S_IMODE(SECRET_FILE.stat().st_mode) == 0o600
    assert [path.name for path in SECRET_FILE.parent.iterdir()] == [SECRET_FILE.name]


@pytest.mark.slow
def test_returned_labels_are_an_event(store: Store, prefect_server: dict[str, str], tmp_path: Path) -> None:
    side = FolderSide(tmp_path / "queue")
    push_masks(store, side.queue, 4)
    task = side.tasks()[0]
    side.answer(task, task["predictions"][0]["result"])
    command = [sys.executable, "-m", "flows.cli", "pull", "--store", str(tmp_path / "masks")]
    command += ["--queue", str(tmp_path / "queue")]
    pulled = subprocess.run(
        command, cwd=ROOT, env=prefect_server, capture_output=True, text=True, timeout=300
    )
    assert pulled.returncode == 0, pulled.stderr
    asked = {"filter": {"event": {"name": ["gapmap.labels.returned"]}}}
    events: list[dict[str, Any]] = []

    def came() -> bool:
        found = httpx.post(
            f"{prefect_server['PREFECT_API_URL']}/events/filter", json=asked, timeout=30
        ).json()
        events[:] = found["events"]
        return bool(events)

    wait_for(came)
    assert events[0]["resource"]["prefect.resource.id"] == "gapmap.labels"
    assert events[0]["payload"]["answers"] == 1
    assert json.dumps(events[0]["payload"])

    other = side.tasks()[1]
    side.answer(other, other["predictions"][0]["result"])
    command[3:4] = ["push", "--budget", "4"]
    pushed = subprocess.run(
        command, cwd=ROOT, env=prefect_server, capture_output=True, text=True, timeout=300
    )
    assert "1 new or changed answers fetched first" in pushed.stdout, pushed.stderr
    wait_for(lambda: came() and len(events) == 2)
