"""A person opens the review queue in a browser, looks at masks, mends one, and the store has what was drawn."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
import pytest
from label_studio import LabelStudio
from label_studio_sdk.converter.brush import decode_rle as decode_with_sdk
from PIL import Image
from playwright.sync_api import FloatRect, Page, sync_playwright

from engine.mask_maker import MaskMaker
from engine.masks.rle import decode_rle
from engine.models.loading import load_segmenter
from engine.pool import list_pool
from engine.pseudolabel import Pseudolabeller
from engine.review.connection import Connection
from engine.review.label_studio import LabelStudioQueue
from engine.review.pull import pull_answers
from engine.review.push import push_masks
from engine.scenes import make_scene
from engine.store import Store
from engine.uncertainty.head_files import find_heads
from engine.uncertainty.refiner_files import find_refiner
from schemas.settings import GenerateSettings, PoolSettings

SIZE = (480, 640)
BLUE = np.array([0x00, 0x72, 0xB2], float)  # of the label
SEEDS = (4, 6, 7)  # of pictures with things in them, the first the clearest
WAIT_MS = 60_000


@pytest.fixture
def page() -> Iterator[Page]:
    """A tab of Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    unboxed = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=unboxed)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(WAIT_MS)
        yield page
        browser.close()


@pytest.fixture
def things(tmp_path: Path) -> dict[str, list[np.ndarray]]:
    """A pool of pictures; the exact masks of what is in them, by file name."""
    (tmp_path / "pool").mkdir()
    exact = {}
    for seed in SEEDS:
        scene, middle = make_scene(seed, SIZE[1]), slice(80, 80 + SIZE[0])
        Image.fromarray(scene.image[middle]).save(tmp_path / "pool" / f"{seed}.png")
        exact[f"{seed}.png"] = [of.mask[middle] for of in scene.masks]
    return exact


@pytest.fixture
def labeller(tmp_path: Path) -> Pseudolabeller:
    """sam-nano, with heads and a refiner."""
    segmenter, settings = load_segmenter("sam-nano"), GenerateSettings(points_per_side=8)
    maker = MaskMaker(segmenter, settings, find_heads(segmenter), find_refiner(segmenter))
    labeller = Pseudolabeller(maker, Store(str(tmp_path / "masks")), PoolSettings())
    labeller.record_model()
    return labeller


@pytest.mark.slow
def test_a_person_mends_the_most_uncertain_mask_in_the_browser(
    label_studio: LabelStudio,
    page: Page,
    tmp_path: Path,
    things: dict[str, list[np.ndarray]],
    labeller: Pseudolabeller,
) -> None:
    name = f"browser-{uuid4().hex[:8]}"
    connection = Connection(label_studio.url, label_studio.token)
    media = label_studio.media / name
    queue = LabelStudioQueue(connection, name, media, f"/data/local-files/?d={name}/")
    store = Store(str(tmp_path / "masks"))
    certain, *others = list_pool(str(tmp_path / "pool"), PoolSettings())
    for images in ([certain], others):  # so that what is most uncertain is not what came first
        labeller.label(images)
        push_masks(store, queue, 100)
    masks = store.query(
        "SELECT masks.*, uri FROM masks JOIN images USING (image_id, model) ORDER BY uncertainty DESC, mask_id"
    ).to_pylist()
    asked = [mask for mask in masks if mask["image_id"] == masks[0]["image_id"]]
    assert len({mask["image_id"] for mask in masks}) == len(SEEDS)
    assert len(asked) > 1
    assert masks[0]["uri"] != certain.uri
    shown = {mask["mask_id"]: decode_rle([mask["rle"]], *SIZE)[0] for mask in asked}

    log_in(page, label_studio)
    page.goto(f"{label_studio.url}/projects/{queue.project_id}/data?labeling=1")
    rows = page.locator(".lsf-outliner-item")
    rows.nth(len(asked) - 1).wait_for()
    assert rows.count() == len(asked)
    reasons = page.locator(".gapmap-side .lsf-richtext__line").all_inner_texts()
    begin = [f"mask {place} uncertainty {mask['uncertainty']:.2f}: " for place, mask in enumerate(asked, 1)]
    assert [reason[: len(start)] for reason, start in zip(reasons, begin, strict=True)] == begin

    tool(page, "move-tool")  # the brush's slider of sizes covers a corner of the picture
    published = read_picture(np.fromfile(media / f"{masks[0]['image_id']}.jpg", np.uint8))
    every = np.logical_or.reduce(list(shown.values()))
    assert_tinted(page, published, every)  # of another image's task no pixel would fit
    keep_screenshot(page, "review-task.png")

    mended = masks[0]["mask_id"]
    rows.first.click()
    about = page.locator(".lsf-detailed-region__meta-text").inner_text()
    assert about.replace(":", "", 1) == reasons[0]
    tool(page, "brush-tool")
    exact = things[masks[0]["uri"].rpartition("/")[2]]
    line = find_stroke(shown[mended], max(exact, key=lambda mask: iou(mask, shown[mended])))
    paint(page, line)
    for word in ("fixed", "part"):
        page.locator(f'.lsf-choice input[name="{word}"]').check()
    tool(page, "move-tool")
    stroke = draw_line(line, 15)
    assert_tinted(page, published, every | stroke)
    keep_screenshot(page, "review-answered.png")
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and "/annotations" in answer.url
    ) as sent:
        page.get_by_test_id("bottombar-submit-button").click()
    assert sent.value.status == 201

    assert pull_answers(store, queue).answers == 1
    labels = {row["region"]: row for row in store.query("FROM labels").to_pylist()}
    assert labels.keys() == shown.keys()
    row = labels.pop(mended)
    assert (row["verdict"], row["said"], row["task"]) == ("fixed", "fixed", "part")
    answer = decode_rle([row["rle"]], *SIZE)[0]
    assert iou(answer, stored_mask(label_studio, row["annotation_id"], mended)) >= 0.98
    added = answer & ~shown[mended]
    assert not (shown[mended] & ~answer).any(), "painting takes nothing away"
    assert (answer & draw_line(line, 1)).sum() >= 0.9 * draw_line(line, 1).sum()
    # How wide the brush is, the page decides.
    strokes = [draw_line(line, width) & ~shown[mended] for width in range(3, 41)]
    assert max(iou(added, stroke) for stroke in strokes) >= 0.9
    assert row["seconds"] > 0
    for other in labels.values():
        assert (other["verdict"], other["iou"], other["task"]) == ("correct", 1.0, None)


def log_in(page: Page, server: LabelStudio) -> None:
    page.goto(f"{server.url}/user/login/")
    page.fill("input[name=email]", server.email)
    page.fill("input[name=password]", server.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/user/login" not in url)


def tool(page: Page, name: str) -> None:
    page.get_by_label(name, exact=True).first.click()
    page.locator(f'.lsf-tool_active[aria-label="{name}"]').first.wait_for()
    page.mouse.move(400, 780)  # away from the picture, so that no hint covers it


def canvas_of(page: Page) -> FloatRect:
    """Where the main picture is on the page."""
    box = page.locator(".gapmap-main .konvajs-content").first.bounding_box()
    assert box is not None
    return box


def read_picture(data: np.ndarray) -> np.ndarray:
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1].copy()


def assert_tinted(page: Page, published_HW3: np.ndarray, expected_HW: np.ndarray) -> None:
    """Wait until the picture is the published one with the label's colour over the mask, and over nothing else."""
    deadline, reached = time.monotonic() + WAIT_MS / 1000, 0.0
    while time.monotonic() < deadline:
        png = np.frombuffer(page.screenshot(clip=canvas_of(page)), np.uint8)
        seen = read_picture(png).astype(float)
        size = seen.shape[1::-1]
        plain = cv2.resize(published_HW3, size, interpolation=cv2.INTER_AREA).astype(float)
        seen, plain = cv2.GaussianBlur(seen, (5, 5), 0), cv2.GaussianBlur(plain, (5, 5), 0)
        # How much of the way from the plain picture to the label's colour each pixel has gone.
        way = BLUE - plain
        opacity = ((seen - plain) * way).sum(2) / np.maximum((way**2).sum(2), 1)
        wanted = cv2.resize(expected_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        reached = max(reached, iou(opacity > 0.25, wanted))
        if reached >= 0.9:
            return
    raise AssertionError(f"what is tinted has an IoU of {reached:.3f} with the mask")


def find_stroke(mask_HW: np.ndarray, exact_HW: np.ndarray) -> np.ndarray:
    """Corners of a stroke, xy_K2: from deep inside a mask to what it misses of the thing, and along that."""
    start, missed = depth(mask_HW), depth(exact_HW & ~mask_HW)
    rows, columns = missed.argmax(0), np.flatnonzero(missed.max(0) > 3)
    assert len(columns) > 20, "the most uncertain mask misses too little for a stroke: take other SEEDS"
    y, x = np.unravel_index(start.argmax(), SIZE)
    return np.array([(x, y), *((column, rows[column]) for column in columns[::4])])


def depth(mask_HW: np.ndarray) -> np.ndarray:
    """Pixels to the nearest one outside."""
    return np.asarray(cv2.distanceTransform(mask_HW.astype(np.uint8), cv2.DIST_L2, 5))


def paint(page: Page, line_K2: np.ndarray) -> None:
    """Press, move and let go, along a line in pixels of the image."""
    box = canvas_of(page)
    scale = box["width"] / SIZE[1], box["height"] / SIZE[0]
    first, *others = ((line_K2 + 0.5) * scale + (box["x"], box["y"])).tolist()
    page.mouse.move(*first)
    page.mouse.down()
    for place in others:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def draw_line(line_K2: np.ndarray, width: int) -> np.ndarray:
    drawn = np.zeros(SIZE, np.uint8)
    cv2.polylines(drawn, [line_K2.astype(np.int32)], False, 1, width)
    return drawn.astype(bool)


def stored_mask(server: LabelStudio, annotation: str, region: str) -> np.ndarray:
    """What Label Studio itself keeps, as its SDK reads it."""
    results: list[dict[str, Any]] = server.ask(f"/api/annotations/{annotation}/")["result"]
    [brush] = [each for each in results if each["id"] == region and each["type"] == "brushlabels"]
    return decode_with_sdk(brush["value"]["rle"]).reshape(*SIZE, 4)[..., 3] >= 128


def iou(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    return float((one_HW & other_HW).sum() / max((one_HW | other_HW).sum(), 1))


def keep_screenshot(page: Page, name: str) -> None:
    """For the documentation, where somebody asks for it."""
    if folder := os.environ.get("GAPMAP_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / name))
