"""An ObjectStore in memory that keeps the contract, and wrappers that fail or wait on command. For unit tests only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from tlcore.errors import ObjectMissing
from tlcore.storage.base import ObjectInfo, scatter, too_short


class MemoryStore:
    """Thread-safe; `objects` maps keys to (bytes, modified). Counts requests by kind."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.now = datetime(2026, 11, 21, tzinfo=UTC)
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda kind, key: None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "memory://run"

    def _note(self, kind: str, key: str) -> None:
        with self._lock:
            self.requests.append((kind, key))
        self.before(kind, key)

    def put(self, key, data) -> None:
        self._note("put", key)
        with self._lock:
            self.objects[key] = (bytes(data), self.now)

    def put_if_absent(self, key, data) -> bool:
        self._note("put_if_absent", key)
        with self._lock:
            held = self.objects.setdefault(key, (bytes(data), self.now))[0]
            return held == bytes(data)

    def get(self, key) -> bytes:
        self._note("get", key)
        with self._lock:
            if key not in self.objects:
                raise ObjectMissing(f"{key} is missing")
            return self.objects[key][0]

    def get_into(self, key, start, parts) -> None:
        self._note("get_into", key)
        length = sum(len(part) for part in parts)
        with self._lock:
            if key not in self.objects:
                raise ObjectMissing(f"{key} is missing")
            data = self.objects[key][0]
        if start + length > len(data):
            raise too_short(key, start, length, max(0, len(data) - start), key=key)
        scatter(memoryview(data)[start : start + length], parts)

    def list(self, prefix="") -> Iterator[ObjectInfo]:
        self._note("list", prefix)
        with self._lock:
            found = sorted((key, len(data), at) for key, (data, at) in self.objects.items() if key.startswith(prefix))
        return iter([ObjectInfo(*each) for each in found])

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._note("delete", key)
            with self._lock:
                self.objects.pop(key, None)

    # What tests do to it.

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def flip(self, key: str, at: int) -> None:
        data, when = self.objects[key]
        self.objects[key] = (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], when)

    def truncate(self, key: str, size: int) -> None:
        data, when = self.objects[key]
        self.objects[key] = (data[:size], when)

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Gate:
    """Holds every request whose key contains `part` until opened; a `before` hook for MemoryStore."""

    def __init__(self, part: str, kinds: Sequence[str] = ("put",)) -> None:
        self._part, self._kinds = part, kinds
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, kind: str, key: str) -> None:
        if kind in self._kinds and self._part in key:
            self.reached.set()
            assert self._open.wait(60), "the test never opened the gate"

    def open(self) -> None:
        self._open.set()


def puts(store: MemoryStore, part: str = "cas/") -> list[str]:
    """Keys that were put so far and contain `part`, in order."""
    return [key for kind, key in store.requests if kind == "put" and part in key]
