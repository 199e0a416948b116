"""What rank 0 writes down about a trial besides its checkpoints: the history, and what retention takes away.

Owns one background thread, so that the training step waits for none of these requests: a history record is a round trip, retention
some more. Does not own what is said (`saving.py`, `session.py`). Called by `saving.py` on rank 0; the other ranks have none.

Records are written in the order in which they are told. A store that is away is asked again for minutes, as it is for saves. What
it still refuses then is raised by the next `check` where it is a record; a failed retention is a warning, and the next commit's
takes care of it. A missing right is said once, not with every commit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tlcore.checkpoint import Retention
from tlcore.checkpoint.patience import Patience
from tlcore.errors import StorageDenied, StorageError
from tlcore.storage import ObjectStore, append_json
from tlcore.storage.keys import history_key, history_prefix, parse_history_key

ATTEMPTS = 20
"""Tries of one request, after the client's own: with the pauses between them at least two and a half minutes."""


class TrialNotes:
    """The history of one trial and the retention of its checkpoints, done in order in one thread.

    Args:
        new_retention: makes what retains; again after a failure, since what it knows of the trial may then be incomplete.
    """

    def __init__(self, store: ObjectStore, trial: str, new_retention: Callable[[], Retention]) -> None:
        self._store, self._trial, self._new_retention = store, trial, new_retention
        self._retention: Retention | None = None
        self._is_denied = False
        self._patience = Patience(ATTEMPTS)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trial-notes")
        self._pending: deque[Future[None]] = deque()
        self._next: int | None = None

    def tell(self, record: Mapping[str, Any]) -> None:
        """Append one record to the history, soon."""
        told = dict(record)
        self._later(lambda: self._append(told))

    def committed(self, step: int) -> None:
        """A checkpoint of `step` is there: take away, soon, what is not to be kept."""
        self._later(lambda: self._retain(step))

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

    def abandon(self) -> None:
        """Ask a store that is away no more, and stop the thread."""
        self._patience.abandon()
        self._thread.shutdown()

    def _later(self, work: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(work))

    def _append(self, record: Mapping[str, Any]) -> None:
        def append() -> int:
            return append_json(self._store, lambda n: history_key(self._trial, n), record, self._first_free())

        try:
            self._next = 1 + self._patience.ask(append)
        except StorageError:
            self._patience.abandon()  # the trial ends by this: what follows must not take as long again
            raise

    def _first_free(self) -> int:
        """The number after the highest of the history; looked up once, since this writer is the only one."""
        if self._next is None:
            listed = (parse_history_key(each.key) for each in self._store.list(history_prefix(self._trial)))
            self._next = 1 + max((parsed.n for parsed in listed if parsed is not None), default=-1)
        return self._next

    def _retain(self, step: int) -> None:
        try:
            self._patience.ask(lambda: self._after_commit(step))
            self._is_denied = False
        except StorageError as error:
            is_said, self._is_denied = self._is_denied, isinstance(error, StorageDenied)
            if is_said and self._is_denied:
                return
            logging.getLogger(__name__).warning(
                "trial %s: what is not to be kept after step %s could not be taken away, the next commit tries again: %s",
                self._trial,
                step,
                error.message,
            )

    def _after_commit(self, step: int) -> None:
        retention, self._retention = self._retention or self._new_retention(), None
        retention.after_commit(step)
        self._retention = retention
