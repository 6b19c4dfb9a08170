"""What the command line says of values that it cannot take names what the command line has."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_rows import commit

from engine.store import Store
from flows.cli import main


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
