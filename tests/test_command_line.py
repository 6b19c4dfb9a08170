"""What the command line says of values that it cannot take names what the command line has."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_rows import commit

from engine.store import Store
from flows.cli import main
from schemas.errors import ConfigError
from schemas.settings import GenerateSettings


def test_tiles_too_small_to_be_of_use_are_refused_with_their_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["label", "photos", "--store", "masks", "--tile-size", "3"])
    assert end.value.code == 1
    assert "--tile-size: Value error, write 0 for no tiles, or 64 or more" in capsys.readouterr().err
    assert [GenerateSettings(tile_size=size).tile_size for size in (0, 64)] == [0, 64]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--points-per-side", "0"], "gapmap: --points-per-side: Input should be greater than or equal to 1"),
        (["--strategy", "bogus"], "gapmap: --strategy: Input should be 'uncertainty'"),
        (["--steps", "0"], "gapmap: --steps: Input should be"),
        (['{"generate": {"points_per_side": 0}}'], "settings.json has settings that cannot be:\ngenerate.points_per_side: Input"),
        (['{"judged_images": 0}', "--steps", "5"], "\njudged_images: Input should be greater"),
        (['{"generate": {"points_per_side": 8}}', "--points-per-side", "0"], "gapmap: --points-per-side: Input"),
        (['{"generate": 16}', "--points-per-side", "5"], "\ngenerate: Input should be"),
        (['{"finetune": {"step": 5}}'], "\nfinetune.step: Extra inputs are not permitted (given: 5)"),
    ],
)  # fmt: skip
def test_a_setting_of_a_round_that_cannot_be_is_named_as_it_was_given(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0].startswith("{"):
        (tmp_path / "settings.json").write_text(words[0])
        words = ["--settings", str(tmp_path / "settings.json"), *words[1:]]
    with pytest.raises(SystemExit) as end:
        main(["round", str(tmp_path), "--store", str(tmp_path / "store"), *words])
    assert end.value.code == 1
    assert said in capsys.readouterr().err


SECRET = "https://alice:s3cr3tPW@host.invalid/place"


@pytest.mark.parametrize(
    "words",
    [
        ["push", "--store", SECRET, "--queue", "queue"],
        ["push", "--store", "masks", "--queue", SECRET],
        ["push", "--store", "masks", "--queue", "https://host.invalid", "--media", SECRET],
        ["push", "--store", "masks", "--queue", "queue", "--media-url", SECRET],
        ["pull", "--store", SECRET, "--queue", "queue"],
        ["listen", "--store", SECRET, "--host", "203.0.113.1"],
        ["triage", "--store", SECRET],
        ["triage", "--store", "masks", "--larger", SECRET],
        ["finetune", "--store", SECRET],
        ["finetune", "--data", "labelled", "--model", SECRET],
        ["finetune", "--data", SECRET],
        ["round", SECRET, "--store", "masks"],
        ["round", "pool", "--store", SECRET],
        ["round", "pool", "--store", "masks", "--queue", SECRET],
        ["round", "pool", "--store", "masks", "--data", "labelled", "--data", SECRET],
    ],
    ids=lambda words: " ".join(words).replace(SECRET, "SECRET"),
)
def test_a_password_in_an_address_is_refused_before_prefect_could_keep_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.flows import Flow

    called: list[Flow] = []
    monkeypatch.setattr(Flow, "__call__", lambda flow, *_, **__: called.append(flow))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err
    assert not called
    assert "https://host.invalid/place carries credentials" in said
    assert "s3cr3tPW" not in said


def test_a_deployment_refuses_a_password_in_any_address() -> None:
    from flows.review import review_push
    from flows.round import round

    for flow, given in (
        (review_push, {"store": "masks", "queue": "queue", "media_url": SECRET}),
        (round, {"pool": "pool", "store": "masks", "queue": SECRET}),
        (round, {"pool": "pool", "store": "masks", "data": ["labelled", SECRET]}),
    ):
        with pytest.raises(ConfigError, match="carries credentials") as caught:
            flow.fn(**given)  # type: ignore[attr-defined]
        assert "s3cr3tPW" not in str(caught.value)


def test_hints_name_what_the_command_line_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "store"))
    commit(store, ["a.png"])
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.raw").touch()
    for words, hint in (
        (
            ["triage", "--store", store.files.label, "--error-seconds", "-4"],
            "--error-seconds: Input should be",
        ),
        (["label", str(tmp_path / "pool"), "--store", "masks"], "under other names say so: --include '*'"),
        (
            ["show", "zzzz", "--store", store.files.label],
            f'gapmap query "FROM masks" --store {store.files.label}',
        ),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert hint in capsys.readouterr().err
