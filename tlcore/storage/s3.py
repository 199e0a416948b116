"""`s3://`: the six methods of ObjectStore over obstore, a Rust client whose calls release the GIL.

Owns requests, their retries and their translation. Credentials and endpoints come ready in `S3Access`
(`credentials.py`), clients from `clients.py`.

Ranges are first asked for over connections of our own, straight into the caller's memory (`direct.py`).

Retries are obstore's own for 8 s (exponential backoff with jitter from 0.1 s to 5 s, for 5xx answers, throttling and broken
connections), and rounds of them until 60 s have passed since the first attempt; one attempt may last 120 s (a 64 MiB chunk
at 0.6 MB/s). Between two rounds we look at what the client cannot know: whether the embedded server is full, which it says
as 500 only (`room.py`), and whether refused credentials have been renewed (`credentials.py`).
Before the first request of a process to a bucket, one GET with 3 s attempts and a 3 s total proves that something
answers, so a wrong endpoint is known within seconds while a store that goes away in the middle of training is waited
for. A repeated conditional put may meet its own first attempt, so `put_if_absent` reads back and compares whenever it is
refused or its answer is lost; servers without conditional put get the fallback of `conditional.py`. (SeaweedFS 4.48 lets
writers that race for one key wait about a second for each other.)

Payloads are not signed over TLS or loopback: every chunk has its own digest in a manifest, and hashing twice costs a
core at 2 GB/s. Over plain http to another host the payload is signed, as nothing else protects it on the way.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from typing_extensions import Buffer

from tlcore.errors import ObjectMissing, StorageDenied, StorageError, StorageFull, StorageThrottled, StorageUnreachable
from tlcore.storage.base import ObjectInfo, scatter, too_short
from tlcore.storage.clients import PATIENT, QUICK, Patience, client_of, forget_clients
from tlcore.storage.conditional import find_conditional, is_conditional, settle, warning
from tlcore.storage.direct import RangeConnections
from tlcore.storage.translate import Where, s3_error
from tlcore.storage.urls import S3Place, check_key

if TYPE_CHECKING:
    from obstore.store import S3Store

    from tlcore.storage.credentials import S3Access

Answer = TypeVar("Answer")

_CREATE_ATTEMPTS = 5
_BETWEEN_ROUNDS_S = 0.5
_LIST_PAGE = 1000
_VENDOR_ERRORS = (BaseError, FileNotFoundError)

_reached: set[tuple[S3Access, str]] = set()


class S3ObjectStore:
    """One bucket and prefix. Thread-safe; pickles as its URL, so no credentials travel."""

    def __init__(self, place: S3Place, access: S3Access, patience: Patience = PATIENT) -> None:
        self._place = place
        self._access = access
        self._patience = patience
        self._root = f"{place.prefix}/" if place.prefix else ""
        self._direct = RangeConnections(access)

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
        body = memoryview(data).cast("B")
        if not self.conditional:
            return self._put_looking(key, body)
        return self._create(key, body)

    @property
    def conditional(self) -> bool:
        """Whether the server honours `If-None-Match`; asks it where that is not known, once per process and bucket."""
        return is_conditional(
            self._access,
            self._place.bucket,
            lambda: find_conditional(
                lambda key, data: self._create(key, memoryview(data)), lambda key: self.delete([key])
            ),
        )

    @property
    def weakness(self) -> str:
        """What this server does not promise, as the log says it; empty where it promises all."""
        return "" if self.conditional else warning(self._access.shown)

    def _create(self, key: str, body: memoryview) -> bool:
        path = self._path(key)
        self._reach()  # outside the loop: a store that was never there has no first attempt to read back
        deadline = time.monotonic() + self._patience.total_s
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
            if lost is not None and time.monotonic() > deadline:
                raise lost
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise lost or StorageError(
            f"cannot {self._where('create', key)}: it is refused as present, and is not there", key=key
        )

    def _put_looking(self, key: str, body: memoryview) -> bool:
        """`put_if_absent` for a server without the condition; `conditional.py` says what it cannot promise."""
        held = self._equals(key, body)
        if held is not None:
            return held
        began = time.monotonic()
        self.put(key, body)
        settle(time.monotonic() - began)
        return self._equals(key, body) is True

    def get(self, key: str) -> bytes:
        path = self._path(key)
        return self._ask("read", key, lambda client: bytes(obstore.get(client, path).bytes()))

    def get_into(self, key: str, start: int, parts: Sequence[memoryview]) -> None:
        path, length = self._path(key), sum(len(part) for part in parts)
        if length == 0:  # S3 has no empty range; the object must exist all the same
            self._ask("read", key, lambda client: obstore.head(client, path))
            return
        self._reach()
        if self._direct.fill(client_of(self._access, self._place.bucket, self._patience), path, start, parts):
            return
        try:
            data = self._ask("read", key, lambda client: obstore.get_range(client, path, start=start, length=length))
        except StorageError as error:
            if error.fields.get("status") == 416:
                raise self._too_short(key, start, length, 0) from error
            raise
        if len(data) != length:
            raise self._too_short(key, start, length, len(data))
        scatter(memoryview(data).cast("B"), parts)

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

    def compact(self) -> None:
        """Have the embedded server give deleted objects' space back to its disk; nothing with any other server."""
        if self._access.room is not None:
            self._access.room.compact()

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
        return too_short(f"cannot {where}", start, length, got, **where.fields)

    def _equals(self, key: str, body: memoryview) -> bool | None:
        """Whether the stored object has these bytes; None where there is none. Sizes first: a chunk is 64 MiB."""
        path = self._path(key)
        try:
            meta = self._ask("read", key, lambda client: obstore.head(client, path))
            return meta["size"] == body.nbytes and self.get(key) == body
        except ObjectMissing:
            return None

    def _ask(self, action: str, key: str, request: Callable[[S3Store], Answer]) -> Answer:
        """One request, in rounds of the client's own retries."""
        self._reach()
        deadline = time.monotonic() + self._patience.total_s
        while True:
            began = time.monotonic()
            client = client_of(self._access, self._place.bucket, self._patience)
            try:
                return self._translated(action, key, lambda client=client: request(client))  # type: ignore[misc]
            except StorageDenied as error:
                if not self._access.credentials.renewed(str(error.fields.get("code")), began):
                    raise
                forget_clients(self._access)
            except (StorageUnreachable, StorageThrottled) as error:
                self._raise_if_full(action, key, error)
                if time.monotonic() > deadline:
                    raise
                # The client has not waited before some of these answers: it takes a 400 for final, whatever its code.
                time.sleep(random.uniform(0.5, 1.0) * _BETWEEN_ROUNDS_S)

    def _raise_if_full(self, action: str, key: str, error: StorageError) -> None:
        """SeaweedFS answers 500 InternalError to every write once no volume is left; the embedded one can be asked."""
        room = self._access.room
        if room is None or action not in ("write", "create") or error.fields.get("status") != 500:
            return
        fault = room.fault()
        if fault is not None:
            raise StorageFull(
                f"cannot {self._where(action, key)}: {fault}",
                hint="delete old runs or checkpoints and run `tlcore checkpoints gc`, or put the store on a larger disk "
                "(TLCORE_STORE_DIR), or set AWS_ENDPOINT_URL to use another store",
                **{**error.fields, "code": "NoVolumeLeft"},
            ) from None

    def _reach(self) -> None:
        """Once per process and bucket: find out quickly whether anything answers at all."""
        known = (self._access, self._place.bucket)
        if known in _reached:
            return
        try:
            self._translated("reach", "", lambda: obstore.get(client_of(*known, QUICK), ".tlcore-reach"))
        except (StorageUnreachable, StorageDenied) as error:
            if isinstance(error, StorageUnreachable) or "status" not in error.fields:
                raise
        except StorageError:
            pass  # any answer will do, "no such key" as well as "denied": the request itself will say it better
        _reached.add(known)

    def _translated(self, action: str, key: str, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except _VENDOR_ERRORS as error:
            if action == "create" and isinstance(error, AlreadyExistsError):
                raise  # for `_create` alone: any other request may meet a 409 too
            # `from None`: the client's text may quote what was signed.
            raise s3_error(error, self._where(action, key)) from None
