"""Making and finding runs, over a directory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tlcore.errors import ObjectMissing, RequestError
from tlcore.storage import RunRef, create_run, list_runs, newest_run, open_store, parse_run_url

NOW = datetime(2026, 11, 21, 4, 45, tzinfo=UTC)


def test_a_run_is_made_found_and_opened(tmp_path):
    run = create_run(str(tmp_path), "sentiment", {"recipe": {"x": 1}}, NOW, "e")
    assert run.url == f"{tmp_path.as_uri()}/sentiment/{run.run_id}"
    run.open().put("journal/00000000.json", b"{}")
    assert open_store(str(tmp_path)).get(f"sentiment/{run.run_id}/journal/00000000.json") == b"{}"
    assert run.identity() == {"recipe": {"x": 1}, "name": "sentiment", "run_id": run.run_id, "created": NOW.isoformat()}
    assert newest_run(str(tmp_path), "sentiment") == run == parse_run_url(run.url)


def test_the_newest_started_run_of_a_name_is_found(tmp_path):
    runs = [create_run(str(tmp_path), "a", {}, NOW + timedelta(seconds=n), "e") for n in (5, 1, 9)]
    create_run(str(tmp_path), "b", {}, NOW + timedelta(seconds=99), "e")
    assert newest_run(str(tmp_path), "a") == runs[2]
    assert list_runs(str(tmp_path), "a") == [runs[1], runs[0], runs[2]]
    assert {run.name for run in list_runs(str(tmp_path))} == {"a", "b"}


def test_a_run_that_was_only_announced_does_not_count(tmp_path):
    run = create_run(str(tmp_path), "a", {}, NOW, "e")
    open_store(str(tmp_path)).put(".runs/a/20990101-000000-ffff", b"")
    assert newest_run(str(tmp_path), "a") == run


def test_two_runs_of_the_same_second_and_entropy_are_two(tmp_path):
    first, second = (create_run(str(tmp_path), "a", {"n": n}, NOW, "e") for n in (1, 2))
    assert first.run_id != second.run_id
    assert (first.identity()["n"], second.identity()["n"]) == (1, 2)


def test_a_name_without_runs_says_which_there_are(tmp_path):
    with pytest.raises(ObjectMissing, match="no run named 'x'") as caught:
        newest_run(str(tmp_path), "x")
    assert caught.value.hint == "there is no run at all"
    create_run(str(tmp_path), "here", {}, NOW, "e")
    with pytest.raises(ObjectMissing) as caught:
        newest_run(str(tmp_path), "x")
    assert caught.value.hint == "there is: here"


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".runs"])
def test_names_that_cannot_be_a_runs(tmp_path, name):
    for use in (lambda: create_run(str(tmp_path), name, {}, NOW, "e"), lambda: newest_run(str(tmp_path), name)):
        with pytest.raises(RequestError, match="run name"):
            use()


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/only", "/x"])
def test_urls_that_name_no_run(url, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="does not name a run"):
        parse_run_url(url)


def test_a_run_in_a_bucket_root_has_its_url(monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(name, value)
    assert parse_run_url("s3://bucket/name/id") == RunRef("s3://bucket", "name", "id")
