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
from flows.pseudolabel import RunSummary, pseudolabel
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


def test_a_dead_link_that_is_all_a_run_has_to_do_becomes_a_row_if_the_pool_answers_elsewhere(
    web, labeller, store
) -> None:  # fmt: skip
    [dead, other, good] = items(web, "down/b.png", "down/c.png", "b.png")
    with pytest.raises(TransientError, match="no other file of it could be read"):
        labeller.label([dead], give_up=True, elsewhere=[dead, other])
    assert store.query(ROWS).num_rows == 0
    report = labeller.label([dead], give_up=True, elsewhere=[dead, other, good])
    assert report.errors == {"unreachable": 1}
    assert store.query(ROWS).to_pylist() == [{"uri": dead.uri, "error_kind": "unreachable", "masked": False}]


def test_dead_links_behind_what_a_run_has_read_become_rows(web, labeller, store) -> None:
    labeller.label(items(web, "b.png"))
    assert labeller.label(items(web, "down/b.png", "down/c.png"), give_up=True).errors == {"unreachable": 2}


def test_a_storage_that_goes_away_in_the_middle_of_a_run_makes_no_rows(web, labeller, store) -> None:
    labeller.label(items(web, "b.png"))
    web.shutdown()
    web.server_close()
    with pytest.raises(TransientError, match="no other file of it could be read"):
        labeller.label(items(web, "sub/c.JPG"), give_up=True)
    assert store.query(ROWS).num_rows == 1


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
def test_a_list_that_gains_a_dead_link_is_labelled_to_its_end(
    web, prefect_server, store, tmp_path, monkeypatch
) -> None:  # fmt: skip
    at_once = label_shard.with_options(retry_delay_seconds=0, retry_jitter_factor=None)
    monkeypatch.setattr("flows.pseudolabel.label_shard", at_once)
    few = GenerateSettings(points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0)
    urls = tmp_path / "images.txt"

    def label(*paths: str) -> RunSummary:
        urls.write_text("\n".join(f"{web.url}/{path}" for path in paths))
        with temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}):
            return pseudolabel(str(urls), store.files.root, generate=few, shard_size=2, device="cpu")

    begun = label("down/b.png", "down/c.png", "b.png")
    assert (begun.images, begun.errors) == (3, {"unreachable": 2}), "what lies behind dead links is reached"
    gained = label("down/b.png", "down/c.png", "b.png", "down/d.png")
    assert (gained.images, gained.errors) == (1, {"unreachable": 1})


@pytest.mark.slow
def test_refused_credentials_are_not_tried_again(web, prefect_server, labeller, store) -> None:
    with pytest.raises(ConfigError, match="refuses these credentials"):
        run_task(prefect_server, items(web, "b.png", "locked/b.png"), labeller)
    assert web.asked["/locked/b.png"] == 1
    assert store.query(ROWS).num_rows == 0
