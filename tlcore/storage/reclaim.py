"""What deleting objects leaves behind: half-written local files, and the space of deleted objects in the embedded server.

Owns one entry point, which garbage collection calls when it has deleted. Other stores need nothing: a PUT is one request
there, so nothing is ever half uploaded.
"""

from __future__ import annotations

from datetime import datetime

from tlcore.storage.base import ObjectStore
from tlcore.storage.local import LocalObjectStore
from tlcore.storage.s3 import S3ObjectStore


def reclaim(store: ObjectStore, before: datetime) -> int:
    """Remove what killed writers left under the store's root before `before`, and give freed space back to the disk.

    Args:
        store: as gc uses it.
        before: timezone-aware, by the clock of the store; younger leftovers may be writes under way.

    Returns:
        How many half-written files were removed.
    """
    if isinstance(store, LocalObjectStore):
        return store.remove_leftovers(before)
    if isinstance(store, S3ObjectStore):
        store.compact()
    return 0
