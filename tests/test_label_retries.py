"""A storage that fails in passing, or for one file for ever: what is tried again, and what becomes a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed

from engine.mask_maker import MaskMaker
from engine.models.loading import load_segmenter
from engine.models.segmenter import Segmenter
from engine.pseudolabel import Pseudolabeller, ShardReport
from engine.store import Store
from schemas.errors import CheckpointError, ConfigError, TransientError
from schemas.records import PoolItem
from schemas.settings import GenerateSettings, PoolSettings
from tasks.label_shard import label_shard
from tasks.progress import RunProgress
from tasks.retrying import may_help_to_retry

if TYPE_CHECKING:
    from web_pool import Server

pytest_plugins = ("web_pool",)
ROWS = "SELECT uri, error_kind, n_masks > 0 AS masked FROM images ORDER BY uri"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("sam-nano", device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def labeller(segmenter: Segmenter, store: Store) -> Pseudolabeller:
    few = GenerateSettings(points_per_side=6, pred_iou_thresh=0, stability_score_thresh=0)
    return Pseudolabeller(MaskMaker(segmenter, few), store, PoolSettings())


def items(web: Server, *paths: str) -> list[PoolItem]:
    return [PoolItem(f"{web.url}/{path}", "unversioned") for path in paths]


def test_before_the_last_try_one_bad_address_fails_the_whole_shard(web, labeller, store) -> None:
    with pytest.raises(TransientError, match=r"down/b\.png"):
        labeller.label(items(web, "b.png", "down/b.png"))
    assert store.query(ROWS).num_rows == 0


def test_on_the_last_try_it_becomes_a_row_that_stays_until_errors_are_retried(web, labeller, store) -> None:
    both = items(web, "b.png", "down/b.png")
    report = labeller.label(both, give_up=True)
    assert (report.images, report.errors) == (2, {"unreachable": 1})
    assert store.query(ROWS).to_pylist() == [
        {"uri": both[0].uri, "error_kind": None, "masked": True},
        {"uri": both[1].uri, "error_kind": "unreachable", "masked": False},
    ]
    assert labeller.find_done().pending(both) == []
    assert labeller.find_done(retry_errors=True).pending(both) == both[1:]


def test_a_storage_that_fails_for_every_file_makes_no_rows(web, labeller, store) -> None:
    counted = []
    with pytest.raises(TransientError, match="every image of the shard"):
        labeller.label(items(web, "down/b.png", "down/c.png"), lambda *n: counted.append(n), give_up=True)
    assert store.query(ROWS).num_rows == 0
    assert [sum(numbers) for numbers in zip(*counted, strict=True)] == [0, 0, 0], "the bar goes back"


@pytest.mark.parametrize(
    ("error", "again"),
    [(TransientError("x"), True), (ConfigError("x"), False), (CheckpointError("x"), False), (ValueError("x"), False)],
)  # fmt: skip
def test_only_what_failed_in_passing_is_tried_again(error: Exception, again: bool) -> None:
    assert may_help_to_retry(label_shard, None, Failed(data=error)) is again


def run_task(server: dict[str, str], shard: list[PoolItem], labeller: Pseudolabeller) -> ShardReport:
    """The task as the flow runs it, against a real server, but without its waits of 75 s and more."""

    @flow
    def one_shard() -> ShardReport:
        at_once = label_shard.with_options(retry_delay_seconds=0, retry_jitter_factor=None)
        return at_once(0, shard, labeller, RunProgress(len(shard), 0, print))

    with temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}):
        return one_shard()


@pytest.mark.slow
def test_a_pool_that_recovers_is_labelled_in_the_same_run(web, prefect_server, labeller, store) -> None:
    report = run_task(prefect_server, items(web, "b.png", "weak/sub/c.JPG"), labeller)
    assert (report.images, report.errors) == (2, {})
    assert web.asked["/weak/sub/c.JPG"] == 6, "four times in the first try, then again"
    assert store.query(ROWS).num_rows == 2


@pytest.mark.slow
def test_an_address_that_never_answers_is_given_up_on_the_fifth_try(
    web, prefect_server, labeller, store
) -> None:  # fmt: skip
    report = run_task(prefect_server, items(web, "b.png", "down/b.png"), labeller)
    assert report.errors == {"unreachable": 1}
    assert web.asked["/down/b.png"] == 5 * 4
    assert store.query(ROWS).num_rows == 2


@pytest.mark.slow
def test_refused_credentials_are_not_tried_again(web, prefect_server, labeller, store) -> None:
    with pytest.raises(ConfigError, match="refuses these credentials"):
        run_task(prefect_server, items(web, "b.png", "locked/b.png"), labeller)
    assert web.asked["/locked/b.png"] == 1
    assert store.query(ROWS).num_rows == 0
