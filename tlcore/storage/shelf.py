"""What a node keeps of things that were fetched: each once, whole or not at all, proved, and gone when nobody uses it.

Owns `~/.cache/tlcore/<kind>/`: a folder per content, its lock, its seal and its age. Knows nothing of what lies in a folder
nor where it comes from. Called by `models/` (`fetch.py` for an `s3://` prefix, the sources that are converted, `weights.py` for a
checkpoint's weights) and by `data/on_node.py` (tables and tokens that are too large for every process's memory).

A folder is made beside its place and renamed, under a lock that the system drops with its holder: other processes of the node wait
for the first instead of fetching again, and one that was killed leaves only a folder of another name, which the next one removes.
The seal lists every file with size, time and SHA-256. Size and time are compared at each use; the digests once after each boot of
the node, by one process for all, and whenever a size or time differs: what is not what was fetched is fetched again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

UNUSED_S: Final = 30 * 24 * 3600.0
"""A folder that nobody asked for so long goes when the next one is made."""
SEAL: Final = ".tlcore-seal"
_BLOCK_BYTES: Final = 8 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def node_shelf(kind: str) -> Path:
    """Where this user's folders of a kind (`models`, `data`) lie on this machine."""
    return Path.home() / ".cache" / "tlcore" / kind


def shelved(
    shelf: Path, name: str, fill: Callable[[Path], None], boot: str | None = None, unused_s: float = UNUSED_S
) -> Path:
    """The folder of this name; `fill` writes its files into an empty one where it is not there, or not whole.

    Args:
        name: after the content, so that another content has another name.
        boot: which boot of the node this is; None asks the system.
        unused_s: how long nobody asked for the folders that go when one is made.

    Raises OSError where the shelf cannot be written; what `fill` raises.
    """
    boot = _boot_id() if boot is None else boot
    folder, proof = shelf / name, shelf / f"{name}.proof"
    if _is_proved(proof, boot) and _looks_whole(folder):
        _note_use(proof)
        return folder
    shelf.mkdir(parents=True, exist_ok=True)
    with _locked(shelf / f"{name}.lock"):
        if not (_is_proved(proof, boot) and _looks_whole(folder)):
            if not (_looks_whole(folder) and _is_whole(folder)):
                _make(folder, fill)
            proof.write_text(boot)
        _remove_unused(shelf, name, unused_s)
    return folder


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(building)
        files = {path.name: _facts(path) | {"sha256": _digest(path)} for path in sorted(building.iterdir())}
        for path in building.iterdir():
            _sync(path)
        (building / SEAL).write_text(json.dumps(files))
        _sync(building / SEAL)
        if folder.exists():
            damaged = folder.parent / f".{folder.name}-damaged"  # whoever has mapped its files keeps the pages
            folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _facts(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _seal_of(folder: Path) -> dict[str, Any] | None:
    try:
        files = json.loads((folder / SEAL).read_text())
    except (OSError, ValueError):
        return None
    return files if isinstance(files, dict) else None


def _looks_whole(folder: Path) -> bool:
    files = _seal_of(folder)
    try:
        return files is not None and all(
            _facts(folder / name) == {"bytes": facts["bytes"], "modified_ns": facts["modified_ns"]}
            for name, facts in files.items()
        )
    except (OSError, KeyError, TypeError):
        return False


def _is_whole(folder: Path) -> bool:
    return all(_digest(folder / name) == facts["sha256"] for name, facts in (_seal_of(folder) or {}).items())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _boot_id() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"


def _is_proved(proof: Path, boot: str) -> bool:
    try:
        return proof.read_text() == boot
    except OSError:
        return False


def _note_use(proof: Path) -> None:
    with suppress(OSError):
        proof.touch()


def _remove_unused(shelf: Path, name: str, unused_s: float) -> None:
    """What nobody asked for since, and what was left half made that long ago by processes that were killed."""
    before = time.time() - unused_s
    for proof in shelf.glob("*.proof"):
        other = proof.name.removesuffix(".proof")
        with suppress(OSError):
            if other != name and proof.stat().st_mtime < before:
                proof.unlink()
                shutil.rmtree(shelf / other, ignore_errors=True)
    for half in shelf.glob(".*-*"):
        with suppress(OSError):
            if half.stat().st_mtime < before:
                shutil.rmtree(half, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
