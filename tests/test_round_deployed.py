"""A round as it runs at night: the deployments on a Prefect server and worker, people at a Label Studio server."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
from deployed import deploy_all, prefect, running_worker
from label_studio import LabelStudio
from review_sides import ServerSide
from store_rows import fetch

from engine.learn.answers import is_kept_out
from engine.masks.rle import decode_rle
from engine.pool import list_pool, read_image
from engine.review.connection import Connection
from engine.review.label_studio import LabelStudioQueue
from engine.review.simulated_people import SimulatedAnnotator
from engine.store import Store
from schemas.settings import PoolSettings

STEPS = ["pseudolabel", "triage", "push", "pull", "finetune", "promote", "rescore", "report"]
SMALL = {
    "generate": {"points_per_side": 10},
    "acquisition": {"per_image": 6},
    "finetune": {"steps": 3, "images": 2, "masks": 3, "rounds": 2, "check_every": 2},
    "refiner_steps": 2,
    "refit_scenes": 2,
    "judged_images": 2,
    "shard_size": 4,
}
_LEARNT, _KEPT_OUT = 5, 2


def copy_nuclei(nuclei: Path, folder: Path) -> dict[str, list[np.ndarray]]:
    """A few images of the pool, some of which are never learnt from; their true masks by image_id."""
    oracle = json.loads((nuclei / "oracle.json").read_text())
    wanted = {True: _KEPT_OUT, False: _LEARNT}
    truth: dict[str, list[np.ndarray]] = {}
    folder.mkdir()
    for image in oracle["images"]:
        if image["width"] > 260 or not any(wanted.values()):
            continue
        [item] = list_pool(str(nuclei / image["file_name"]), PoolSettings())
        image_id = str(read_image(item, PoolSettings()).image_id)
        of = [row for row in oracle["annotations"] if row["image_id"] == image["id"]]
        if not wanted[is_kept_out(image_id)] or not 10 <= len(of) <= 60:
            continue
        wanted[is_kept_out(image_id)] -= 1
        shutil.copy(nuclei / image["file_name"], folder)
        rles = [row["segmentation"]["counts"] for row in of]
        truth[image_id] = list(decode_rle(rles, image["height"], image["width"]).astype(bool))
    assert not any(wanted.values())
    return truth


def flow_runs(server: dict[str, str], flow: str, store: Store) -> list[dict[str, Any]]:
    """Those on this store: other tests' runs are on the same server."""
    asked = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
    api = server["PREFECT_API_URL"]
    runs = httpx.post(f"{api}/flow_runs/filter", json=asked, timeout=30).json()
    return [of for of in runs if of["parameters"].get("store") == store.files.label]


@pytest.mark.slow
def test_a_deployed_round_with_people_at_label_studio(
    shared_data: Path, prefect_server: dict[str, str], label_studio: LabelStudio, tmp_path: Path
) -> None:
    nuclei = shared_data / "nuclei" / "pool"
    if not (nuclei / "oracle.json").is_file():
        pytest.skip(f"the nuclei and their true masks are not there (looked for {nuclei / 'oracle.json'})")
    truth = copy_nuclei(nuclei, tmp_path / "pool")
    store = Store(str(tmp_path / "masks"))
    project = f"round-{uuid4().hex[:8]}"
    parameters = {
        "out": str(tmp_path / "models"),
        "queue": label_studio.url,
        "project": project,
        "media": str(label_studio.media),
        "larger": "none",
        "budget": 36,
        "least_new": 30,
        "report": str(tmp_path / "round.html"),
        "settings": SMALL,
    }
    places = {"GAPMAP_POOL": str(tmp_path / "pool"), "GAPMAP_STORE": store.files.label}
    deploy_all(prefect_server, **places)
    run = ("deployment", "run", "round/default", "--watch", "--params", json.dumps(parameters))
    secret = {"LABEL_STUDIO_API_KEY": label_studio.token}
    with running_worker(prefect_server, tmp_path, **secret) as log:
        begun = prefect(prefect_server, *run)
        assert begun.returncode == 0, begun.stdout + begun.stderr + log.read_text()
        steps = fetch(store, "SELECT step FROM rounds ORDER BY ended_at")
        assert steps == [(step,) for step in STEPS[:3]], "it waits for people"

        connection = Connection(label_studio.url, label_studio.token)
        folder = label_studio.media / project
        queue = LabelStudioQueue(connection, project, folder, f"/data/local-files/?d={project}/")
        people = ServerSide(label_studio.url, label_studio.token, queue)
        annotator = SimulatedAnnotator(truth, noise=1.0)
        tasks = people.tasks()
        for task in tasks:
            answer = annotator.answer(task)
            people.answer(task, answer["result"], skip=answer["was_cancelled"])

        ended = prefect(prefect_server, *run)
        assert ended.returncode == 0, ended.stdout + ended.stderr + log.read_text()
        deadline = time.monotonic() + 120
        while not any(of["state_name"] == "Skipped" for of in flow_runs(prefect_server, "finetune", store)):
            assert time.monotonic() < deadline, "returned labels start the deployment that fine-tunes"
            time.sleep(1)

    rows = fetch(store, "SELECT step, outcome FROM rounds ORDER BY ended_at")
    assert [step for step, _ in rows] == STEPS
    assert {outcome for step, outcome in rows if step != "rescore"} == {"done"}
    asked = fetch(store, "SELECT count(*), sum(len(mask_ids)) FROM reviews WHERE state = 'sent'")
    assert asked == [(len(tasks), 36)]
    verdicts = dict(fetch(store, "SELECT verdict, count(*) FROM labels GROUP BY verdict"))
    assert sum(verdicts.values()) == 36
    assert set(verdicts) <= {"correct", "fixed", "no object"}
    assert verdicts["fixed"] > 0
    [(model, parent, data)] = fetch(store, "SELECT model, parent, data FROM models WHERE parent IS NOT NULL")
    assert parent.startswith("sam-nano@")
    assert 0 < json.loads(data)["human"]["answers"] <= _LEARNT, "what is kept out teaches nothing"
    [(judged, action, numbers)] = fetch(store, "SELECT model, action, numbers FROM promotions")
    assert judged == model
    assert action in ("promoted", "refused")
    assert 0 < json.loads(numbers)["images"]["answers"] <= _KEPT_OUT
    page = (tmp_path / "round.html").read_text()
    assert model in page
    assert label_studio.token not in page + log.read_text()
    states = [of["state_type"] for of in flow_runs(prefect_server, "round", store)]
    assert states == ["COMPLETED", "COMPLETED"]
    assert {
        of["state_name"]
        for of in flow_runs(prefect_server, "finetune", store)
        if not of["parent_task_run_id"]
    } == {"Skipped"}
