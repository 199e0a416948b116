"""What rank 0 writes down about a trial besides its checkpoints: the history, and what retention takes away.

Owns one background thread, so that the training step waits for none of these requests: a history record is a round trip, retention
some more. Does not own what is said (`saving.py`, `session.py`). Called by `saving.py` on rank 0; the other ranks have none.

Records are written in the order in which they are told. What the store refuses is raised by the next `check`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tlcore.checkpoint import Retention
from tlcore.storage import ObjectStore, append_json
from tlcore.storage.keys import history_key


class TrialNotes:
    """The history of one trial and the retention of its checkpoints, done in order in one thread."""

    def __init__(self, store: ObjectStore, trial: str, retention: Retention) -> None:
        self._store, self._trial, self._retention = store, trial, retention
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trial-notes")
        self._pending: deque[Future[None]] = deque()
        self._next = 0

    def tell(self, record: Mapping[str, Any]) -> None:
        """Append one record to the history, soon."""
        told = dict(record)
        self._later(lambda: self._append(told))

    def committed(self, step: int) -> None:
        """A checkpoint of `step` is there: take away, soon, what is not to be kept."""

        def retain() -> None:
            self._retention.after_commit(step)

        self._later(retain)

    def check(self) -> None:
        """Raise what went wrong since the last call (StorageError); does not wait."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def flush(self) -> None:
        """Wait until everything told so far is written; raises as `check` does."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Write what is left, then stop the thread."""
        self._thread.shutdown()
        self.check()

    def _later(self, work: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(work))

    def _append(self, record: Mapping[str, Any]) -> None:
        self._next = 1 + append_json(self._store, lambda n: history_key(self._trial, n), record, self._next)
