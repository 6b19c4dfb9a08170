"""Pictures of an evaluation: whole, uncut, and without what was not measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.report.uncertainty_plots import draw_uncertainty

ROOT = Path(__file__).parents[1]
NAMES = ["relative-auc.png", "correction-curves.png", "calibration.png", "correlation.png"]
METHODS = ["sam_score", "entropy", "H_Y", "H_A", "H_Xp", "H_Theta", "delta", "delta_star"]


def made_result() -> dict[str, Any]:
    """As an evaluation gives it: every method, the later the better, between random and the oracle."""
    goodness = {"random": 0.4} | {m: 0.5 + 0.06 * i for i, m in enumerate(METHODS)} | {"oracle": 1.0}
    shares = np.linspace(0, 1, 101)
    curves = {
        m: (0.6 + 0.1 * shares + 0.1 * (g - 0.4) * shares * (1 - shares)).tolist()
        for m, g in goodness.items()
    }
    areas = {m: {"mean": g, "std": 0.0 if m in ("random", "oracle") else 0.01} for m, g in goodness.items()}
    bins = (np.arange(10) + 0.5) / 10
    result = {
        "model": "sam-nano@0123456789ab",
        "larger": "sam2-mini@ba9876543210",
        "n": 12345,
        "seeds": 5,
        "relative_auc": dict.fromkeys(("model", "prompt", "task"), areas),
        "curves": dict.fromkeys(("model", "prompt", "task"), curves),
        "correlation": {m: -0.5 + 0.05 * i for i, m in enumerate(METHODS)},
        "calibration_error": 0.03,
        "calibration": {
            "predicted": bins.tolist(),
            "true": (bins**1.1).tolist(),
            "count": [10 * i for i in range(10)],
        },
    }
    return json.loads(json.dumps(result))


def drawn(result: dict[str, Any], folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in draw_uncertainty(result, folder)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return drawn(made_result(), tmp_path_factory.mktemp("whole"))


def without_model_gap() -> dict[str, Any]:
    result = made_result() | {"larger": None}
    del result["relative_auc"]["model"], result["curves"]["model"]
    return result


def width(path: Path) -> int:
    return Image.open(path).width


@pytest.mark.parametrize("gaps", [3, 2, 1])
def test_four_pictures_fit_for_a_page_with_nothing_cut_off(tmp_path: Path, gaps: int) -> None:
    result = made_result()
    for key in ("relative_auc", "curves"):
        result[key] = dict(list(result[key].items())[-gaps:])
    (tmp_path / NAMES[0]).write_text("an older one")
    assert draw_uncertainty(result, tmp_path) == [tmp_path / name for name in NAMES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert 700 <= picture.width <= 1700
            assert 400 <= picture.height <= 900
            pixels = np.asarray(picture.convert("L"))
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert edge.min() == 255, f"{name}: something runs over the edge"
        assert pixels.min() < 100, "and it is not empty"


def test_without_a_larger_model_its_panel_is_left_out(tmp_path: Path) -> None:
    assert [path.name for path in draw_uncertainty(made_result(), tmp_path / "three")] == NAMES
    assert [path.name for path in draw_uncertainty(without_model_gap(), tmp_path / "two")] == NAMES
    for name in NAMES[:2]:
        assert width(tmp_path / "two" / name) * 3 == pytest.approx(
            width(tmp_path / "three" / name) * 2, abs=3
        )


def test_what_has_no_value_looks_as_if_it_were_not_there(tmp_path: Path) -> None:
    absent, empty = made_result(), made_result()
    absent["relative_auc"]["task"].pop("H_Y")
    empty["relative_auc"]["task"]["H_Y"]["mean"] = None
    absent["relative_auc"]["prompt"].pop("H_Y")
    empty["relative_auc"]["prompt"]["H_Y"]["mean"] = math.nan
    absent["relative_auc"]["task"]["delta"].pop("std")
    empty["relative_auc"]["task"]["delta"]["std"] = None
    absent["curves"]["prompt"].pop("entropy")
    empty["curves"]["prompt"]["entropy"][7] = None
    absent["correlation"].pop("H_A")
    empty["correlation"]["H_A"] = None
    absent["calibration"] = {key: values[:-1] for key, values in absent["calibration"].items()}
    empty["calibration"]["true"][-1] = math.nan
    assert drawn(empty, tmp_path / "empty") == drawn(absent, tmp_path / "absent")


def test_the_oracle_is_no_bar_and_the_same_result_is_the_same_file(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    result = made_result()
    for values in result["relative_auc"].values():
        del values["oracle"]
    assert drawn(result, tmp_path) == whole


@pytest.mark.parametrize("method", ["random", "delta_star"])
def test_what_is_measured_is_seen(tmp_path: Path, whole: dict[str, bytes], method: str) -> None:
    result = made_result()
    result["relative_auc"]["prompt"][method]["mean"] -= 0.1
    result["curves"]["prompt"][method][50] -= 0.02
    changed = drawn(result, tmp_path)
    assert [name for name in NAMES if changed[name] != whole[name]] == NAMES[:2]


def test_a_picture_that_would_show_nothing_is_not_made(tmp_path: Path) -> None:
    result = made_result() | {"calibration": None, "calibration_error": None, "correlation": {}}
    result["curves"] = {"task": {"random": [0.1, 0.2], "oracle": [0.1, 0.2]}}
    assert draw_uncertainty(result, tmp_path) == [tmp_path / NAMES[0]]
    bare = {"model": "m@1", "larger": None, "n": 0, "seeds": 1}
    assert draw_uncertainty(bare, tmp_path / "bare") == []


def test_names_of_models_are_shown_by_the_letter(tmp_path: Path) -> None:
    """Two dollars would be mathematics, and this one has an error in it."""
    name = r"$\nosuch$@1"
    assert len(draw_uncertainty(made_result() | {"model": name, "larger": name}, tmp_path)) == 4


def test_a_drawing_that_fails_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    older = drawn(made_result(), tmp_path)
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_uncertainty(without_model_gap(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == older


def test_matplotlib_is_imported_when_something_is_drawn_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engine.report.uncertainty_plots import draw_uncertainty as d;"
        "print('matplotlib' in sys.modules);"
        "r = {'model': 'm@1', 'n': 1, 'seeds': 1, 'correlation': {'entropy': -0.4}};"
        f"print(len(d(r, Path({str(tmp_path)!r}))), 'matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "1", "False"]
