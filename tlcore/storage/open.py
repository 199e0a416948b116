"""From a URL to a store: `open_store`, the same place for fsspec, and the proof that a place can be used.

Owns the entry points other rooms call. The rules live in `urls.py` (what a URL means) and `access.py` (endpoint and
credentials).
"""

from __future__ import annotations

import secrets
from typing import Any

from tlcore.errors import StorageError
from tlcore.storage.access import needs_embedded, resolve_access
from tlcore.storage.base import ObjectStore
from tlcore.storage.clients import PATIENT, QUICK, Patience
from tlcore.storage.conditional import PROBE_PREFIX
from tlcore.storage.embedded import EmbeddedStore
from tlcore.storage.local import LocalObjectStore
from tlcore.storage.s3 import S3ObjectStore
from tlcore.storage.urls import LocalPlace, parse_url


def open_store(url: str) -> ObjectStore:
    """The store at a URL: `s3://bucket/prefix`, `file:///dir` or a directory path. Sends nothing.

    Raises RequestError (not a storage URL), StorageDenied (no credentials), StorageUnreachable (embedded server down).
    """
    return _open(url, PATIENT)


def _open(url: str, patience: Patience) -> ObjectStore:
    place = parse_url(url)
    if isinstance(place, LocalPlace):
        return LocalObjectStore(place)
    return S3ObjectStore(place, resolve_access(place), patience)


def ensure_embedded(url: str) -> None:
    """Start the embedded server if `url` lives in it and it is down; nothing otherwise."""
    place = parse_url(url)
    if not isinstance(place, LocalPlace) and needs_embedded(place):
        EmbeddedStore().up()


def fsspec_options(url: str) -> dict[str, Any]:
    """`storage_options` for fsspec, s3fs, pandas and `datasets` that reach what `open_store(url)` reaches.

    Holds the embedded server's keys where the URL lives there, so it must not be printed; elsewhere s3fs finds them
    itself.
    """
    place = parse_url(url)
    if isinstance(place, LocalPlace):
        return {}
    access = resolve_access(place)
    options: dict[str, Any] = {
        "client_kwargs": {"region_name": access.region},
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 4, "mode": "standard"}},
    }
    if access.endpoint is not None:
        options["client_kwargs"]["endpoint_url"] = access.endpoint
        options["config_kwargs"]["s3"] = {"addressing_style": "virtual" if access.virtual_hosts else "path"}
    if access.embedded:
        keys = access.credentials()
        options |= {"key": keys["access_key_id"], "secret": keys["secret_access_key"]}
    if access.loopback:
        options["config_kwargs"]["proxies"] = {}
    return options


def probe(url: str) -> str:
    """Prove in a few seconds that objects can be written, created only once, read, listed and deleted under `url`.

    Returns what is weaker there, in one line; empty where nothing is. A server without conditional PUT passes: it gets the
    fallback of `conditional.py`, and the same line as a warning in the log.
    Raises the one StorageError that says what cannot be done, and where.
    """
    store = _open(url, QUICK)
    key = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    _expect(store.put_if_absent(key, b"first"), store, "a conditional write of a new object was refused")
    refused = not store.put_if_absent(key, b"second")
    _expect(refused, store, "a conditional write replaced an object")
    store.put(key, b"third")
    _expect(store.get(key) == b"third", store, "what was read is not what was written")
    _expect([info.key for info in store.list(key)] == [key], store, "a written object is not listed")
    store.delete([key])
    _expect(not list(store.list(key)), store, "a deleted object is still listed")
    return store.weakness if isinstance(store, S3ObjectStore) else ""


def _expect(holds: bool, store: ObjectStore, otherwise: str) -> None:
    if not holds:
        raise StorageError(f"storage {store.url} cannot hold checkpoints: {otherwise}", hint="use another object store")
