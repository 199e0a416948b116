"""Trying again, and waiting without being deaf: shared by everything here that talks to the store in the background.

Owns: `Patience`. Called by: `upload`, `commit`, `reader`. The clients below retry single requests for seconds; this
is the layer above, for a store that is away or throttling for longer, with the back-off and jitter that keep many
ranks from returning at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tlcore.errors import CheckpointError, StorageError

T = TypeVar("T")
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
FIRST_POLL_S = 0.01
LONGEST_POLL_S = 0.5


class Patience:
    """Retries and polls that end early once `abandon` was called. Counts retries; safe in many threads."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._retries = 0

    @property
    def retries(self) -> int:
        """Retries so far, over all threads."""
        return self._retries

    def abandon(self) -> None:
        """End every wait now; what is waiting raises CheckpointError."""
        self._abandoned.set()

    def check(self) -> None:
        """Raise CheckpointError when abandoned."""
        if self._abandoned.is_set():
            raise CheckpointError("abandoned by its writer before it was complete")

    def ask(self, request: Callable[[], T]) -> T:
        """`request()`, again after a pause when it raises a StorageError that a retry can help."""
        for attempt in range(1, self._attempts + 1):
            self.check()
            try:
                return request()
            except StorageError as error:
                if not error.retry_helps or attempt == self._attempts:
                    raise
            with self._lock:
                self._retries += 1
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
            self._abandoned.wait(longest * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def polls(self, deadline_s: float) -> Iterator[None]:
        """Yield once now and then ever less often, until `deadline_s` has passed."""
        end = time.monotonic() + deadline_s
        pause = FIRST_POLL_S
        while True:
            self.check()
            yield
            left = end - time.monotonic()
            if left <= 0:
                return
            self._abandoned.wait(min(pause, left))
            pause = min(LONGEST_POLL_S, pause * 1.5)
