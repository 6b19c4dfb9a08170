"""`gapmap report`: a round as one page, made from the store alone."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from round_rows import QUEUE, answer, decide, label_again, read_masks, step, teach, whole_round
from store_rows import MODEL, fetch, image_row, mask_rows, tables_of

from engine.masks.map_crop import MapCrop
from engine.masks.rle import decode_rle, encode_masks
from engine.report.round_page import describe_round, read_report, render_page, summarise_round
from engine.report.round_report import write_round_report
from engine.report.round_scope import find_scope
from engine.store import Store
from engine.triage.accept_error import bound_share
from flows.cli import main
from schemas.errors import ConfigError
from schemas.settings import TriageSettings
from schemas.tables import MAPS

NEW = "nano@ba9876543210"
HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}.png"


def label(folder: Path, names: list[str], *, heads: bool = True, maps: bool = True) -> Store:
    """A store with six masks an image, a copy of the first image and a broken file."""
    store, rng = Store(str(folder / "store")), np.random.default_rng(0)
    (folder / "pool").mkdir()
    rows, masks, crops = [], [], []
    for name in names:
        path = folder / "pool" / name
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path, "PNG")
        image_id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        rows.append(image_row(f"file://{path}", image_id=image_id, n_masks=6))
        for place, mask in enumerate(mask_rows(rows[-1], "predicted_iou" if heads else "sam_score")):
            drawn = np.zeros((48, 64), bool)
            drawn[2 + 6 * place : 9 + 6 * place, 4:30] = True
            mask |= {"rle": encode_masks(drawn[None])[0], "area": int(drawn.sum())}
            if heads:
                mask |= {"predicted_iou": 1 - mask["uncertainty"], "model_gap": 0.1, "prompt_gap": -0.05}
                mask |= {"task_gap": 0.2, "heads": "0" * 12}
            if maps:
                mask |= {"map_mean": 0.3, "map_source": "refiner"}
                of = {"mask_id": mask["mask_id"], "image_id": image_id, "x0": 0.0, "y0": 0.0, "x1": 64.0}
                crops.append(of | {"y1": 48.0, "rows": 2, "columns": 2, "values": b"\0\xff\x40\x80"})
                crops[-1]["map_source"] = "refiner"
            masks.append(mask)
    rows.append(image_row(f"file://{folder}/pool/copy.png", image_id=rows[0]["image_id"], n_masks=6))
    broken = {"error_kind": "truncated", "error": "The file ends too early", "image_id": None}
    rows.append(image_row(f"file://{folder}/pool/broken.png", n_masks=0, **broken))
    images, tables = tables_of(rows)
    tables["masks"] = pa.Table.from_pylist(masks, schema=tables["masks"].schema)
    if maps:
        schema = pa.schema([field for field in MAPS if field.name not in {"model", "attempt"}])
        tables["maps"] = pa.Table.from_pylist(crops, schema=schema)
    store.commit_shard(MODEL, images, tables)
    return store


class Page(HTMLParser):
    """What is in a page: its words by section, its tags and what they lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tags: list[str] = []
        self.leads: list[str] = []
        self.ids: list[str] = []
        self._open = "head"
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        of = dict(attrs)
        assert not [name for name in of if name.startswith("on")]
        if tag == "section":
            self._open = str(of["id"])
        self.ids += [str(of["id"])] if "id" in of and tag not in ("path", "clippath") else []
        self.leads += [
            str(of[name]) for name in ("src", "href", "xlink:href", "data", "action") if name in of
        ]

    def handle_data(self, data: str) -> None:
        self.sections[self._open] = " ".join(f"{self.sections.get(self._open, '')} {data}".split())


def read(store: Store, **changes: object) -> Page:
    return Page(render_page(read_report(store), **changes))  # type: ignore[arg-type]


def test_the_page_of_a_whole_round_has_every_section(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    whole_round(store, MODEL, NEW, asked=10, answered=8)
    report = read_report(store)
    error = SimpleNamespace(rate=0.04, low=0.01, high=0.11, n=50, drawn=60)
    text = render_page(report, error)
    page = Page(text)
    assert list(page.sections)[1:] == (
        ["labelled", "scores", "calibration", "triage", "answers", "gallery", "efficiency", "gate", "cost"]
    )
    assert 'class="none"' not in text, "nothing is left out"
    assert page.tags.count("svg") == 6 + 3, "six scores, calibration, label efficiency, gate"
    assert page.tags.count("img") == 12 * 3
    assert len(text) < 4_000_000
    assert "before" in page.sections["calibration"]
    assert "4.0 % (1.0 % … 11.0 %, 95 %): people judged 50 of 60" in page.sections["triage"]
    assert "71.0 % → 76.0 %" in page.sections["efficiency"]
    assert "no task loses more than 0.5 points" in page.sections["gate"]
    for name in ("pseudolabel", "triage", "push", "pull", "finetune", "promote", "rescore"):
        assert name in page.sections["cost"]
    assert ("round", "r1") in describe_round(report)
    assert f"{NEW} was promoted" in summarise_round(report)


def test_numbers_of_the_page_are_those_that_sql_gives(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    whole_round(store, MODEL, NEW, asked=10, answered=8)
    page, of = read(store), f"model = '{MODEL}'"
    [(masks,)] = fetch(store, f"SELECT count(*) FROM masks WHERE {of} AND replaced_by IS NULL")
    assert f"Images 4 by content; 1 more file is a copy Masks {masks} " in page.sections["labelled"]
    assert "truncated 1 broken.png The file ends too early" in page.sections["labelled"]
    sql = f"SELECT decision, count(*), avg(p_good) FROM decisions WHERE {of} GROUP BY ALL"
    decided = fetch(store, sql)
    assert {name for name, _, _ in decided} == {"accept", "people", "larger model"}
    total = sum(n for _, n, _ in decided)
    for name, n, good in decided:
        assert f" {name} {n} {100 * n / total:.1f} % {good:.2f} " in page.sections["triage"]
    sql = "SELECT verdict, count(*), avg(iou) FROM labels GROUP BY ALL"
    for verdict, n, iou in fetch(store, sql):
        told = "–" if iou is None else f"{iou:.2f}"
        assert f" {verdict} {n} {n} {told} " in page.sections["answers"]
    [(seconds,)] = fetch(store, "SELECT sum(seconds) FROM labels")
    assert f"People {seconds:.0f} s" in page.sections["cost"]
    assert "better prompt 3 2 +0.200 " in page.sections["triage"]
    sql = f"""SELECT count(*), avg(predicted_iou), avg(coalesce(l.iou, 0)) FROM labels l JOIN masks m USING (mask_id)
              WHERE m.{of} GROUP BY least(floor(predicted_iou * 10), 9) ORDER BY avg(predicted_iou)"""
    report = read_report(store)
    before = report.calibrations[0]
    rows = list(zip(before.count, before.predicted, before.true, strict=True))
    assert rows == [(n, pytest.approx(p), pytest.approx(t)) for n, p, t in fetch(store, sql)]
    for histogram in report.data.scores:
        assert sum(map(sum, histogram.counts.values())) == masks


def test_the_page_tells_what_is_for_people_what_was_sent_and_what_waits(tmp_path: Path) -> None:
    """Twelve masks: three are sent, two of those answered, four more are for people."""
    store = label(tmp_path, ["a.png", "b.png"])
    decide(store, MODEL, asked=6)
    answer(store, MODEL, count=2)
    third = read_masks(store, MODEL)[2]
    row = {"queue": QUEUE, "item_key": "f" * 32, "task_id": "9", "state": "sent", "model": MODEL}
    row |= {"mask_ids": [third["mask_id"]], "chosen_by": ["uncertain"], "written_at": datetime.now(UTC)}
    store.append(
        "reviews", [row | {name: third[name] for name in ("image_id", "uncertainty", "width", "height")}]
    )
    page = read(store)
    assert "for people (4" in page.sections["scores"]
    assert "answered by people (2" in page.sections["scores"]
    assert "3 masks sent, 1 waiting for an answer." in page.sections["answers"]
    assert "3 accepted, 4 for people, 1 sent and waiting, 2 answered so far." in page.sections["head"]


def test_the_page_leads_nowhere_out_of_itself(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    whole_round(store, MODEL, NEW, asked=10, answered=8)
    text = render_page(read_report(store))
    page = Page(text)
    assert not re.search(r"https?://|@import|<script|<link|<iframe", text)
    assert all(lead.startswith(("#", "data:image/jpeg;base64,")) for lead in page.leads)
    assert all(lead.startswith("#") for lead in re.findall(r"url\(([^)]*)\)", text))
    assert len(set(page.ids)) == len(page.ids)
    assert "default-src 'none'" in text


def test_names_and_words_of_others_stay_words(tmp_path: Path) -> None:
    """A file may be called anything, and so may a model, a verdict's reason, and what a step came to."""
    store = label(tmp_path, [HOSTILE.replace("/", "")])
    answer(store, MODEL, count=2, annotator="<script>alert(2)</script>")
    teach(store, MODEL, NEW)
    evil = {"<b>key</b>": "</table><script>alert(3)</script>", "reason": "<i>why</i>"}
    now = datetime.now(UTC)
    store.append("rounds", [step("pseudolabel", MODEL, evil, now, round_id="<u>r</u>")])
    store.append("rounds", [step("finetune", MODEL, evil, now, round_id="<u>r</u>", outcome="skipped")])
    text = render_page(read_report(store))
    assert not re.search(r"<script|<img src=x|<b>key|<i>why|<u>r", text)
    assert HOSTILE in unescape(text)
    assert Page(text).tags.count("img") == 6 * 3
    assert "<u>r</u>" in unescape(text)


def test_a_store_without_heads_and_maps_says_so(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png", "b.png"], heads=False, maps=False)
    answer(store, MODEL, count=3)
    page = read(store)
    assert "Uncertainty is 1 − SamScore" in page.sections["scores"]
    assert "No heads scored these masks" in page.sections["scores"]
    assert "There are no uncertainty maps" in page.sections["scores"]
    assert "there is no predicted IoU to hold against answers" in page.sections["calibration"]
    assert "no map" in page.sections["gallery"]
    assert page.tags.count("img") == 12 * 2


def test_a_store_without_rounds_or_answers_gives_the_page_of_its_newest_model(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png"])
    page = read(store)
    assert "The store has no round yet" in page.sections["head"]
    assert f"{MODEL} 1 image with 6 masks." in page.sections["head"]
    for section, words in {
        "scores": "All 6 masks: nothing was decided or asked of them.",
        "calibration": "Nobody has answered for masks of this model yet.",
        "triage": "Nothing was decided of these masks yet.",
        "answers": "Nobody has answered yet.",
        "efficiency": "No version of this model was fine-tuned yet.",
        "gate": "No version was judged yet.",
        "cost": "Nobody has answered, and no step of a round was timed.",
    }.items():
        assert words in page.sections[section]


def test_a_step_that_was_skipped_says_why(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png"])
    why = {"reason": "3 answers are too few"}
    store.append("rounds", [step("promote", MODEL, why, datetime.now(UTC), outcome="skipped")])
    assert "The step promote was skipped: 3 answers are too few." in read(store).sections["gate"]


def test_images_that_are_gone_are_named_and_others_shown(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "pool" / "b.png").unlink()
    Image.new("RGB", (64, 48)).save(tmp_path / "pool" / "c.png")
    page = read(store)
    assert page.tags.count("img") == 6 * 3
    assert re.search("b.png : The file is not there", page.sections["gallery"])
    assert re.search("c.png : the file was replaced", page.sections["gallery"])


def test_an_older_round_is_told_of_by_its_own_rows(tmp_path: Path) -> None:
    store = label(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    whole_round(store, MODEL, NEW, asked=4, answered=2)
    later = datetime.now(UTC) + timedelta(seconds=1)
    store.append("rounds", [step("pseudolabel", NEW, {"images": 4}, later, round_id="r2")])
    newest, older = read_report(store), read_report(store, "r1")
    assert (newest.data.scope.model, older.data.scope.model) == (NEW, MODEL)
    assert (newest.data.people["masks"], newest.data.people["masks_so_far"]) == (0, 2)
    assert older.data.people["masks"] == 2
    assert older.data.scope.compared == (MODEL, NEW)
    assert newest.data.gate is None
    with pytest.raises(ConfigError, match=r"no round 'r3'.*Known: r1, r2"):
        read_report(store, "r3")


def test_a_round_keeps_its_decisions_when_more_is_decided_while_people_answer_and_after_it(
    tmp_path: Path,
) -> None:
    """Eighteen masks; of an image the newest triage alone is seen."""
    store = label(tmp_path, ["a.png", "b.png", "c.png"])
    began = datetime.now(UTC) - timedelta(minutes=2)
    decide(store, MODEL, asked=4)
    total = {"p_good": 0.8, "cost": 20.0, "gain": 0.0}
    numbers = {"decisions": {"accept": {**total, "masks": 11}, "larger model": {**total, "masks": 0}}}
    numbers["decisions"]["people"] = {**total, "masks": 7}
    steps = [step("pseudolabel", MODEL, {}, began), step("triage", MODEL, numbers, began)]
    store.append("rounds", steps)
    decide(store, MODEL, asked=6, triage="t2")
    told = [(of["decision"], of["masks"]) for of in read_report(store).data.decisions]
    assert told == [("accept", 9), ("people", 6), ("larger model", 3)]

    store.append("rounds", [step("pseudolabel", MODEL, {}, datetime.now(UTC), round_id="r2")])
    told = [(of["decision"], of["masks"]) for of in read_report(store, "r1").data.decisions]
    assert told == [("accept", 9), ("people", 6), ("larger model", 3)]
    assert read_report(store).data.decisions == []
    decide(store, MODEL, asked=2, triage="t3")
    older = read_report(store, "r1")
    assert older.data.decisions == [
        {"decision": "accept", "share": pytest.approx(11 / 18), **total, "masks": 11},
        {"decision": "people", "share": pytest.approx(7 / 18), **total, "masks": 7},
    ], "as its triage wrote them down"
    assert " accept 11 61.1 % 0.80 " in Page(render_page(older)).sections["triage"]


def test_a_new_version_is_judged_by_images_that_it_did_not_learn_from(tmp_path: Path) -> None:
    store = label(tmp_path, [f"{place}.png" for place in range(12)])
    whole_round(store, MODEL, NEW, asked=40, answered=40)
    before, after = read_report(store).calibrations
    kept_out = sum(
        int(image_id[:8], 16) % 5 == 0 for (image_id,) in fetch(store, "SELECT image_id FROM labels")
    )
    assert sum(before.count) == 40
    assert 0 < sum(after.count) == kept_out
    assert after.learnt == 40 - kept_out


@pytest.mark.parametrize("scored_first", [False, True])
def test_a_new_version_is_not_judged_by_answers_that_its_heads_were_fitted_to(
    tmp_path: Path, scored_first: bool
) -> None:
    """People answer while it learns, or once it has labelled the pool."""
    store = label(tmp_path, [f"{place}.png" for place in range(12)])
    teach(store, MODEL, NEW)
    if scored_first:
        label_again(store, MODEL, NEW)
    answer(store, MODEL, count=40)
    if not scored_first:
        label_again(store, MODEL, NEW)
    images = fetch(store, "SELECT image_id FROM labels")
    kept_out = sum(int(image_id[:8], 16) % 5 == 0 for (image_id,) in images)
    after = read_report(store).calibrations[-1]
    assert after.model == NEW
    assert 0 < kept_out < 40
    assert after.learnt == (0 if scored_first else 40 - kept_out)
    assert sum(after.count) == 40 - after.learnt


def test_a_new_version_is_judged_by_its_mask_that_is_like_the_shown_one_not_by_its_best(
    tmp_path: Path,
) -> None:
    store = label(tmp_path, ["0.png"])
    shown = read_masks(store, MODEL)[0]
    teach(store, MODEL, NEW)
    like = decode_rle([shown["rle"]], 48, 64)[0]
    right = cv2.dilate(like.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)  # what people draw
    like[:, 4] = False
    image = image_row("file:///pool/again.png", image_id=shown["image_id"], n_masks=2)
    masks = mask_rows(image, "predicted_iou")
    for mask, drawn, predicted in zip(masks, (like, right), (0.4, 0.9), strict=True):
        mask |= {"rle": encode_masks(drawn[None])[0], "predicted_iou": predicted}
    images, tables = tables_of([image])
    tables["masks"] = pa.Table.from_pylist(masks, schema=tables["masks"].schema)
    store.commit_shard(NEW, images, tables)
    answer(store, MODEL, count=1)
    after = read_report(store).calibrations[-1]
    assert (after.model, after.count) == (NEW, (1,))
    assert after.predicted == pytest.approx((0.4,))
    assert after.true == pytest.approx((like.sum() / right.sum(),))


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    from scipy.stats import binomtest

    for hits, count in ((0, 9), (3, 9), (9, 9), (40, 50)):
        exact = binomtest(hits, count).proportion_ci(0.95, "exact")
        assert bound_share(hits, count) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_command_writes_the_page_and_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, page, opened = label(tmp_path, ["a.png"]), tmp_path / "page.html", []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--store", store.files.label, "--out", str(page), "--open"])
    said = capsys.readouterr()
    assert page.read_text().startswith("<!doctype html>")
    assert opened == [page.as_uri()]
    assert f"report: {page}" in said.out
    assert "There is no browser on this machine" in said.err


@pytest.mark.parametrize("out", ["page.txt", "nowhere/page.html"])
def test_a_page_that_cannot_be_written_and_a_store_that_is_empty_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["report", "--store", str(tmp_path / "store"), "--out", str(tmp_path / out)])
    assert re.search(r"Write for example .*page.txt.html|no folder .*nowhere", capsys.readouterr().err)
    with pytest.raises(ConfigError, match="There is no store"):
        read_report(Store(str(tmp_path / "store")))


def test_a_store_with_models_alone_has_nothing_to_report(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    teach(store, MODEL, NEW)
    with pytest.raises(ConfigError, match="nothing to report"), store.open_snapshot() as snapshot:
        find_scope(snapshot)


def test_a_map_is_drawn_where_it_is(tmp_path: Path) -> None:
    """The third panel is the map's: it differs from the second, and is as large."""
    report = read_report(label(tmp_path, ["a.png"]))
    first = report.gallery.pictures[0]
    assert len({len(first.panels), 3}) == 1
    assert first.panels[1] != first.panels[2]
    assert MapCrop.from_row(first.row) is not None


def test_a_run_tells_of_the_page_in_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import results

    store, page, made = label(tmp_path, ["a.png"]), tmp_path / "page.html", []
    teach(store, MODEL, "nano@<b>|x|</b>")
    monkeypatch.setattr(results, "create_markdown_artifact", lambda text, **about: made.append((text, about)))
    assert results.report_round.fn(store, page) == page
    [(text, about)] = made
    assert about["key"] == "round-report"
    assert f"| model | {MODEL} |" in text
    assert r"nano@\<b\>\|x\|\</b\>" in text, "words of others stay words in Markdown, too"
    assert f"(<{page.as_uri()}>), `{page}`" in text


def test_accepted_masks_drawn_at_random_tell_how_many_are_wrong(tmp_path: Path) -> None:
    store, page = label(tmp_path, ["a.png", "b.png"]), tmp_path / "page.html"
    answer(store, MODEL, count=8, chosen_by="random")
    write_round_report(store, page)
    good = TriageSettings().good_iou
    [(wrong,)] = fetch(store, f"SELECT count(*) FROM labels WHERE coalesce(iou, 0) < {good}")
    told = Page(page.read_text()).sections["triage"]
    assert re.search(rf"{100 * wrong / 8:.1f} % \(.*people judged 8 of 8 accepted masks", told)


@pytest.mark.parametrize("good_iou", [0.3, 0.9])
def test_the_report_calls_wrong_what_the_triage_of_its_round_did(tmp_path: Path, good_iou: float) -> None:
    store, page = label(tmp_path, ["a.png", "b.png"]), tmp_path / "page.html"
    answer(store, MODEL, count=8, chosen_by="random")
    numbers = {"decisions": {}, "good_iou": good_iou}
    store.append("rounds", [step("triage", MODEL, numbers, datetime.now(UTC))])
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--store", store.files.label, "--out", str(page)])
    below = "SELECT count(*) FROM labels WHERE coalesce(iou, 0) < "
    [(wrong,)], [(by_default,)] = (fetch(store, below + str(of)) for of in (good_iou, 0.7))
    assert wrong != by_default
    told = Page(page.read_text()).sections["triage"]
    assert re.search(rf"{100 * wrong / 8:.1f} % \(.*people judged 8 of 8 accepted masks", told)
