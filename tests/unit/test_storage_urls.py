"""URLs and keys: what is a place, what is a name, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlcore.errors import RequestError, StorageError
from tlcore.storage.urls import LocalPlace, S3Place, check_key, is_loopback, parse_url, real_place, without_credentials


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://b", "b", ""),
        ("s3://b/", "b", ""),
        ("s3://b/a/c/", "b", "a/c"),
        ("s3://b/what?#x", "b", "what?#x"),
        ("s3://b/with space/ü", "b", "with space/ü"),
    ],
)
def test_s3_urls(url, bucket, prefix):
    place = parse_url(url)
    assert place == S3Place(bucket, prefix)
    assert parse_url(place.url) == place


@pytest.mark.parametrize(
    ("url", "path"),
    [("file:///a/b%20c", "/a/b c"), ("file://localhost/a", "/a"), ("/a/b c", "/a/b c"), ("/a/b%20c", "/a/b%20c")],
)
def test_directories(url, path):
    place = parse_url(url)
    assert place == LocalPlace(Path(path))
    assert parse_url(place.url) == place


def test_a_relative_directory_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_url("runs") == LocalPlace(tmp_path / "runs")
    assert parse_url("~/runs") == LocalPlace(Path.home() / "runs")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is empty"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("gs://bucket/x", "scheme 'gs', which is not known"),
        ("https://host/bucket", "scheme 'https', which is not known"),
        ("file://host/dir", "not an absolute path"),
        ("~nobody-of-this-name/runs", "home of a user who has none here"),
        ("file:relative", None),
    ],
)
def test_what_is_no_place(url, says):
    if says is None:
        assert isinstance(parse_url(url), LocalPlace)
        return
    with pytest.raises(RequestError, match=says) as caught:
        parse_url(url)
    assert caught.value.exit_code == 2 and caught.value.hint


def test_one_place_is_one_place_however_it_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "é").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "é")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    plain, encoded = f"{tmp_path}/é/runs", f"{tmp_path.as_uri()}/%C3%A9/runs"
    spelled = [plain, encoded, f"file://{plain}", f"file://localhost{plain}", "é/runs", "./é/runs", "~/é/runs", "link/runs",
               f"{plain}/", f"{tmp_path}/é/../link//runs"]  # fmt: skip
    assert {real_place(url) for url in spelled} == {LocalPlace(tmp_path.resolve() / "é" / "runs")}
    assert real_place("s3://b/a/") == real_place("s3://b/a") == S3Place("b", "a")
    with pytest.raises(RequestError, match="cannot be a path"):
        real_place("/a\0b")


def test_credentials_in_a_url_are_refused_and_not_repeated():
    for url in ("s3://key:hunter2@bucket/x", "https://key:hunter2@host/x?signature=hunter2"):
        with pytest.raises(RequestError) as caught:
            parse_url(url)
        assert "hunter2" not in str(caught.value)
    assert without_credentials("http://me:hunter2@host:9000/x?q=1") == "http://host:9000/x"


def test_loopback():
    assert [
        is_loopback(u) for u in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9")
    ] == [True] * 4
    assert not is_loopback("http://10.0.0.1:1") and not is_loopback("https://localhost.example.com")


@pytest.mark.parametrize("key", ["a", "a/b.c", "..a", "a..b", "...", "ü x"])
def test_plain_keys_pass(key):
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/", "a//b", "a/..", "..", ".", "a/./b", "a\x7f", "\n", "C:\\x", "x/.tlcore-tmp-1"]
)
def test_other_keys_do_not(key):
    with pytest.raises(StorageError, match="not a plain relative name"):
        check_key(key)
