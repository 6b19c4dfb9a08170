"""What the command line says of values that it cannot take names what the command line has."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_rows import commit

from engine.store import Store
from flows.cli import main
from schemas.settings import GenerateSettings


def test_tiles_too_small_to_be_of_use_are_refused_with_their_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["label", "photos", "--store", "masks", "--tile-size", "3"])
    assert end.value.code == 1
    assert "--tile-size: Value error, write 0 for no tiles, or 64 or more" in capsys.readouterr().err
    assert [GenerateSettings(tile_size=size).tile_size for size in (0, 64)] == [0, 64]


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
