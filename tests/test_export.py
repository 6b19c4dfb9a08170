"""A COCO file that pycocotools loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from store_rows import MODEL, commit, fetch, image_row, tables_of

from engine.store import Store, export_coco
from flows.cli import main
from schemas.errors import ConfigError, QueryError

pytest_plugins = ("store_fixtures",)


@pytest.fixture
def filled(local_store: Store) -> Store:
    commit(local_store, ["s3://pool/a.jpg", "s3://pool/b.jpg"])
    commit(local_store, ["s3://pool/b.jpg"], "second")
    local_store.commit_shard(
        MODEL,
        *tables_of(
            [image_row("nothing found", n_masks=0), image_row("copy", content="s3://pool/a.jpg")], "third"
        ),
    )
    failed = image_row(
        "broken",
        n_masks=0,
        image_id=None,
        width=None,
        height=None,
        error_kind="truncated",
        error="ends early",
    )
    local_store.commit_shard(MODEL, *tables_of([failed]))
    return local_store


def test_pycocotools_loads_the_export(filled: Store, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "masks.json"
    assert export_coco(filled, str(out), progress=lambda done, total: steps.append((done, total))) == (3, 6)
    assert steps == [(6, 6)]
    coco = COCO(str(out))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        "copy",
        "nothing found",
        "s3://pool/b.jpg",
    ]
    assert coco.loadCats(coco.getCatIds())[0]["name"] == "object"
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert mask.shape == (48, 64)
        assert mask.sum() == annotation["area"] == 50
        assert annotation["bbox"] == [2, 3, 10, 5]
        assert mask[3:8, 2:12].all()
    stored = dict(fetch(filled, "SELECT mask_id, sam_score FROM masks"))
    assert {a["mask_id"]: a["score"] for a in coco.anns.values()} == stored
    assert {a["source"] for a in coco.anns.values()} == {"model"}
    (image_b,) = [image["id"] for image in coco.imgs.values() if image["file_name"].endswith("b.jpg")]
    assert len(coco.getAnnIds(imgIds=[image_b])) == 3


def test_a_condition_chooses_the_masks(filled: Store, tmp_path: Path) -> None:
    out = str(tmp_path / "masks.json")
    (limit,) = fetch(filled, "SELECT median(uncertainty) FROM masks")[0]
    assert export_coco(filled, out, where=f"uncertainty > {limit} -- the unsure half") == (3, 3)
    assert min(a["uncertainty"] for a in json.loads(Path(out).read_text())["annotations"]) > limit
    assert export_coco(filled, out, where="false") == (3, 0)
    assert COCO(out).getAnnIds() == []


@pytest.mark.parametrize(
    "where",
    [
        "uncertanty > 1",
        "1) UNION ALL SELECT * FROM read_csv('/etc/passwd') WHERE (1",
        "(",
        "1; DROP VIEW masks",
    ],
)
def test_a_wrong_condition_is_told_and_leaves_no_file(filled: Store, tmp_path: Path, where: str) -> None:
    with pytest.raises(QueryError):
        export_coco(filled, str(tmp_path / "masks.json"), where=where)
    assert not list(tmp_path.glob("masks.json*"))


def test_a_condition_on_a_column_of_images_is_told_where_that_is(filled: Store, tmp_path: Path) -> None:
    out = str(tmp_path / "masks.json")
    with pytest.raises(QueryError) as caught:
        export_coco(filled, out, where="uri LIKE '%b.jpg'")
    told = str(caught.value).partition("\n")[0]
    assert told == "There is no column 'uri' in masks. images has one."
    within = "image_id IN (SELECT image_id FROM images WHERE uri LIKE '%b.jpg')"
    assert export_coco(filled, out, where=within) == (3, 3)
    with pytest.raises(QueryError, match=r"no column 'sorce' in masks\. Did you mean 'source'"):
        export_coco(filled, out, where="sorce = 'people'")


def test_of_several_models_the_newest_or_the_one_that_is_named_is_exported(
    filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(filled, ["s3://pool/a.jpg"], model="mini@ba9876543210")
    out = str(tmp_path / "masks.json")
    assert export_coco(filled, out) == (1, 3)
    assert export_coco(filled, out, model="nano") == (3, 6)
    assert export_coco(filled, out, model="mini@ba9876543210") == (1, 3)
    with pytest.raises(ConfigError, match="Did you mean 'mini@ba9876543210'"):
        export_coco(filled, out, model="mini@ba98")
    with pytest.raises(SystemExit, match="0"):
        main(["export", out, "--store", filled.files.root, "--model", "nano"])
    assert f"6 masks of 3 images by {MODEL} written to" in capsys.readouterr().out


def test_an_export_goes_to_a_bucket(filled: Store, s3_root: tuple[str, dict[str, Any]]) -> None:
    import fsspec

    url, options = s3_root
    export_coco(filled, f"{url}/masks.json", storage_options=options)
    assert (
        len(json.loads(fsspec.filesystem("s3", **options).cat_file(f"{url}/masks.json"))["annotations"]) == 6
    )


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("a folder", "a folder is a folder. Name a file in it"),
        ("a folder/", "a folder/ is a folder. Name a file in it"),
        ("nowhere/masks.json", "There is no folder .*/nowhere that can be written to. Make it"),
    ],
)
def test_where_an_export_or_a_result_cannot_be_written_nothing_is_made_and_no_store_is_blamed(
    filled: Store, tmp_path: Path, out: str, told: str
) -> None:
    (tmp_path / "a folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for write in (
        lambda address: export_coco(filled, address),
        lambda address: filled.write_query("FROM masks", "json", address),
    ):
        with pytest.raises(ConfigError, match=told) as caught:
            write(f"{tmp_path}/{out}")
        assert "store" not in str(caught.value).replace(str(tmp_path), "")
    assert sorted(tmp_path.rglob("*")) == before
