"""A driver that is killed around a roll-up: `journal_writer.py URL START WHEN` appends entry START, which fills a block, and kills
itself with SIGKILL before, during or after the segment's put."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import UTC, datetime
from typing import Any

from tlcore.storage import ObjectStore, open_store
from tlcore.storage.journal import Journal


class Mortal:
    """A store in front of which the process dies."""

    def __init__(self, inner: ObjectStore, when: str) -> None:
        self._inner, self._when = inner, when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if "segments/" not in key:
            return self._inner.put_if_absent(key, data)
        if self._when == "before":
            die()
        if self._when == "during":
            threading.Timer(0.001, die).start()
        done = self._inner.put_if_absent(key, data)
        die()
        return done


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    url, start, when = sys.argv[1:]
    store: Any = Mortal(open_store(url), when)
    Journal(store, lambda: datetime.now(UTC), start=int(start)).append("alive")
