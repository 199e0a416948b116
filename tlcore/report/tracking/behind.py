"""A display whose calls are made in a thread of its own: a tracker's server may be slow, the driver must not be.

Owns the queue and the thread. What came too late or was refused ends the tracking, not the sweep. Called by `displays.py`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from tlcore.report.tracking.curves import BoardLost, Shown
from tlcore.storage.journal import Entry

CLOSE_S: Final = 20.0
"""How long the end of a sweep waits for what is still to be written."""
_PROGRESS_WAITING: Final = 64
"""Calls that may wait before progress between reports is left out."""


class Behind:
    """`display`, told later. `say` gets one sentence where something could not be written."""

    def __init__(self, display: Shown, name: str, say: Callable[[str], None], close_s: float = CLOSE_S) -> None:
        self._display, self._name, self._say, self._close_s = display, name, say, close_s
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._thread.start()

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""
        self._calls.put(lambda: self._display.on_event(event))

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress, unless much waits already: another comes."""
        if self._calls.qsize() < _PROGRESS_WAITING:
            seen = {trial: dict(facts) for trial, facts in snapshot.items()}
            self._calls.put(lambda: self._display.on_progress(seen))

    def close(self) -> None:
        """Wait for what is still to be written, and say if that was not all."""
        self._calls.put(self._display.close)
        self._calls.put(None)
        self._thread.join(self._close_s)
        if not self._thread.is_alive() and not self._calls.empty():
            self._lost = "it ended by an error of its own"
        elif self._thread.is_alive():
            self._lost = f"the last reports were not taken within {self._close_s:g} s"
        if self._lost is not None:
            self._say(f"track.{self._name}: {self._lost}; the run in the store has every report")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._lost is None:
                try:
                    call()
                except BoardLost as lost:
                    self._lost = str(lost)
