"""What a person reads while a run works."""

from __future__ import annotations

import re

import pytest

from flows.console import LabelBar, phases_progress, steps_progress
from flows.pseudolabel import RunSummary


def test_a_run_that_writes_to_a_log_file_says_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    with LabelBar(every_s=0) as bar:
        bar.start(total=8, done_before=2)
        for _ in range(4):
            bar.advance(images=2, masks=10, errors=1)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "2 images are in the store already"
    assert re.match(r"2/8 images, [\d.]+ images/s, 10 masks, 1 errors", lines[1])
    assert re.match(r"8/8 images, [\d.]+ images/s, 40 masks, 4 errors$", lines[4])


def test_what_failed_is_told_with_reasons_and_a_line_to_paste(capfd: pytest.CaptureFixture[str]) -> None:
    failed = [
        (f"file:///photos/[{i}] of a shoot in the {'very ' * 20}long summer.jpg", "It is empty.")
        for i in range(3)
    ]
    with LabelBar() as bar:
        bar.summarise(
            RunSummary(
                model="sam-nano@0123456789ab",
                store="/my masks",
                images=10,
                errors={"empty": 4},
                failed=failed,
                seconds=4.0,
            )
        )
    said = capfd.readouterr().err
    assert all(f"{uri}: {why}\n" in said for uri, why in failed)
    query = "SELECT uri, error_kind, error FROM images WHERE error IS NOT NULL"
    assert f"\ngapmap query \"{query}\" --store '/my masks'\n" in said
    assert "2.50 images/s" in said


def test_other_long_work_does_so_too(capfd: pytest.CaptureFixture[str]) -> None:
    with steps_progress("asking the models", every_s=0) as progress:
        progress(3, 20)
    assert capfd.readouterr().err.splitlines() == ["asking the models: 3/20"]


def test_names_with_brackets_and_braces_are_told_as_they_are(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in ("/masks[old]", "/[/red]masks", "/masks{new}"):
        with LabelBar() as bar:
            bar.summarise(RunSummary(model="sam-nano@0123456789ab", store=store, images=1, seconds=1.0))
        assert store in capfd.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    with steps_progress("clicking, cells [fixed] {old}") as progress:
        progress(3, 20)
    with phases_progress() as tell:
        tell("cells [/red]", 3, 20)
    said = capfd.readouterr().err
    assert "clicking, cells [fixed] {old}" in said
    assert "cells [/red]" in said
