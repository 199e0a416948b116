"""`s3://`: the six methods of ObjectStore over obstore, a Rust client whose calls release the GIL.

Owns requests, their retries and their translation. Credentials and endpoints come ready in `S3Access`
(`credentials.py`).

Retries are obstore's own: exponential backoff with jitter from 0.1 s to 5 s, for 5xx answers, throttling and broken
connections, until 60 s have passed since the first attempt; one attempt may last 120 s (a 64 MiB chunk at 0.6 MB/s).
Before the first request of a process to a bucket, one GET with 3 s attempts and a 3 s total proves that something
answers, so a wrong endpoint is known within seconds while a store that goes away in the middle of training is waited
for. A repeated conditional put may meet its own first attempt, so `put_if_absent` reads back and compares whenever it is
refused or its answer is lost. (SeaweedFS 4.48 lets writers that race for one key wait about a second for each other.)

Payloads are not signed over TLS or loopback: every chunk has its own SHA-256 in a manifest, and hashing twice costs a
core at 2 GB/s. Over plain http to another host the payload is signed, as nothing else protects it on the way.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from typing_extensions import Buffer

from tlcore.errors import ObjectMissing, StorageDenied, StorageError, StorageUnreachable
from tlcore.storage.base import ObjectInfo
from tlcore.storage.translate import Where, s3_error
from tlcore.storage.urls import S3Place, check_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Store

    from tlcore.storage.credentials import S3Access

Answer = TypeVar("Answer")

_CREATE_ATTEMPTS = 5
_LIST_PAGE = 1000
_VENDOR_ERRORS = (BaseError, FileNotFoundError)


@dataclass(frozen=True)
class Patience:
    """How long a request goes on, in seconds: to connect, one attempt, the longest pause, and until no further attempt starts."""

    connect_s: float
    attempt_s: float
    backoff_s: float
    total_s: float

    @property
    def retries(self) -> RetryConfig:
        return {
            "max_retries": 100,
            "retry_timeout": timedelta(seconds=self.total_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=self.backoff_s),
                "base": 2,
            },
        }


PATIENT = Patience(connect_s=5, attempt_s=120, backoff_s=5, total_s=60)
QUICK = Patience(connect_s=2, attempt_s=3, backoff_s=0.5, total_s=3)

_lock = threading.Lock()
_clients: dict[tuple[S3Access, str, Patience], S3Store] = {}
_reached: set[tuple[S3Access, str]] = set()
_runtime_pid: int | None = None


def _client(access: S3Access, bucket: str, patience: Patience) -> S3Store:
    """One client per process for the same access, bucket and patience; it holds the connection pool."""
    global _runtime_pid
    if _runtime_pid not in (None, os.getpid()):
        # The client's threads stay behind in a fork and the child would wait for them for ever.
        raise StorageError(
            f"this process was forked from process {_runtime_pid}, which had already used the object store",
            hint="start worker processes with 'spawn' or 'forkserver'",
        )
    with _lock:
        _runtime_pid = os.getpid()
        found = _clients.get((access, bucket, patience))
        if found is None:
            found = _clients[access, bucket, patience] = _new_client(access, bucket, patience)
        return found


def _new_client(access: S3Access, bucket: str, patience: Patience) -> S3Store:
    from obstore.store import S3Store

    options: ClientConfig = {
        "allow_http": access.plain_http,
        "connect_timeout": timedelta(seconds=patience.connect_s),
        "timeout": timedelta(seconds=patience.attempt_s),
    }
    if access.loopback:
        # HTTP_PROXY must not swallow requests to this very machine; an explicit proxy replaces the environment's.
        options |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": "127.0.0.1,localhost,::1"}
    # What obstore would otherwise take from the environment for another endpoint is named here, so that it cannot
    # leak in.
    config: S3Config = {"region": access.region, "unsigned_payload": access.loopback or not access.plain_http}
    if access.endpoint is not None:
        config |= {
            "endpoint": access.endpoint,
            "aws_endpoint_url_s3": access.endpoint,
            "virtual_hosted_style_request": False,
        }
    if access.embedded:
        config |= {"skip_signature": False}
    return S3Store(
        bucket,
        config=config,
        client_options=options,
        retry_config=patience.retries,
        credential_provider=access.credentials,
    )


class S3ObjectStore:
    """One bucket and prefix. Thread-safe; pickles as its URL, so no credentials travel."""

    def __init__(self, place: S3Place, access: S3Access, patience: Patience = PATIENT) -> None:
        self._place = place
        self._access = access
        self._patience = patience
        self._root = f"{place.prefix}/" if place.prefix else ""

    def __repr__(self) -> str:
        return f"S3ObjectStore({self.url!r} at {self._access.shown})"

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        from tlcore.storage.open import open_store

        return open_store, (self.url,)

    @property
    def url(self) -> str:
        return self._place.url

    def put(self, key: str, data: Buffer) -> None:
        path, body = self._path(key), memoryview(data).cast("B")
        self._ask("write", key, lambda client: obstore.put(client, path, body, use_multipart=False))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        path, body = self._path(key), memoryview(data).cast("B")
        self._reach()  # outside the loop: a store that was never there has no first attempt to read back
        lost: StorageUnreachable | None = None
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                self._ask(
                    "create", key, lambda client: obstore.put(client, path, body, mode="create", use_multipart=False)
                )
                return True
            except AlreadyExistsError:
                pass
            except StorageUnreachable as error:
                lost = error  # the answer is lost, the object may be there
            held = self._equals(key, body)
            if held is not None:
                return held
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise lost or StorageError(
            f"cannot {self._where('create', key)}: it is refused as present, and is not there", key=key
        )

    def get(self, key: str) -> bytes:
        path = self._path(key)
        return self._ask("read", key, lambda client: bytes(obstore.get(client, path).bytes()))

    def get_range(self, key: str, start: int, length: int) -> Buffer:
        path = self._path(key)
        if length == 0:  # S3 has no empty range; the object must exist all the same
            self._ask("read", key, lambda client: obstore.head(client, path))
            return b""
        try:
            data = self._ask("read", key, lambda client: obstore.get_range(client, path, start=start, length=length))
        except StorageError as error:
            if error.fields.get("status") == 416:
                raise self._too_short(key, start, length, 0) from error
            raise
        if len(data) != length:
            raise self._too_short(key, start, length, len(data))
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # The client lists whole path segments only, so the last, partial one is matched here. The order is made here
        # too: SeaweedFS walks directories, which puts `a/b` before `a-b`, and S3 Express promises none.
        directory = self._root + prefix.rpartition("/")[0]
        cut = len(self._root)

        def read(client: S3Store) -> list[ObjectInfo]:
            pages = obstore.list(client, directory or None, chunk_size=_LIST_PAGE)
            return [
                ObjectInfo(meta["path"][cut:], meta["size"], meta["last_modified"]) for page in pages for meta in page
            ]

        found = self._ask("list", "", read)
        return iter(sorted((info for info in found if info.key.startswith(prefix)), key=lambda info: info.key))

    def delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key) for key in keys]
        if not paths:
            return
        try:
            self._ask("delete", keys[0], lambda client: obstore.delete(client, paths))
        except ObjectMissing:
            # Only servers without bulk delete say so, and then nothing tells which of the keys were left.
            for key, path in zip(keys, paths, strict=True):
                self._delete_one(key, path)

    def _delete_one(self, key: str, path: str) -> None:
        try:
            self._ask("delete", key, lambda client: obstore.delete(client, path))
        except ObjectMissing:
            return

    def _path(self, key: str) -> str:
        return self._root + check_key(key)

    def _where(self, action: str, key: str) -> Where:
        return Where(action, self._root + key if key else "", self._place.bucket, self._access.shown)

    def _too_short(self, key: str, start: int, length: int, got: int) -> StorageError:
        where = self._where("read", key)
        return StorageError(f"cannot {where}: wanted {length} bytes from byte {start}, got {got}", **where.fields)

    def _equals(self, key: str, body: memoryview) -> bool | None:
        """Whether the stored object has these bytes; None where there is none. Sizes first: a chunk is 64 MiB."""
        path = self._path(key)
        try:
            meta = self._ask("read", key, lambda client: obstore.head(client, path))
            return meta["size"] == body.nbytes and self.get(key) == body
        except ObjectMissing:
            return None

    def _ask(self, action: str, key: str, request: Callable[[S3Store], Answer]) -> Answer:
        self._reach()
        return self._translated(action, key, lambda: request(_client(self._access, self._place.bucket, self._patience)))

    def _reach(self) -> None:
        """Once per process and bucket: find out quickly whether anything answers at all."""
        known = (self._access, self._place.bucket)
        if known in _reached:
            return
        try:
            self._translated("reach", "", lambda: obstore.get(_client(*known, QUICK), ".tlcore-reach"))
        except (StorageUnreachable, StorageDenied) as error:
            if isinstance(error, StorageUnreachable) or "status" not in error.fields:
                raise
        except StorageError:
            pass  # any answer will do, "no such key" as well as "denied": the request itself will say it better
        _reached.add(known)

    def _translated(self, action: str, key: str, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except AlreadyExistsError:
            raise
        except _VENDOR_ERRORS as error:
            # `from None`: the client's text may quote what was signed.
            raise s3_error(error, self._where(action, key)) from None
