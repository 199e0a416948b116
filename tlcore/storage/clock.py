"""What time it is for a store, and how far behind its listings may be.

Owns two questions that only deletion by age asks; `checkpoint/gc.py` calls it. Ages are differences of times that the
store itself gave (`ObjectInfo.modified`), so the clock of the machine that asks never decides what is old.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from pathlib import Path

from tlcore.errors import StorageError
from tlcore.storage.base import ObjectStore
from tlcore.storage.urls import LocalPlace, real_place

CLOCK_PREFIX = ".tlcore-clock/"
NETWORK_LAG_S = 65.0
"""How long another host may not see a new name in a directory of a network file system: NFS keeps directories for up to
60 s (`acdirmax`)."""

_LOCAL_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs", "jfs", "reiserfs"}
)
_MOUNTS = Path("/proc/self/mounts")


def store_now(store: ObjectStore) -> datetime:
    """The store's present time: what it stamps on a small object, which is removed again.

    Raises StorageError where the object cannot be written or is not listed.
    """
    key = f"{CLOCK_PREFIX}{secrets.token_hex(8)}"
    store.put(key, b"now")
    try:
        found = [each.modified for each in store.list(key)]
    finally:
        store.delete([key])
    if not found:
        raise StorageError(f"{store.url}: an object written just now is not listed", key=key)
    return found[0]


def listing_lag_s(store: ObjectStore) -> float:
    """Seconds by which a listing may miss what another host wrote: 0 for S3 and for a local disk."""
    if not store.url.startswith("file://"):
        return 0.0
    place = real_place(store.url)  # a mount behind a symbolic link is the one that counts
    assert isinstance(place, LocalPlace)
    return 0.0 if _file_system(place.path) in _LOCAL_FILE_SYSTEMS else NETWORK_LAG_S


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path` (without symbolic links), as the kernel names it; empty where unknown."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    mounts = {Path(fields[1].replace("\\040", " ")): fields[2] for line in lines if len(fields := line.split()) > 2}
    return next((mounts[each] for each in (path, *path.parents) if each in mounts), "")
