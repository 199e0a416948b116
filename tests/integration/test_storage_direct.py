"""Ranges read over connections of our own: that they are, and what happens where such an answer is not what was asked for."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import unquote

import pytest
from certificates import make_certificates
from store_fixtures import read_range

from jobs.bench.network.faults import Faults
from tlcore.errors import ObjectMissing, StorageDenied
from tlcore.storage import ObjectStore, direct, open_store
from tlcore.storage import s3 as s3_module

pytestmark = pytest.mark.integration
DATA = os.urandom(1 << 20)


@pytest.fixture
def asked_again(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that obstore was asked for after all."""
    found: list[str] = []
    real = s3_module.obstore.get_range

    def noted(client, path, **where):
        found.append(path)
        return real(client, path, **where)

    monkeypatch.setattr(s3_module.obstore, "get_range", noted)
    return found


def test_connections_are_used_again_and_obstore_is_not_asked(s3_store, proxied, asked_again):
    s3_store.put("a key/ü=&?", DATA)
    proxy = proxied()
    store = open_store(s3_store.url)
    for start in range(0, 100, 10):
        assert read_range(store, "a key/ü=&?", start, 1000) == DATA[start : start + 1000]
    assert asked_again == []
    assert proxy.counts()["connections"] <= 2, "one for the first look whether anything answers, one for all ranges"


def test_a_connection_that_idled_is_not_trusted(s3_store, proxied, asked_again, monkeypatch):
    s3_store.put("x", DATA)
    proxy = proxied()
    store = open_store(s3_store.url)
    assert read_range(store, "x", 0, 10) == DATA[:10]
    before = proxy.counts()["connections"]
    monkeypatch.setattr(direct, "IDLE_S", 0.0)
    assert read_range(store, "x", 0, 10) == DATA[:10]
    assert (proxy.counts()["connections"], asked_again) == (before + 1, [])


def test_a_private_authority_is_trusted_when_named(s3_store, proxied, asked_again, tmp_path, monkeypatch):
    s3_store.put("x", DATA)
    authority, server, key = make_certificates(tmp_path)
    proxied(tls=(server, key))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    assert read_range(open_store(s3_store.url), "x", 5, 500_000) == DATA[5:500_005]
    assert asked_again == []


def test_throttled_ranges_are_asked_for_again(s3_store, proxied, asked_again):
    s3_store.put("x", DATA)
    proxy = proxied(Faults(slow_down_rate=0.5, seed=1))
    store = open_store(s3_store.url)
    for start in range(12):
        assert read_range(store, "x", start, 1000) == DATA[start : start + 1000]
    assert proxy.counts()["slow_downs"] > 0
    assert 0 < len(asked_again) < 12


def test_refused_keys_are_told_as_for_every_request(s3_store, proxied):
    s3_store.put("x", DATA)
    proxy = proxied()
    store = open_store(s3_store.url)
    assert read_range(store, "x", 0, 10) == DATA[:10]
    proxy.configure(Faults(valid_keys=("OTHER",)))
    with pytest.raises(StorageDenied, match="403 ExpiredToken"):
        read_range(store, "x", 0, 10)


def test_no_session_token_nor_signature_stands_in_a_request_line(s3_store, proxied, asked_again, tmp_path, monkeypatch):
    """Proxies and servers write request lines into their logs: what stands there is as good as published."""
    s3_store.put("a key/ü=&?", DATA)
    written = tmp_path / "requests.log"
    proxied(Faults(valid_keys=("LEASED",)), log=written)
    for name, value in (
        ("ACCESS_KEY_ID", "LEASED"),
        ("SECRET_ACCESS_KEY", "its-secret"),
        ("SESSION_TOKEN", "its/token=="),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    store = open_store(s3_store.url)
    store.put("put", b"1")
    assert (store.get("put"), len(list(store.list()))) == (b"1", 2)
    for start in range(0, 100, 10):
        assert read_range(store, "a key/ü=&?", start, 1000) == DATA[start : start + 1000]
    lines = unquote(written.read_text())
    assert (asked_again, lines.count("a key/ü=&? HTTP/1.1")) == ([], 10)
    told = ("its/token", "LEASED", "its-secret", "signature", "security-token", "credential")
    assert not [word for word in told if word.lower() in lines.lower()]


class Liar:
    """A server that answers its first range as it is told, and passes nothing on: later ones it closes without a word."""

    def __init__(self, answer: bytes, silent: bool = False) -> None:
        self._answer, self._silent = answer, silent
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        held = []
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            self.asked += 1
            connection.sendall(self._answer)
            if self._silent:
                held.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize(
    ("answer", "silent"),
    [
        (b"", False),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\n\r\nonly this", False),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\n\r\nonly this", True),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc", False),
        (b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000), False),
        (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", False),
        (b"junk\r\n\r\n", False),
    ],
)
def test_an_answer_that_is_not_the_range_is_never_taken_for_it(s3_store, asked_again, monkeypatch, answer, silent):
    """The connection leads to a liar; the client's own requests reach the store."""
    s3_store.put("x", DATA)
    monkeypatch.setattr(direct, "SILENCE_S", 0.3)
    liar = Liar(answer, silent)
    real = direct.http.client.HTTPConnection
    monkeypatch.setattr(direct.http.client, "HTTPConnection", lambda host, port, **more: real(host, liar.port, **more))
    try:
        assert read_range(open_store(s3_store.url), "x", 7, 1000) == DATA[7:1007]
    finally:
        liar.close()
    assert (liar.asked, len(asked_again)) == (1, 1)


def test_what_is_not_there_is_missing_whoever_looks(s3_store: ObjectStore):
    with pytest.raises(ObjectMissing):
        read_range(s3_store, "nothing", 0, 10)
