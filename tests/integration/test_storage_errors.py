"""What a wrong endpoint, bucket or key gives: one clear message, soon, without secrets."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tlcore.errors import (
    BucketMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageThrottled,
    StorageUnreachable,
)
from tlcore.storage import ObjectStore, open_store, probe
from tlcore.storage.access import resolve_access
from tlcore.storage.s3 import _BETWEEN_ROUNDS_S, QUICK, S3ObjectStore
from tlcore.storage.urls import S3Place

pytestmark = pytest.mark.integration

SECRET = "very-secret-0123456789"


class Misbehaving:
    """A tiny S3 endpoint: `answer(method, path, n)` gives status and body of the n-th request, or None to hang up.

    Whether it honours `If-None-Match` is asked on keys of its own, which are answered as they should be and not counted.
    """

    def __init__(self, answer: Callable[[str, str, int], tuple[int, bytes] | None]) -> None:
        self.requests: list[str] = []
        self.objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if "if-none-match-" in self.path or b"if-none-match-" in body:
                    self.honest()
                    return
                outer.requests.append(self.command)
                found = answer(self.command, self.path, len(outer.requests))
                if found is None:
                    outer.objects.setdefault(self.path, body)  # stored, but the answer is lost
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                status, content = found
                self.say(status, content)

            def honest(self) -> None:
                if self.command == "PUT":
                    there = self.path in outer.objects
                    outer.objects[self.path] = b"first"
                    self.say(412 if there else 200, b"")
                elif self.command == "POST":
                    self.say(200, b"<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>")
                else:
                    self.say(200, outer.objects[self.path])

            def say(self, status: int, content: bytes) -> None:
                if (status, content) == (200, b"stored"):
                    content = outer.objects.get(self.path, b"")
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", '"x"')
                self.send_header("Last-Modified", "Sat, 21 Nov 2026 05:00:00 GMT")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def misbehaving(use_endpoint) -> Iterator[Callable[..., Misbehaving]]:
    servers: list[Misbehaving] = []

    def start(answer: Callable[[str, str, int], tuple[int, bytes] | None]) -> Misbehaving:
        servers.append(Misbehaving(answer))
        use_endpoint(servers[-1].endpoint)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def use_endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def use(endpoint: str, key: str = "AKIAEXAMPLE", secret: str = SECRET) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    return use


def xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>m</Message><StringToSign>{SECRET}</StringToSign></Error>".encode()


def refused(kind: type[StorageError], *words: str, url: str = "s3://some-bucket/prefix") -> StorageError:
    """Both ways to a store must say the same: the probe, and a first request."""
    for use in (lambda: probe(url), lambda: open_store(url).put("x", b"1")):
        with pytest.raises(kind) as caught:
            use()
        text = str(caught.value)
        for word in words:
            assert word in text
        assert SECRET not in text
        assert "\n" in text, "no hint"
        assert caught.value.__cause__ is None, "the vendor's text may quote what was signed"
    return caught.value


def test_unknown_key_and_wrong_secret_are_denied(embedded_store, use_endpoint):
    env = embedded_store.env()
    use_endpoint(env["AWS_ENDPOINT_URL"], key="AKIANOBODY")
    refused(StorageDenied, "403 InvalidAccessKeyId", "'some-bucket'", env["AWS_ENDPOINT_URL"], "AWS_ACCESS_KEY_ID")
    use_endpoint(env["AWS_ENDPOINT_URL"], key=env["AWS_ACCESS_KEY_ID"])
    error = refused(StorageDenied, "403 SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY")
    assert error.exit_code == 2


def test_a_missing_bucket_is_named(embedded_store, use_endpoint):
    env = embedded_store.env()
    use_endpoint(env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])
    error = refused(BucketMissing, "404 NoSuchBucket", "bucket 'no-such-bucket'", url="s3://no-such-bucket/x")
    assert error.exit_code == 2
    for read in (lambda store: store.get("x"), lambda store: list(store.list()), lambda store: store.delete(["x"])):
        with pytest.raises(BucketMissing):
            read(open_store("s3://no-such-bucket/x"))


def test_nothing_listening_is_said_soon(use_endpoint):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    use_endpoint(f"http://127.0.0.1:{port}")
    error = refused(StorageUnreachable, "connection refused", f"http://127.0.0.1:{port}", "AWS_ENDPOINT_URL")
    assert error.retry_helps


def test_an_unknown_host_is_said(use_endpoint):
    use_endpoint("http://no-such-host.invalid:9000")
    with pytest.raises(StorageUnreachable, match=r"no-such-host.invalid:9000: the host name is not known"):
        probe("s3://some-bucket/x")


def test_a_server_that_accepts_and_never_answers_is_given_up(use_endpoint):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        use_endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageUnreachable, match="no answer in time"):
            probe("s3://some-bucket/x")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", StorageThrottled),
        (429, "TooManyRequests", StorageThrottled),
        (500, "InternalError", StorageUnreachable),
        (408, "", StorageUnreachable),
        (400, "RequestTimeout", StorageUnreachable),
        (503, "", StorageUnreachable),
        (507, "XMinioStorageFull", StorageFull),
        (403, "AccessDenied", StorageDenied),
        (400, "ExpiredToken", StorageDenied),
        (403, "RequestTimeTooSkewed", StorageDenied),
        (401, "", StorageDenied),
        (301, "PermanentRedirect", BucketMissing),
        (400, "InvalidBucketName", BucketMissing),
    ],
)
def test_each_answer_has_its_exception(misbehaving, status, code, kind):
    misbehaving(lambda *_: (status, xml(code) if code else b""))
    with pytest.raises(kind) as caught:
        probe("s3://some-bucket/prefix")
    assert str(status) in caught.value.message
    assert code in caught.value.message or status == 301


@pytest.mark.parametrize(("code", "kind"), [("AccessDenied", StorageDenied), ("InternalError", StorageUnreachable)])
def test_a_bulk_delete_that_is_refused_for_one_key_has_its_exception(misbehaving, code, kind):
    """The answer itself is a 200: a role that may put and not delete used to be taken for a broken connection."""
    refusal = (
        f"<DeleteResult><Error><Key>p/a</Key><Code>{code}</Code><Message>{SECRET}</Message></Error></DeleteResult>"
    )
    server = misbehaving(lambda *_: (200, refusal.encode()))
    place = S3Place("some-bucket", "p")
    with pytest.raises(kind, match=f"cannot delete 'p/a' in bucket 'some-bucket' at http://.*: error {code}") as caught:
        S3ObjectStore(place, resolve_access(place), QUICK).delete(["a", "b"])
    assert SECRET not in str(caught.value)
    assert (server.requests.count("POST") == 1) == (kind is StorageDenied), "a refusal is not asked again"


def test_a_store_that_slows_down_for_a_moment_is_waited_for(misbehaving):
    server = misbehaving(lambda _method, _path, n: (503, xml("SlowDown")) if n in (2, 3) else (200, b""))
    open_store("s3://some-bucket").put("x", b"1")
    assert server.requests == ["GET", "PUT", "PUT", "PUT"]


def test_a_request_that_timed_out_on_its_way_is_made_again_after_a_pause(misbehaving):
    """A 400 that is no verdict on the request; the client takes it for one, so the pauses are ours."""
    server = misbehaving(lambda _method, _path, n: (400, xml("RequestTimeout")) if n in (2, 3) else (200, b""))
    began = time.monotonic()
    open_store("s3://some-bucket").put("x", b"1")
    assert server.requests == ["GET", "PUT", "PUT", "PUT"]
    assert time.monotonic() - began >= _BETWEEN_ROUNDS_S


def test_a_conflict_is_ours_to_handle_only_where_something_is_created(misbehaving):
    misbehaving(lambda method, *_: (409, xml("OperationAborted")) if method == "PUT" else (404, b""))
    store = open_store("s3://some-bucket")
    with pytest.raises(StorageError, match=r"cannot write 'x' in bucket 'some-bucket' .*: 409 OperationAborted"):
        store.put("x", b"1")
    with pytest.raises(StorageError, match="refused as present, and is not there"):
        store.put_if_absent("x", b"1")


@pytest.mark.parametrize(("ours", "outcome"), [(b"mine", True), (b"other", False)])
def test_a_conditional_put_whose_answer_is_lost_reads_back_and_compares(misbehaving, ours, outcome):
    """The first PUT is stored but its answer never comes: the writer must find its own bytes, or another's."""

    def answer(method: str, path: str, _n: int) -> tuple[int, bytes] | None:
        if method == "PUT":
            return None if server.requests.count("PUT") == 1 else (412, xml("PreconditionFailed"))
        return (200, b"stored") if path == "/some-bucket/once" else (404, b"")

    server = misbehaving(answer)
    server.objects["/some-bucket/once"] = b"mine"
    assert open_store("s3://some-bucket").put_if_absent("once", ours) is outcome
    assert server.requests.count("PUT") == 2


def test_a_conditional_put_whose_every_answer_is_lost_still_finds_its_bytes(misbehaving):
    server = misbehaving(lambda method, *_: None if method == "PUT" else (200, b"stored"))
    store = S3ObjectStore(S3Place("some-bucket", ""), resolve_access(S3Place("some-bucket", "")), QUICK)
    assert store.put_if_absent("once", b"mine") is True
    assert server.objects["/some-bucket/once"] == b"mine"


def test_a_conditional_put_refused_by_its_own_first_attempt_is_a_success(misbehaving):
    """A 5xx that stored the object all the same, then 412 for the client's own repetition."""

    def answer(method: str, path: str, n: int) -> tuple[int, bytes] | None:
        if method == "PUT":
            return (500, xml("InternalError")) if n == 2 else (412, xml("PreconditionFailed"))
        return (200, b"stored") if path == "/some-bucket/once" else (404, b"")

    server = misbehaving(answer)
    server.objects["/some-bucket/once"] = b"mine"
    assert open_store("s3://some-bucket").put_if_absent("once", b"mine") is True


def test_no_credentials_at_all_is_said(monkeypatch, tmp_path, use_endpoint):
    from tlcore.storage import credentials

    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    credentials._session.cache_clear()
    credentials._chain.cache_clear()
    with pytest.raises(StorageDenied, match="no credentials found for bucket 'some-bucket'"):
        open_store("s3://some-bucket/x")


def test_a_profile_of_the_users_is_used(monkeypatch, tmp_path, embedded_store, use_endpoint):
    from tlcore.storage import credentials

    env = embedded_store.env()
    keys = f"aws_access_key_id={env['AWS_ACCESS_KEY_ID']}\naws_secret_access_key={env['AWS_SECRET_ACCESS_KEY']}\n"
    (tmp_path / "credentials").write_text(f"[team]\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    monkeypatch.setenv("AWS_ENDPOINT_URL", env["AWS_ENDPOINT_URL"])
    credentials._session.cache_clear()
    credentials._chain.cache_clear()
    probe("s3://tlcore/by-profile")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageDenied, match="nobody"):
        open_store("s3://tlcore/by-profile")


def _in_child(store_url: str, queue: multiprocessing.Queue) -> None:
    try:
        queue.put(open_store(store_url).get("x"))
    except StorageError as error:
        queue.put(str(error))


@pytest.mark.parametrize(("method", "expected"), [("spawn", b"1"), ("fork", "was forked")])
def test_children_get_the_object_or_a_clear_word(s3_store: ObjectStore, method, expected):
    s3_store.put("x", b"1")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(s3_store.url, queue))
    child.start()
    try:
        answer = queue.get(timeout=600)
    finally:
        child.kill()
        child.join()
    assert answer == expected or expected in answer
