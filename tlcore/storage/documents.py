"""JSON in a store: write, read, append.

Owns the encoding (UTF-8, sorted keys, no NaN) and the way to append in order without a lock. Called by every room
that keeps facts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tlcore.errors import StorageError
from tlcore.storage.base import ObjectStore


def encode_json(value: Any) -> bytes:
    """The bytes of a JSON value, equal for equal values. ValueError for NaN and infinities, which JSON has not."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def put_json(store: ObjectStore, key: str, value: Any) -> None:
    store.put(key, encode_json(value))


def get_json(store: ObjectStore, key: str) -> Any:
    """Read and parse one object. Raises ObjectMissing, and StorageError when it is not JSON."""
    raw = store.get(key)
    try:
        return json.loads(raw)
    except ValueError as error:  # also UnicodeDecodeError
        raise StorageError(f"object {key!r} in {store.url} is not JSON: {error}", key=key) from error


def append_json(store: ObjectStore, key_of: Callable[[int], str], value: Mapping[str, Any], start: int) -> int:
    """Write `value` under the first free number from `start` on, and return that number.

    Writers on several machines may append at once: each number is taken by exactly one. Only where two of them write
    equal bytes at the same moment do they share a number, since a repeated attempt of one writer looks the same; a
    time or a writer in `value` prevents it.
    """
    body = encode_json(dict(value))
    n = start
    while not store.put_if_absent(key_of(n), body):
        n += 1
    return n
