"""What the README tells: deploy, start a worker, run the deployment; against a real server and worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deployed import ROOT, deploy_all, prefect, running_worker
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.exceptions import ParameterTypeError

from engine.store import Store


def test_prefect_yaml_has_no_misspelt_keys() -> None:
    """Prefect passes over keys it does not know, so a typing error would silently change nothing."""
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    understood = PrefectYamlModel.model_validate(written).model_dump(exclude_unset=True, by_alias=True)
    assert not unknown_keys(written, understood)


def test_a_misspelt_key_would_be_found() -> None:
    written = {
        "deployments": [{"name": "x", "concurency_limit": {"limit": 1}, "work_pool": {"nam": "local"}}]
    }
    understood = PrefectYamlModel.model_validate(written).model_dump(exclude_unset=True, by_alias=True)
    assert unknown_keys(written, understood) == [
        ".deployments[0].concurency_limit",
        ".deployments[0].work_pool.nam",
    ]


def test_deployed_parameters_are_those_of_the_flow() -> None:
    from flows.finetune import finetune
    from flows.pseudolabel import pseudolabel
    from flows.review import review_pull, review_push
    from flows.round import round
    from flows.triage import triage

    flows = {
        "flows/pseudolabel.py:pseudolabel": pseudolabel,
        "flows/triage.py:triage": triage,
        "flows/finetune.py:finetune": finetune,
        "flows/review.py:review_push": review_push,
        "flows/review.py:review_pull": review_pull,
        "flows/round.py:round": round,
    }
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [deployment["entrypoint"] for deployment in deployments] == list(flows)
    for deployment in deployments:
        properties = flows[deployment["entrypoint"]].parameters.properties
        assert set(deployment["parameters"]) <= set(properties)
        assert deployment["concurrency_limit"]["limit"] == 1
        assert not any(schedule["active"] for schedule in deployment.get("schedules", []))


@pytest.mark.parametrize(
    "parameters", [{"pool": "", "store": "s3://masks"}, {"pool": "s3://photos", "store": ""}]
)
def test_a_deployment_made_without_pool_or_store_is_refused(parameters: dict[str, str]) -> None:
    """What `prefect deploy` writes where GAPMAP_POOL or GAPMAP_STORE is not set; "" would be the checkout."""
    from flows.pseudolabel import pseudolabel

    with pytest.raises(ParameterTypeError, match="at least 1 character"):
        pseudolabel.validate_parameters(parameters)


def unknown_keys(written: Any, understood: Any, path: str = "") -> list[str]:
    if isinstance(written, dict) and isinstance(understood, dict):
        missing = [
            f"{path}.{key}"
            for key in written
            if key.replace("-", "_") not in {str(k).replace("-", "_") for k in understood}
        ]
        folded = {str(k).replace("-", "_"): v for k, v in understood.items()}
        deeper = [
            unknown_keys(v, folded.get(str(k).replace("-", "_")), f"{path}.{k}") for k, v in written.items()
        ]
        return missing + [name for names in deeper for name in names]
    if isinstance(written, list) and isinstance(understood, list):
        return [
            n
            for i, (a, b) in enumerate(zip(written, understood, strict=False))
            for n in unknown_keys(a, b, f"{path}[{i}]")
        ]
    return []


@pytest.mark.slow
def test_deploy_start_a_worker_and_run(
    prefect_server: dict[str, str], small_pool: Path, tmp_path: Path
) -> None:
    places = {"GAPMAP_POOL": str(small_pool / "0[34].png"), "GAPMAP_STORE": str(tmp_path / "deployed")}
    deploy_all(prefect_server, **places)
    run = ("deployment", "run", "pseudolabel/default", "--watch")
    another = {
        "pool": str(small_pool),
        "store": str(tmp_path / "store"),
        "generate": {"points_per_side": 3, "pred_iou_thresh": 0, "stability_score_thresh": 0},
        "shard_size": 5,
        "heads": "weights/sam-nano.heads.safetensors",  # from the checkout, wherever the worker was started
    }
    with running_worker(prefect_server, tmp_path) as log:
        as_deployed = prefect(prefect_server, *run)
        assert as_deployed.returncode == 0, as_deployed.stdout + as_deployed.stderr
        ran = prefect(prefect_server, *run, "--params", json.dumps(another))
        assert ran.returncode == 0, ran.stdout + ran.stderr + log.read_text()
    names = "SELECT regexp_extract(uri, '[^/]+$') AS name FROM images ORDER BY name"
    deployed_store = Store(str(tmp_path / "deployed"))
    assert deployed_store.query(names).to_pylist() == [{"name": "03.png"}, {"name": "04.png"}]
    store = Store(str(tmp_path / "store"))
    assert store.query("SELECT count(*) AS n FROM images").to_pylist() == [{"n": 13}]
    assert store.query("SELECT count(*) AS n FROM masks").to_pylist()[0]["n"] > 0
    api = prefect_server["PREFECT_API_URL"]
    keys = {artifact["key"] for artifact in httpx.post(f"{api}/artifacts/filter", json={}, timeout=30).json()}
    assert {"pseudolabel-progress", "pseudolabel-results", "pseudolabel-most-uncertain"} <= keys
    tasks = httpx.post(f"{api}/task_runs/filter", json={}, timeout=30).json()
    assert sum(task["name"].startswith("shard-") for task in tasks) >= 3, "one task run a shard"
