"""Stores that are not plain: another authority's certificates, virtual hosts, keys that end, no conditional PUT, no space, a
restart in the middle of a save. A real SeaweedFS throughout, behind `jobs.bench.network.proxy` where it must misbehave."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificates import make_certificates
from store_fixtures import Proxied, throwaway_store

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from checkpoint_state import State, close, restored, same, save, saved, wait, writers

from jobs.bench.network.faults import Faults
from jobs.bench.network.proxy import FaultProxy
from tlcore.checkpoint import list_manifests, read_manifest, verify
from tlcore.errors import RequestError, StorageDenied, StorageFull, StorageUnreachable
from tlcore.remote.checks import look
from tlcore.storage import EmbeddedStore, ObjectStore, fsspec_options, open_store, probe, reclaim
from tlcore.storage import conditional as conditional_module
from tlcore.storage import credentials as credentials_module

pytestmark = pytest.mark.integration


@pytest.fixture
def url(s3_store: ObjectStore) -> str:
    return s3_store.url


# -- where a bucket is --


def test_a_private_authority_is_trusted_when_named_and_not_else(proxied, url, tmp_path, monkeypatch):
    authority, server, key = make_certificates(tmp_path)
    proxied(tls=(server, key))
    with pytest.raises(StorageUnreachable, match="the TLS certificate is not trusted"):
        probe(url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    probe(url)
    open_store(url).put("x", b"over tls")
    import fsspec

    with fsspec.open(f"{url}/x", "rb", **fsspec_options(url)) as file:
        assert file.read() == b"over tls"


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), ("no certificate", "holds no certificate")])
def test_a_bundle_that_is_none_is_named(proxied, url, tmp_path, monkeypatch, content, words):
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    proxied()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with pytest.raises(RequestError, match=words) as caught:
        open_store(url)
    assert "AWS_CA_BUNDLE" in str(caught.value)


def test_virtual_hosts_put_the_bucket_into_the_host_name(proxied, url, monkeypatch):
    """No name ends in .test, so the request comes by HTTP_PROXY, and the proxy takes the bucket off the host's name."""
    proxy = proxied()
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.test")
    monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    store = open_store(url)
    store.put("a/b", b"1")
    assert (store.get("a/b"), [each.key for each in store.list()]) == (b"1", ["a/b"])
    assert proxy.counts()["puts"] == 1


def test_a_style_that_is_neither_is_refused(proxied, url, monkeypatch):
    proxied()
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "maybe")
    with pytest.raises(RequestError, match="'maybe', which is neither true nor false"):
        open_store(url)


# -- keys that end --


class Issuer:
    """A credential_process, real and run by botocore: it prints what stands in a file, which the test changes."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._answer = directory / "answer.json"
        program = directory / "issue.py"
        program.write_text(f"print(open({str(self._answer)!r}).read())")
        config = directory / "config"
        config.write_text(f"[profile leased]\ncredential_process = {sys.executable} {program}\n")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "none"))
        monkeypatch.setenv("AWS_PROFILE", "leased")
        credentials_module._session.cache_clear()
        credentials_module._chain.cache_clear()

    def issue(self, key: str, lasts: timedelta = timedelta(hours=8)) -> None:
        """From now on, this key."""
        told = {
            "Version": 1,
            "AccessKeyId": key,
            "SecretAccessKey": f"secret-of-{key}",
            "SessionToken": f"token-of-{key}",
            "Expiration": (datetime.now(UTC) + lasts).isoformat(),
        }
        self._answer.write_text(json.dumps(told))


@pytest.fixture
def leased(proxied: Proxied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FaultProxy, Issuer]:
    """A store that accepts the key FIRST, and the process that issues it."""
    proxy = proxied(Faults(valid_keys=("FIRST",)))
    issuer = Issuer(tmp_path, monkeypatch)
    issuer.issue("FIRST")
    return proxy, issuer


def test_keys_that_the_store_ends_early_are_fetched_anew_in_the_middle_of_a_run(leased, url):
    proxy, issuer = leased
    store = open_store(url)
    store.put("before", b"1")
    issuer.issue("SECOND")
    proxy.configure(Faults(valid_keys=("SECOND",)))
    state = State()
    assert all(report.committed for report in saved(store, state, world_size=2))
    assert same(restored(store, state)[0], state)
    assert proxy.counts()["refused"] >= 1, "the old key was never refused: nothing was proved"


def test_keys_near_their_stated_end_are_renewed_without_a_refusal(leased, url):
    proxy, issuer = leased
    credentials_module._session.cache_clear()
    credentials_module._chain.cache_clear()
    issuer.issue("FIRST", timedelta(minutes=12))  # botocore renews a quarter of an hour before the end
    store = open_store(url)
    store.put("before", b"1")
    issuer.issue("SECOND")
    proxy.configure(Faults(valid_keys=("FIRST", "SECOND")))
    time.sleep(0.2)  # the client asks for credentials at most every 0.1 s
    store.put("after", b"2")
    proxy.configure(Faults(valid_keys=("SECOND",)))
    store.put("later", b"3")
    assert proxy.counts()["refused"] == 0


def test_keys_that_are_not_renewed_are_refused_with_a_word_on_how_to_renew(leased, url, caplog):
    proxy, _ = leased
    store = open_store(url)
    store.put("before", b"1")
    proxy.configure(Faults(valid_keys=("SECOND",)))
    with pytest.raises(StorageDenied, match="403 ExpiredToken") as caught:
        store.put("after", b"2")
    assert "log in again" in caught.value.hint
    assert "of-FIRST" not in str(caught.value) + repr(caught.value.fields) + caplog.text + repr(store._access)


def test_no_secret_stands_in_anything_that_a_run_leaves(proxied, url, embedded_store, caplog, capfd):
    """A save, a restore, an error and the debug log of every library; then every object, message and line is searched."""
    secret = embedded_store.env()["AWS_SECRET_ACCESS_KEY"]
    caplog.set_level(logging.DEBUG)
    proxy = proxied()
    store, state = open_store(url), State()
    saved(store, state, world_size=2)
    restored(store, state)
    proxy.configure(Faults(valid_keys=()))
    with pytest.raises(StorageDenied) as caught:
        store.put("x", b"1")
    proxy.configure(Faults())
    printed = capfd.readouterr()
    left = [caplog.text, str(caught.value), repr(caught.value.fields), repr(store), printed.out, printed.err]
    assert not [text for text in left if secret in text]
    objects = [each.key for each in store.list()]
    assert len(objects) > 5
    assert not [key for key in objects if secret.encode() in store.get(key) or secret in key]
    assert secret not in embedded_store.log.read_text(errors="replace")


def test_no_session_token_stands_in_a_request_line_a_log_or_an_error(
    proxied, url, tmp_path, monkeypatch, caplog, capfd
):
    """A save, a restore, keys that end and are renewed, keys that end for good; with the debug log of every library."""
    caplog.set_level(logging.DEBUG)
    written = tmp_path / "requests.log"
    proxy = proxied(Faults(valid_keys=("FIRST",)), log=written)
    issuer = Issuer(tmp_path, monkeypatch)
    issuer.issue("FIRST")
    store, state = open_store(url), State()
    saved(store, state, world_size=2)
    issuer.issue("SECOND")
    proxy.configure(Faults(valid_keys=("SECOND",)))
    restored(store, state)
    assert proxy.counts()["refused"] >= 1
    before = proxy.counts()["refused"]
    restored(store, state)
    assert proxy.counts()["refused"] == before, "ranges go on with the renewed keys"
    proxy.configure(Faults(valid_keys=()))
    with pytest.raises(StorageDenied) as caught:
        store.put("x", b"1")
    lines, printed = written.read_text(), capfd.readouterr()
    assert "/cas/" in lines and "GET /" in lines
    left = [lines, caplog.text, str(caught.value), repr(caught.value.fields), repr(store), printed.out, printed.err]
    assert not [text for text in left for word in ("token-of-", "secret-of-") if word in text]
    assert not [word for word in ("signature", "security-token", "credential") if word in lines.lower()]


# -- without conditional PUT --


@pytest.mark.parametrize("kind", ["ignored", "refused"])
def test_a_store_without_conditional_put_is_found_told_once_and_used(proxied, url, kind, caplog):
    proxy = proxied(Faults(conditional=kind))
    weakness = probe(url)
    store = open_store(url)
    assert store.put_if_absent("once", b"mine") is True
    assert store.put_if_absent("once", b"theirs") is False
    assert store.put_if_absent("once", b"mine") is True
    assert store.get("once") == b"mine"
    state = State()
    assert all(report.committed for report in saved(store, state, world_size=2))
    assert same(restored(store, state)[0], state)
    told = [record.getMessage() for record in caplog.records if "If-None-Match" in record.getMessage()]
    assert len(told) == 1
    assert proxy.endpoint in told[0] and "could both believe" in told[0]
    assert weakness == told[0]
    facts = look(url)
    assert (facts.storage_error, facts.storage_weakness) == ("", told[0])
    assert facts.storage_s is not None
    assert not [each for each in store.list() if each.key.startswith(conditional_module.PROBE_PREFIX)]


def test_a_store_with_conditional_put_is_not_warned_of(proxied, url, caplog):
    proxied()
    assert open_store(url).put_if_absent("once", b"mine") is True
    assert open_store(url).conditional is True
    assert "If-None-Match" not in caplog.text
    assert (probe(url), look(url).storage_weakness) == ("", "")


# -- no space, no server --


def test_a_full_store_fails_the_save_at_once_and_keeps_what_was_committed(proxied, url):
    proxy, store, state = proxied(), open_store(url), State()
    saved(store, state, step=100)
    proxy.configure(Faults(full=True))
    before = same(restored(store, state, step=100)[0], state)
    first = State(seed=9)
    ranks = writers(store, 1)
    save(ranks, first, 200)
    ranks[0].close()
    (report,) = ranks[0].poll()
    assert before and report.outcome == "failed" and "507 XMinioStorageFull" in report.error
    assert report.retries == 0, "no retry helps where no space is left"
    proxy.configure(Faults())
    assert saved(store, first, step=300, world_size=1)[0].committed
    assert list_manifests(store, "t000") == [100, 300]


@pytest.mark.long
def test_the_embedded_store_when_full_says_so_and_recovers_when_space_is_given_back(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TLCORE_STORE_DIR", str(tmp_path / "store"))
    server = EmbeddedStore(tmp_path / "store", volumes=2)
    server.up()
    try:
        store, state = open_store("s3://tlcore/run"), State()
        saved(store, state, step=100, world_size=1)
        body, filler = os.urandom(32 << 20), open_store("s3://tlcore/filler")
        with pytest.raises(StorageFull, match=r"all 2 volumes in .* are full") as caught:
            for number in range(40):
                filler.put(f"{number}", body)
        assert "tlcore checkpoints gc" in caught.value.hint
        ranks = writers(store, 1)
        save(ranks, State(seed=9), 200)
        ranks[0].close()
        assert [report.outcome for report in ranks[0].poll()] == ["failed"]
        assert same(restored(store, state, step=100, world_size=1)[0], state)
        filler.delete([each.key for each in filler.list()])
        reclaim(store, datetime.now(UTC))
        _until_written(filler, body)
        assert saved(store, state, step=300, world_size=1)[0].committed
    finally:
        server.down()


def _until_written(store: ObjectStore, body: bytes) -> None:
    """The server notices within a minute that its volumes have room again; until then it says that it is full."""
    for _ in range(20):
        try:
            return store.put("again", body)
        except StorageFull:
            continue
    raise AssertionError("the store never took another object")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_directory_says_so_keeps_what_is_there_and_recovers(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        store, state = open_store(str(disk / "root")), State()
        saved(store, state, step=100, world_size=1)
        with pytest.raises(StorageFull, match="No space left on device"):
            for number in range(10):
                store.put(f"filler/{number}", bytes(1 << 20))
        with pytest.raises(StorageFull):
            store.put_if_absent("filler/again", bytes(1 << 20))
        assert same(restored(store, state, step=100, world_size=1)[0], state)
        assert not list(disk.rglob(".tlcore-tmp-*"))
        store.delete([each.key for each in store.list("filler/")])
        assert saved(store, State(seed=9), step=200, world_size=1)[0].committed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_server_killed_and_restarted_in_the_middle_of_a_save(tmp_path, monkeypatch):
    """kill -9 while chunks are on their way: the save waits for the server, completes, and all of it is there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TLCORE_STORE_DIR", str(tmp_path / "store"))
    with throwaway_store(tmp_path / "store") as server:
        store = open_store(f"s3://tlcore/{secrets.token_hex(4)}")
        saved(store, State(), step=100, world_size=1)
        held = len(list(store.list("cas/")))
        state = State(seed=5, shapes={"w": (2_000_000,)})
        ranks = writers(store, 1)
        save(ranks, state, 200)
        while len(list(store.list("cas/"))) <= held:
            time.sleep(0.002)
        os.kill(int(server.status().pid or 0), signal.SIGKILL)
        assert list_missing(ranks) == []
        while server.status().running:
            time.sleep(0.01)
        threading.Timer(1.0, server.up).start()
        (report,) = wait(ranks)
        close(ranks)
        assert report.committed
        assert verify(store, read_manifest(store, "t000", 200)) == []
        assert same(restored(store, state, step=200, world_size=1)[0], state)


def list_missing(ranks) -> list[str]:
    """Saves that had already ended when the server was killed: then it was not killed in the middle."""
    return [report.outcome for each in ranks for report in each.poll() if report.step == 200]
