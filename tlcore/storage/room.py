"""The embedded server's space: whether a volume is left to write to, and giving back what deleted objects take.

Owns the two questions to its master, over loopback. Called by `s3.py` when a write was answered 500, which is all that
SeaweedFS says when it is full, and by `reclaim.py`.

Found out by trying 4.48: a deleted object's bytes stay in its volume until the volume is compacted, which happens by itself
every 14 minutes where a third is garbage, and needs room for a second copy of the volume. A disk that is full to the brim
therefore never gets free again by deleting objects; `embedded.py` keeps room for two volumes back.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_ASK_S = 5.0
_COMPACT_S = 300.0
_LEAST_GARBAGE = 0.01


@dataclass(frozen=True)
class Room:
    """The space of one embedded server: the directory of its data and its master's HTTP address, `http://127.0.0.1:port`."""

    directory: str
    master: str

    def fault(self) -> str | None:
        """Why it takes no more, in words; None where it does, or does not say."""
        told = self._ask("/dir/status", _ASK_S)
        topology = json.loads(told)["Topology"] if told else None
        if topology is None or topology["Free"] > 0 or any(each.get("writables") for each in topology["Layouts"] or ()):
            return None
        return f"no space is left in the embedded store: all {topology['Max']} volumes in {self.directory} are full"

    def compact(self) -> None:
        """Give the space of deleted objects back to the disk; returns when that is done, or cannot be."""
        self._ask(f"/vol/vacuum?garbageThreshold={_LEAST_GARBAGE}", _COMPACT_S)

    def _ask(self, path: str, timeout_s: float) -> bytes | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of HTTP_PROXY
        try:
            with opener.open(self.master + path, timeout=timeout_s) as answer:
                found: Any = answer.read()
                return bytes(found)
        except (urllib.error.URLError, OSError):
            return None
