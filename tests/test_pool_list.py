"""List a pool: which files are images, in which order, under which name and fingerprint."""

from __future__ import annotations

import io
import itertools
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from engine.pool import list_pool, read_image
from engine.pool.address import redact, without_credentials
from schemas.errors import ConfigError
from schemas.settings import PoolSettings

REPO_ROOT = Path(__file__).resolve().parents[1]
ANY = PoolSettings()
OPAQUE = "x7Qs3cretLp_v2mN-8RtYw4kZb6"
CONTENT_HASH = "9f86d081884c7d659a2feaa0c55ad015"


def png_bytes(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 3), shade).save(file, "png")
    return file.getvalue()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    root = tmp_path / "pool"
    names = [
        "b.png",
        "a.JPG",
        "a/z.tif",
        "a/b/c.webp",
        "a.b/x.png",
        "notes.txt",
        "a/meta.json",
        ".hidden.png",
        ".git/x.png",
    ]
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png_bytes(shade))
    return root


def below(url: str | Path, settings: PoolSettings = ANY, root: Path | None = None) -> list[str]:
    prefix = f"file://{root or url}/"
    return [item.uri.removeprefix(prefix) for item in list_pool(str(url), settings)]


def test_list_a_folder_in_the_order_of_whole_paths(pool):
    assert below(pool) == ["a.JPG", "a.b/x.png", "a/b/c.webp", "a/z.tif", "b.png"]
    assert below(pool) == sorted(below(pool))


def test_list_relative_folder_gives_absolute_uris(pool, tmp_path):
    code = "from engine.pool import list_pool; from schemas.settings import PoolSettings; print(next(list_pool('pool', PoolSettings())).uri)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO_ROOT)}, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == f"file://{pool}/a.JPG"


def test_list_one_file(pool):
    (item,) = list_pool(str(pool / "b.png"), ANY)
    assert item.uri == f"file://{pool}/b.png"
    assert item.file_bytes == (pool / "b.png").stat().st_size


def test_list_with_a_glob_in_the_url(pool):
    assert below(f"{pool}/*.png", root=pool) == ["b.png"]
    assert below(f"{pool}/**/*.png", root=pool) == ["a.b/x.png", "b.png"]
    assert below(f"{pool}/a/**", root=pool) == ["a/b/c.webp", "a/z.tif"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path):
    folder = tmp_path / "set [1]"
    folder.mkdir()
    (folder / "x.png").write_bytes(png_bytes())
    assert below(folder) == ["x.png"]


def test_include_and_exclude_patterns(pool):
    assert below(pool, PoolSettings(include=("*.png",))) == ["a.b/x.png", "b.png"]
    assert below(pool, PoolSettings(include=("a/*",))) == ["a/meta.json", "a/z.tif"]
    assert below(pool, PoolSettings(exclude=("a/**", "*.JPG"))) == ["a.b/x.png", "b.png"]
    assert below(pool, PoolSettings(include=("*.txt",))) == ["notes.txt"]


def test_a_wrong_pattern_says_what_to_write(pool):
    with pytest.raises(ConfigError, match=r"\*\*/\*\.jpg"):
        list_pool(str(pool), PoolSettings(include=("a**/b",)))


def test_odd_file_names_can_be_listed_and_read(tmp_path):
    names = [
        b"a::b.png",
        b"100%41.png",
        "\u00e4 \u96ea.png".encode(),
        b"a#b?c.png",
        b"two\nlines.png",
        b"not-\xff-unicode.png",
    ]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(png_bytes())
    items = list(list_pool(str(tmp_path), ANY))
    assert len(items) == len(names)
    for item in items:
        item.uri.encode("utf-8")  # can be stored
        assert read_image(item, ANY).pixels.shape == (3, 4, 3)


def test_fingerprints_are_the_same_in_another_process_and_change_with_the_file(pool):
    code = (
        "import sys; from engine.pool import list_pool; from schemas.settings import PoolSettings\n"
        "for item in list_pool(sys.argv[1], PoolSettings()): print(item.uri, item.fingerprint)"
    )
    before = {item.uri: item.fingerprint for item in list_pool(str(pool), ANY)}
    done = subprocess.run([sys.executable, "-c", code, str(pool)], env={**os.environ, "PYTHONPATH": str(REPO_ROOT), "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)  # fmt: skip
    assert dict(line.split(" ") for line in done.stdout.splitlines()) == before
    (pool / "b.png").write_bytes(png_bytes(99))
    after = {item.uri: item.fingerprint for item in list_pool(str(pool), ANY)}
    assert {uri for uri in before if before[uri] != after[uri]} == {f"file://{pool}/b.png"}


def test_symlink_loops_end_and_links_are_followed_once(pool, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.png").write_bytes(png_bytes())
    (outside / "back").symlink_to(pool)
    (pool / "loop").symlink_to(pool)
    (pool / "a" / "up").symlink_to("..")
    (pool / "everything").symlink_to("/")
    (pool / "self").symlink_to("self")
    (pool / "self.png").symlink_to("self.png")
    (pool / "out1").symlink_to(outside)
    (pool / "out2").symlink_to(outside)
    (pool / "b-link.png").symlink_to("b.png")
    assert below(pool) == [
        "a.JPG",
        "a.b/x.png",
        "a/b/c.webp",
        "a/z.tif",
        "b-link.png",
        "b.png",
        "out1/o.png",
        "self.png",
    ]


def test_a_dangling_link_is_listed_so_that_it_becomes_a_row(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (item,) = list_pool(str(tmp_path), ANY)
    with pytest.raises(Exception, match="not there") as caught:
        read_image(item, ANY)
    assert caught.value.kind == "missing"


def test_pipes_are_left_alone(pool):
    os.mkfifo(pool / "pipe.png")
    assert "pipe.png" not in below(pool)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_folder_that_may_not_be_read_is_passed_over_with_a_warning():
    code = (
        "import os, sys, logging; from engine.pool import list_pool; from schemas.settings import PoolSettings\n"
        "logging.basicConfig(); os.setuid(65534)\n"
        "for item in list_pool(sys.argv[1], PoolSettings()): print(item.uri)\n"
        "try: next(list_pool(sys.argv[1] + '/shut', PoolSettings()))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with tempfile.TemporaryDirectory() as root:  # tmp_path itself is shut to others
        Path(root).chmod(0o755)
        for name, mode in (("open", 0o755), ("shut", 0o700)):
            (Path(root) / name).mkdir()
            (Path(root) / name / "x.png").write_bytes(png_bytes())
            (Path(root) / name).chmod(mode)
        done = subprocess.run([sys.executable, "-c", code, root], env={**os.environ, "PYTHONPATH": str(REPO_ROOT)}, capture_output=True, text=True, check=True)  # fmt: skip
    listed, refused = done.stdout.splitlines()
    assert listed == f"file://{root}/open/x.png"
    assert refused.startswith("ConfigError The pool")
    assert "may not be read" in refused
    assert f"Cannot look into {root}/shut/" in done.stderr


def test_no_pool_there(tmp_path):
    with pytest.raises(ConfigError, match=f"no pool at {tmp_path}/nowhere"):
        list_pool(f"{tmp_path}/nowhere", ANY)


def test_no_image_in_the_pool_says_what_was_sought_and_seen(tmp_path):
    for name in ("a.txt", "b.txt", "c.json", "photos.zip", ".d.png"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError) as caught:
        list(list_pool(str(tmp_path), ANY))
    message = str(caught.value)
    for part in (str(tmp_path), "jpg", "4 other files", "2 .txt", "1 hidden", "zip://::"):
        assert part in message


@pytest.mark.parametrize("url", ["", " "])
def test_an_empty_address_is_not_the_working_folder(url):
    with pytest.raises(ConfigError, match="address is empty"):
        list_pool(url, ANY)


def test_urls_that_cannot_work_say_what_to_write():
    with pytest.raises(ConfigError, match="Did you mean 's3'"):
        list_pool("s4://bucket/x", ANY)
    with pytest.raises(ConfigError, match="zip://::PATH"):
        list_pool("zip://images", ANY)
    with pytest.raises(ConfigError, match="no user and password") as caught:
        list_pool("s3://key:s3cret@bucket/x", ANY)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot stand in front"):
        list_pool("simplecache::s3://bucket/x", ANY)


def test_list_and_read_inside_a_zip(pool, tmp_path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pool.rglob("*"), reverse=True):
            file.write(path, path.relative_to(pool))
        file.writestr("__MACOSX/._b.png", b"x")
    items = list(list_pool(f"zip://::{archive}", ANY))
    assert [item.uri for item in items] == [
        f"zip://{name}::file://{archive}" for name in ["a.JPG", "a.b/x.png", "a/b/c.webp", "a/z.tif", "b.png"]
    ]
    assert len({item.fingerprint for item in items}) == len(items)  # CRC: same size, other shade
    assert [read_image(item, ANY).pixels[0, 0, 0] for item in items] == [1, 4, 3, 2, 0]
    assert [i.uri for i in list_pool(f"zip://a/**/*.webp::{archive}", ANY)] == [
        f"zip://a/b/c.webp::file://{archive}"
    ]
    assert [i.uri for i in list_pool(f"zip://a.b::{archive}", ANY)] == [f"zip://a.b/x.png::file://{archive}"]


def test_list_and_read_inside_a_tar(pool, tmp_path):
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as file:
        file.add(pool, "photos")
    items = list(list_pool(f"tar://photos::{tmp_path}/photos.tar.gz", ANY))
    assert [item.uri for item in items] == [
        f"tar://photos/{name}::file://{tmp_path}/photos.tar.gz"
        for name in ["a.JPG", "a.b/x.png", "a/b/c.webp", "a/z.tif", "b.png"]
    ]
    assert [read_image(item, ANY).pixels[0, 0, 0] for item in items] == [1, 4, 3, 2, 0]
    assert all(item.fingerprint.startswith(f"{item.file_bytes}-1") for item in items)  # seconds since 1970


def test_a_zip_that_is_replaced_is_read_anew(tmp_path):
    archive = tmp_path / "p.zip"
    shades = []
    for shade in (10, 20):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("x.png", png_bytes(shade))
        (item,) = list_pool(f"zip://::{archive}", ANY)
        shades.append(int(read_image(item, ANY).pixels[0, 0, 0]))
    assert shades == [10, 20]


def test_a_broken_zip_is_named(tmp_path):
    (tmp_path / "p.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ConfigError, match=r"p\.zip cannot be listed.*BadZipFile"):
        list_pool(f"zip://::{tmp_path}/p.zip", ANY)


def test_list_and_read_in_memory():
    memory = fsspec.filesystem("memory")
    for shade, name in enumerate(["/m-pool/b/x.png", "/m-pool/a.png", "/m-pool/n.txt"]):
        memory.pipe_file(name, png_bytes(shade))
    items = list(list_pool("memory://m-pool", ANY))
    assert [item.uri for item in items] == ["memory://m-pool/a.png", "memory://m-pool/b/x.png"]
    assert [read_image(item, ANY).pixels[0, 0, 0] for item in items] == [1, 0]


def test_listing_does_not_wait_for_the_whole_pool(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(png_bytes())
    items = list_pool(str(tmp_path), ANY)
    first = next(items)
    (tmp_path / "b" / "late.png").write_bytes(png_bytes())  # a folder that was not reached yet
    assert [first.uri, *[item.uri for item in items]] == [
        f"file://{tmp_path}/{n}" for n in ("a/x.png", "b/late.png", "b/x.png")
    ]


def test_a_list_file_names_its_images_whatever_their_type(pool, tmp_path):
    urls = [f"file://{pool}/b.png", f"file://{pool}/.hidden.png", f"file://{pool}/notes.txt"]
    (tmp_path / "list.txt").write_text(
        "\ufeff# my images\n" + "\r\n".join([*urls, "", urls[0]]) + "\n", encoding="utf-8"
    )
    items = list(list_pool(str(tmp_path / "list.txt"), ANY))
    assert [item.uri for item in items] == urls
    assert {item.fingerprint for item in items} == {"unversioned"}
    only = list_pool(str(tmp_path / "list.txt"), PoolSettings(exclude=("*.txt",)))
    assert [item.uri for item in only] == urls[:2]


def test_a_list_line_that_is_no_url_is_named_by_its_number(tmp_path):
    (tmp_path / "list.txt").write_text("https://host/a.png\n\nb.png\n")
    (tmp_path / "odd.txt").write_text("htps://host/a.png\n")
    with pytest.raises(ConfigError, match="Did you mean 'https'"):
        list(list_pool(str(tmp_path / "odd.txt"), ANY))
    with pytest.raises(ConfigError, match=r"Line 3 .*'b\.png'"):
        list(list_pool(str(tmp_path / "list.txt"), ANY))


@pytest.mark.parametrize("line", ["h/x.jpg?X-Amz-Signature=s3cret", "user:s3cret@h/x.jpg"])
def test_a_list_line_that_is_no_url_is_shown_without_credentials(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"Line 1 .*'h/x\.jpg'") as caught:
        list(list_pool(str(tmp_path / "list.txt"), ANY))
    assert "s3cret" not in str(caught.value)


def test_what_was_passed_over_is_logged(pool, caplog):
    with caplog.at_level(logging.INFO, "engine.pool"):
        list(list_pool(str(pool), ANY))
    assert "5 images" in caplog.text
    assert "1 .json" in caplog.text


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://user:s3cret@host/a.png", "https://host/a.png"),
        ("https://s3cret@host/a.png?x=1", "https://host/a.png?x=1"),
        ("sftp://user:s3cret@host/a.png", "sftp://host/a.png"),
        ("sftp://user@host/a.png", "sftp://user@host/a.png"),
        (
            "abfs://container@account.dfs.core.windows.net/a.png",
            "abfs://container@account.dfs.core.windows.net/a.png",
        ),
        ("zip://a@b:c.png::https://u:s3cret@host/p.zip", "zip://a@b:c.png::https://host/p.zip"),
        ("https://h/a.png?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret&v=2", "https://h/a.png?v=2"),
        ("https://h/a.png?sv=2024&se=tomorrow&sig=s3cret", "https://h/a.png"),
        ("https://h/get?id=7&access_token=s3cret", "https://h/get?id=7"),
        ("https://h/get?key=a.png&policy=x", "https://h/get?key=a.png&policy=x"),
        (f"https://h/get?key=AIza{OPAQUE}", "https://h/get"),
        (f"https://h/api/photo?code={OPAQUE}==&id=7", "https://h/api/photo?id=7"),
        (f"https://h/get?id=7&key={CONTENT_HASH}", f"https://h/get?id=7&key={CONTENT_HASH}"),
        (
            "https://h/get?code=de&key=photos/2024/a-long-name-of-a-photo",
            "https://h/get?code=de&key=photos/2024/a-long-name-of-a-photo",
        ),
        ("https://h/a.png?jwt=s3cret", "https://h/a.png"),
        ("https://h/a.png?hdnts=exp=1~hmac=s3cret&v=2", "https://h/a.png?v=2"),
        ("https://h/a.png?hdnea=exp=1~hmac=s3cret", "https://h/a.png"),
        ("https://h/a.png?sas=s3cret", "https://h/a.png"),
        ("https://h/a.png?credential=s3cret", "https://h/a.png"),
        ("file:///a/b@c:d?token=x.png", "file:///a/b@c:d?token=x.png"),
        ("/a/b:c@d.png", "/a/b:c@d.png"),
    ],
)
def test_credentials_never_stay_in_a_uri(url, clean):
    assert without_credentials(url) == clean
    assert "s3cret" not in redact(f"404, message='Not Found', url='{url}'")


@pytest.mark.slow
def test_ten_thousand_files_come_out_once_each(tmp_path):
    for folder, name in itertools.product(range(20), range(500)):
        path = tmp_path / f"{folder:02}" / f"{name:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    uris = [item.uri for item in list_pool(str(tmp_path), ANY)]
    assert len(set(uris)) == len(uris) == 10_000
    assert uris == sorted(uris)


def test_a_list_of_many_long_urls_takes_little_memory_beside_its_own(tmp_path: Path) -> None:
    count, urls = 20_000, tmp_path / "list.txt"
    urls.write_text("\n".join(f"https://host/{'folder/' * 40}{number}.jpg" for number in range(count)))
    tracemalloc.start()
    items = list_pool(str(urls), ANY)
    next(items)
    begun, _ = tracemalloc.get_traced_memory()
    listed = sum(1 for _ in itertools.islice(items, count - 2))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (held - begun) / listed < 250, "a URL takes twice that"
    assert next(items).uri.endswith(f"/{count - 1}.jpg")
