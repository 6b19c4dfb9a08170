"""Pools behind a real S3 protocol server and a real http server."""

from __future__ import annotations

import base64
import io
import logging
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from engine.pool import fetch_bytes, hash_image, list_pool, prefetch, read_image, reread_bytes, reread_copy
from schemas.errors import ConfigError, ImageError, TransientError
from schemas.records import PoolItem
from schemas.settings import PoolSettings

pytest_plugins = ("web_pool",)
ANY = PoolSettings()


def png_bytes(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 3), shade).save(file, "png")
    return file.getvalue()


def write_list(tmp_path: Path, *urls: str) -> str:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(urls))
    return str(path)


def item(url: str) -> PoolItem:
    return PoolItem(url, "x")


def test_list_and_read_an_http_folder(web):
    items = list(list_pool(f"{web.url}/", ANY))
    assert [i.uri for i in items] == [
        f"{web.url}/{n}" for n in ("a%20b.png", "b.png", "sub/c.JPG", "sub/deep/d.png")
    ]
    assert [read_image(i, ANY).pixels[0, 0, 0] for i in items] == [1, 0, 2, 4]
    assert [i.uri for i in list_pool(f"{web.url}/sub/**/*.png", ANY)] == [f"{web.url}/sub/deep/d.png"]
    assert [i.uri for i in list_pool(web.url, PoolSettings(include=("a b.png",)))] == [f"{web.url}/a%20b.png"]


def test_an_image_is_opened_again_although_the_storage_fails_in_passing(web):
    file = png_bytes(4)
    copies, image_id = [(f"{web.url}/flaky/sub/deep/d.png", "unversioned")], hash_image(file)
    assert reread_copy(copies, image_id).pixels[0, 0, 0] == 4
    assert web.asked["/flaky/sub/deep/d.png"] == 3
    web.asked.clear()
    assert reread_bytes(copies, image_id) == file
    web.asked.clear()
    assert fetch_bytes(copies[0][0]) == file
    with pytest.raises(TransientError, match="just now"):
        reread_copy([(f"{web.url}/down/d.png", "unversioned")], image_id)
    assert web.asked["/down/d.png"] == 4


def test_list_one_http_file(web):
    (only,) = list_pool(f"{web.url}/b.png", ANY)
    assert read_image(only, ANY).pixels[0, 0, 0] == 0


def test_a_list_of_urls_itself_behind_http(web, tmp_path):
    (tmp_path / "web" / "list.txt").write_text(f"{web.url}/sub/c.JPG\n{web.url}/b.png?size=full\n")
    items = list(list_pool(f"{web.url}/list.txt", ANY))
    assert [i.uri for i in items] == [f"{web.url}/sub/c.JPG", f"{web.url}/b.png?size=full"]
    assert [(i.fingerprint, i.file_bytes) for i in items] == [("unversioned", None)] * 2
    assert [read_image(i, ANY).pixels[0, 0, 0] for i in items] == [2, 0]


def test_a_list_behind_http_is_read_before_its_images_are_labelled_for_hours(web, tmp_path):
    """A connection that stays open while images are labelled is cut off after five minutes."""
    urls = [f"{web.url}/b.png?number={number:0100}" for number in range(200_000)]
    (tmp_path / "web" / "list.txt").write_text("\n".join(urls))
    items = list_pool(f"{web.url}/list.txt", ANY)
    next(items)
    time.sleep(0.5)
    assert web.answered["/list.txt"] == 1


def test_reading_over_http_asks_once(web):
    read_image(item(f"{web.url}/b.png"), ANY)
    assert web.asked["/b.png"] == 1


def test_credentials_open_images_and_stay_out_of_uris_and_errors(web, tmp_path, caplog):
    locked = f"http://user:s3cret@{web.host}/locked"
    url = write_list(
        tmp_path, f"{locked}/b.png", f"{web.url}/signed/b.png?token=s3cret", f"{locked}/none.png"
    )
    with caplog.at_level(logging.DEBUG, "engine"):
        items = list(list_pool(url, ANY))
        assert [i.uri for i in items] == [
            f"{web.url}/locked/b.png",
            f"{web.url}/signed/b.png",
            f"{web.url}/locked/none.png",
        ]
        outcomes = list(prefetch(items, ANY))
        folder = list(list_pool(f"{locked}/", ANY))
    assert [i.uri for i in folder][:2] == [f"{web.url}/locked/a%20b.png", f"{web.url}/locked/b.png"]
    assert read_image(folder[0], ANY).pixels[0, 0, 0] == 1
    assert outcomes[0].pixels[0, 0, 0] == outcomes[1].pixels[0, 0, 0] == 0
    assert outcomes[2][1].kind == "missing"
    assert "s3cret" not in repr(items) + repr(folder) + repr(outcomes) + caplog.text
    assert outcomes[2][1].__cause__ is None  # whose text would hold the URL

    with pytest.raises(ConfigError) as caught:
        list_pool(f"http://user:wrong-s3cret@{web.host}/locked/", ANY).__next__()
    assert "s3cret" not in str(caught.value)
    assert "may not be read" in str(caught.value)


def test_credentials_from_the_configuration_of_fsspec(web, monkeypatch):
    header = "Basic " + base64.b64encode(b"user:s3cret").decode()
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"headers": {"Authorization": header}}})
    (image,) = prefetch(list_pool(f"{web.url}/locked/b.png", ANY), ANY)
    assert image.pixels[0, 0, 0] == 0


def test_a_folder_that_the_server_refuses_is_named_without_the_password(web, caplog):
    pool = f"http://bob:s3cret@{web.host}/shut/"
    with caplog.at_level(logging.DEBUG, "engine"):
        assert len(list(list_pool(pool, ANY))) == 2
    assert f"Cannot look into {web.url}/shut/sub/" in caplog.text
    with pytest.raises(ConfigError, match=f"may not be read .first: {web.url}/shut/sub/") as nothing:
        list(list_pool(pool, PoolSettings(include=("*.gif",))))
    assert "s3cret" not in caplog.text + str(nothing.value)


def test_http_errors_are_told_apart(web):
    with pytest.raises(ImageError) as missing:
        read_image(item(f"{web.url}/none.png"), ANY)
    assert missing.value.kind == "missing"
    with pytest.raises(ImageError) as denied:
        read_image(item(f"{web.url}/signed/b.png"), ANY)
    assert denied.value.kind == "unreadable"
    with pytest.raises(ConfigError, match="credentials"):
        read_image(item(f"{web.url}/locked/b.png"), ANY)
    for path in ("down", "cut"):
        with pytest.raises(TransientError):
            read_image(item(f"{web.url}/{path}/b.png"), ANY)


def test_a_server_that_is_not_there_is_transient():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TransientError):
        read_image(item(f"{url}/b.png"), ANY)
    with pytest.raises(TransientError):
        next(list_pool(f"{url}/", ANY))


def test_an_endless_answer_is_cut_off_at_the_file_limit(web):
    with pytest.raises(ImageError) as caught:
        read_image(item(f"{web.url}/endless/b.png"), PoolSettings(max_file_bytes=1 << 20))
    assert caught.value.kind == "too_large"
    time.sleep(0.2)
    assert web.sent < 30 << 20  # of 131 MB


def test_prefetch_tries_again_when_a_server_fails_in_passing(web):
    (image,) = prefetch([item(f"{web.url}/flaky/b.png")], ANY)
    assert image.pixels.shape == (3, 4, 3)
    assert web.asked["/flaky/b.png"] == 3


@pytest.mark.slow
def test_prefetch_gives_up_after_four_tries_so_that_the_shard_is_tried_again(web):
    with pytest.raises(TransientError, match=r"down/b\.png"):
        list(prefetch([item(f"{web.url}/down/b.png")], ANY))
    assert web.asked["/down/b.png"] == 4


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[object, dict]]:
    """A bucket on a real S3 protocol server; the client that filled it and the options to read it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    access = {"aws_access_key_id": "k", "aws_secret_access_key": "s3cret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **access)
    client.create_bucket(Bucket="pool")
    names = [
        "day1/b.png",
        "day1/a.JPG",
        "day1/a/c.tif",
        "day1/notes.txt",
        "day1/.hidden.png",
        "day2/a::b.png",
        "day10/x.png",
    ]
    for shade, name in enumerate(names):
        client.put_object(Bucket="pool", Key=name, Body=png_bytes(shade))
    client.put_object(Bucket="pool", Key="day1/folder.png/", Body=b"")
    options = {
        "key": "k",
        "secret": "s3cret",
        "endpoint_url": f"http://{host}:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
    }
    yield client, options
    server.stop()


def keys(url: str, options: dict) -> list[str]:
    return [i.uri.removeprefix("s3://pool/") for i in list_pool(url, ANY, options)]


def test_list_and_read_a_bucket(s3):
    _, options = s3
    items = list(list_pool("s3://pool/day1", ANY, options))
    assert [i.uri for i in items] == [f"s3://pool/day1/{n}" for n in ("a.JPG", "a/c.tif", "b.png")]
    assert [i.file_bytes for i in items] == [len(png_bytes(n)) for n in (1, 2, 0)]
    assert [read_image(i, ANY, options).pixels[0, 0, 0] for i in items] == [1, 2, 0]
    assert keys("s3://pool", options) == [
        "day1/a.JPG",
        "day1/a/c.tif",
        "day1/b.png",
        "day10/x.png",
        "day2/a::b.png",
    ]
    assert keys("s3://pool/day1/", options) == keys("s3://pool/day1", options)
    assert keys("s3://pool/day*/*.png", options) == ["day1/b.png", "day10/x.png", "day2/a::b.png"]
    (odd,) = list_pool("s3://pool/day2", ANY, {"s3": options})  # options nested by protocol
    assert read_image(odd, ANY, {"s3": options}).pixels[0, 0, 0] == 5


def test_a_listing_sees_what_another_process_wrote_and_changed(s3):
    client, options = s3
    client.put_object(Bucket="pool", Key="live/a.png", Body=png_bytes(1))
    (before,) = list_pool("s3://pool/live", ANY, options)
    client.put_object(Bucket="pool", Key="live/a.png", Body=png_bytes(2))
    client.put_object(Bucket="pool", Key="live/b.png", Body=png_bytes(1))
    after = list(list_pool("s3://pool/live", ANY, options))
    assert [i.uri for i in after] == ["s3://pool/live/a.png", "s3://pool/live/b.png"]
    assert after[0].fingerprint != before.fingerprint
    assert after[1].fingerprint == before.fingerprint  # the ETag is of the content


def test_a_bucket_of_more_than_one_page(s3, monkeypatch):
    client, options = s3
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")  # the server's own setting; Amazon's is 1,000
    client.create_bucket(Bucket="many")
    for number in range(10):
        client.put_object(Bucket="many", Key=f"{number}.png", Body=b"x")
    assert client.list_objects_v2(Bucket="many")["KeyCount"] == 3
    assert [i.uri for i in list_pool("s3://many", ANY, options)] == [f"s3://many/{n}.png" for n in range(10)]


def test_errors_of_a_bucket(s3):
    client, options = s3
    with pytest.raises(ConfigError, match="no pool at s3://nowhere"):
        list(list_pool("s3://nowhere", ANY, options))
    with pytest.raises(ConfigError, match="no pool at s3://pool/day3"):
        list(list_pool("s3://pool/day3", ANY, options))
    client.put_object(Bucket="pool", Key="zero/z.png", Body=b"")
    (zero,) = list_pool("s3://pool/zero/z.png", ANY, options)
    for i, kind in (
        (zero, "empty"),
        (item("s3://pool/zero/z.png"), "empty"),
        (item("s3://pool/gone.png"), "missing"),
    ):
        with pytest.raises(ImageError) as caught:
            read_image(i, ANY, options)
        assert caught.value.kind == kind
    client.put_object(Bucket="pool", Key="large.png", Body=b"x" * 2000)
    with pytest.raises(ImageError) as caught:
        read_image(item("s3://pool/large.png"), PoolSettings(max_file_bytes=1999), options)
    assert caught.value.kind == "too_large"


def test_a_zip_in_a_bucket(s3):
    client, options = s3
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in/x.png", png_bytes(9))
    client.put_object(Bucket="pool", Key="photos.zip", Body=file.getvalue())
    for given in (options, {"s3": options}):
        (only,) = list_pool("zip://::s3://pool/photos.zip", ANY, given)
        assert only.uri == "zip://in/x.png::s3://pool/photos.zip"
        assert read_image(only, ANY, given).pixels[0, 0, 0] == 9


def test_a_list_in_a_bucket_of_images_behind_http(s3, web):
    client, options = s3
    client.put_object(Bucket="pool", Key="list.txt", Body=f"{web.url}/b.png\ns3://pool/day1/a.JPG".encode())
    nested = {"s3": options}
    images = prefetch(list_pool("s3://pool/list.txt", ANY, nested), ANY, storage_options=nested)
    assert [image.pixels[0, 0, 0] for image in images] == [0, 1]


def test_an_s3_server_that_is_not_there_is_transient():
    options = {
        "key": "k",
        "secret": "s",
        "endpoint_url": "http://127.0.0.1:1",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with pytest.raises(TransientError):
        read_image(item("s3://pool/x.png"), ANY, options)
