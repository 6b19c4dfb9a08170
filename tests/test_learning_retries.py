"""A storage that fails in passing while a model learns, is judged or gets its refiner and heads: the night is not lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from coco_folder import write_coco
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from engine.learn.data import read_coco
from engine.learn.splits import split_groups
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from engine.store import Store
from flows.finetune import FinetuneSummary, finetune
from schemas.settings import FinetuneSettings
from tasks.judge_version import judge_version
from tasks.label_shard import DEVICE_LIMIT
from tasks.learn_model import learn_model
from tasks.progress import hearing_steps
from tasks.refit_version import refit_version

if TYPE_CHECKING:
    from web_pool import Server

T = TypeVar("T")
FEW = FinetuneSettings(steps=2, images=1, masks=1, rounds=2)

pytest_plugins = ("web_pool",)
pytestmark = pytest.mark.slow


def write_weak_set(folder: Path, web: Server, *, kept_out: bool) -> tuple[Path, str]:
    """A COCO folder, one picture of which the storage refuses five times (one of those that are kept out, or not); and what is
    asked of the server for it."""
    images = json.loads((write_coco(folder, range(970_000, 970_010)) / "annotations.json").read_text())
    [name, *_] = [image.name for image in split_groups(read_coco(folder))[kept_out]]
    weak = f"/weak/{folder.name}/{name}"
    for image in images["images"]:
        if image["file_name"] == name:
            image |= {"file_name": web.url + weak, "group": name}
    (folder / "annotations.json").write_text(json.dumps(images))
    return folder, weak


def run(server: dict[str, str], work: Callable[[], T]) -> T:
    """As a flow on a real server."""

    @flow
    def one_task() -> T:
        return work()

    with temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}):
        return one_task()


def test_a_model_learns_from_images_that_come_late(web, prefect_server, tmp_path: Path) -> None:
    folder, weak = write_weak_set(tmp_path / "web" / "labelled", web, kept_out=False)
    at_once = learn_model.with_options(retry_delay_seconds=0)
    nano, sets = load_segmenter("sam-nano", device="cpu"), {"labelled": read_coco(folder)}
    made = run(prefect_server, lambda: at_once(nano, sets, None, FEW, tmp_path / "models", 1.0, None))
    assert made.path.is_file()
    assert web.asked[weak] >= 6, "four times in the first try, then again"


def test_a_version_is_judged_by_images_that_come_late(web, prefect_server, tmp_path: Path) -> None:
    folder, weak = write_weak_set(tmp_path / "web" / "labelled", web, kept_out=True)
    at_once = judge_version.with_options(retry_delay_seconds=0)
    where = (Store(str(tmp_path / "masks")), "sam2-mini@0", "sam2-mini", [folder], "sam-nano", None, "cpu")
    judged = run(prefect_server, lambda: at_once(*where))
    assert judged["differences"]
    assert web.asked[weak] >= 6


def test_a_refiner_and_heads_are_fitted_to_images_that_come_late(web, prefect_server, tmp_path: Path) -> None:
    folder, weak = write_weak_set(tmp_path / "web" / "labelled", web, kept_out=False)
    weights = tmp_path / "new.safetensors"
    shutil.copy(MODELS["sam-nano"].path, weights)
    at_once = refit_version.with_options(retry_delay_seconds=0)
    run(prefect_server, lambda: at_once(weights, [folder], None, 2, 0, None, "cpu", 0))
    assert (tmp_path / "new.refiner.safetensors").is_file()
    assert (tmp_path / "new.heads.safetensors").is_file()
    assert web.asked[weak] >= 6


def test_learning_and_fitting_have_the_device_for_themselves(prefect_server, tmp_path: Path) -> None:
    """Each takes the one place there is, and none twice: that would wait for ever."""
    labelled = write_coco(tmp_path / "labelled", range(970_000, 970_008))
    taken: dict[str, int] = {}

    with (
        temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):

        def hear(done: int, total: int, how: str) -> None:
            if (what := how.partition(" ")[0]) not in taken:
                taken[what] = client.read_global_concurrency_limit_by_name(DEVICE_LIMIT).active_slots

        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=DEVICE_LIMIT, limit=1))
        try:
            with hearing_steps(hear):
                made = finetune(
                    str(tmp_path / "models"),
                    [str(labelled)],
                    settings=FEW,
                    refiner_steps=2,
                    refit_scenes=0,
                    device="cpu",
                )
        finally:
            client.delete_global_concurrency_limit_by_name(DEVICE_LIMIT)
    assert isinstance(made, FinetuneSummary)
    assert len(taken) > 2, taken
    assert set(taken.values()) == {1}, taken
