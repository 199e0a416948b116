"""What a rank's checkpoints cost besides time: requests, bytes, processor seconds, bytes written to files.

Owns the counting, not what is counted. Called by the operations of `worker.py`.

Files are counted in two ways that miss nothing together. The kernel says how many bytes of files on disks each process made dirty
(`write_bytes` in /proc/<pid>/io: also of files that are gone again, also through mmap), and knows nothing of file systems that live
in memory; those are looked for among the files that the process holds open or mapped, and in the directories it was given for
temporary files.
"""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import Buffer

from tlcore.storage import ObjectStore
from tlcore.storage.base import ObjectInfo

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


class CountingStore:
    """An ObjectStore that counts what goes through it: requests by kind, bytes of chunks, of documents, and read."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.committed_at: dict[str, float] = {}
        """Manifest key -> when its PUT was answered, by the monotonic clock."""

    @property
    def url(self) -> str:
        return self._inner.url

    def put(self, key: str, data: Buffer) -> None:
        self._inner.put(key, data)
        self._sent(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        done = self._inner.put_if_absent(key, data)
        if key.endswith("/MANIFEST.json"):
            self.committed_at[key] = time.monotonic()
        self._sent(key, data)
        return done

    def get(self, key: str) -> bytes:
        data = self._inner.get(key)
        self._add(get_requests=1, read_bytes=len(data))
        return data

    def get_into(self, key: str, start: int, parts: Sequence[memoryview]) -> None:
        self._add(get_requests=1, read_bytes=sum(len(part) for part in parts))
        self._inner.get_into(key, start, parts)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._add(list_requests=1)
        return self._inner.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        self._add(delete_requests=1)
        self._inner.delete(keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _sent(self, key: str, data: Buffer) -> None:
        size = memoryview(data).nbytes
        if key.startswith("cas/"):
            self._add(put_requests=1, chunk_bytes=size)
        else:
            self._add(put_requests=1, document_bytes=size)

    def _add(self, **counts: int) -> None:
        with self._lock:
            self.counts.update(counts)


@dataclass(frozen=True)
class Usage:
    """Of this process and its children, since it began: processor seconds and bytes of files on disks made dirty."""

    cpu_s: float
    file_bytes: int

    @classmethod
    def now(cls) -> Usage:
        own = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s, file_bytes = own.ru_utime + own.ru_stime, _dirtied("self")
        for child in psutil.Process().children(recursive=True):
            times = child.cpu_times()
            cpu_s += times.user + times.system
            file_bytes += _dirtied(str(child.pid))
        return cls(cpu_s, file_bytes)

    def since(self, before: Usage) -> Usage:
        return Usage(self.cpu_s - before.cpu_s, self.file_bytes - before.file_bytes)


def _dirtied(process: str) -> int:
    for line in Path("/proc", process, "io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    raise RuntimeError(f"/proc/{process}/io has no line write_bytes: this kernel counts no bytes of files")


def memory_files() -> dict[str, int]:
    """Files (path -> bytes) that the kernel's count leaves out: those in memory file systems that this process holds open or
    mapped, or that lie in its directory for temporary files."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path("/" + line.partition(" /")[2].removesuffix(" (deleted)")) for line in maps if " /" in line}
    paths |= {link.resolve() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    mounts = _memory_mounts()
    temporary = Path(tempfile.gettempdir())
    if f"{temporary}/".startswith(mounts):
        paths |= set(temporary.rglob("*"))
    return {str(path): path.stat().st_size for path in paths if f"{path}".startswith(mounts) and path.is_file()}


def in_memory(path: Path) -> bool:
    """Whether a path lies in a file system that is kept in memory."""
    return str(path.resolve()).startswith(_memory_mounts())


def _memory_mounts() -> tuple[str, ...]:
    return tuple(f"{each.mountpoint}/" for each in psutil.disk_partitions(all=True) if each.fstype in _IN_MEMORY)


def grown(before: dict[str, int], after: dict[str, int]) -> int:
    """Bytes by which files grew or that new files have."""
    return sum(max(0, size - before.get(path, 0)) for path, size in after.items())
