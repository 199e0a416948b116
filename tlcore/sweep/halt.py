"""Stopping a sweep before its end: why, and how much time what runs still has.

Owns the one stop that all causes share. On an interrupt, or when a budget is used up, the sweep is *leaving*: nothing more starts,
each running trial stops at its next step and commits its state there, and Tune goes on until the last of them has, or `GRACE_S`
are over. What then still runs is stopped where it is, and goes on from its newest committed checkpoint when the sweep is resumed.
On an error that every trial would meet, all is stopped at once: nothing is worth keeping. Asked by Tune's controller after each
of its events, and by the thread that tells the slots (`driver.py`); called by signal handlers, which may come at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from ray.tune import Stopper

from tlcore.errors import TlcoreError
from tlcore.train.budget import Exhausted

GRACE_S: Final = 25.0
"""A step, a save and its commit; less than the 30 s after which torchrun and Kubernetes kill."""
TEAR_DOWN_S: Final = 5.0
"""For slots to come back once their ranks are no longer waited for."""


class Halt(Stopper):
    """Why the sweep stops, if it does.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.interrupted = False
        self.error: TlcoreError | None = None
        self.exhausted: Exhausted | None = None
        self.take_no_more: Callable[[], None] = lambda: None
        self.is_busy: Callable[[], bool] = lambda: False
        self._clock = clock
        self._asked_s: float | None = None

    def interrupt(self) -> None:
        """Leave: somebody asked for it; safe in a signal handler."""
        self.interrupted = True
        self._note()

    def exhaust(self, limit: Exhausted) -> None:
        """Leave: a budget is used up."""
        self.exhausted = self.exhausted or limit
        self._note()

    def fail(self, error: TlcoreError) -> None:
        """Stop at once: no trial can do better."""
        self.error = self.error or error
        self._note()

    def _note(self) -> None:
        if self._asked_s is None:
            self._asked_s = self._clock()

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self.interrupted or self.error is not None or self.exhausted is not None

    @property
    def reason(self) -> str:
        """Why, in the journal's word."""
        return "interrupt" if self.interrupted else "budget" if self.exhausted is not None else "error"

    @property
    def at_once(self) -> bool:
        """Whether what still runs is to be stopped where it is."""
        return self.error is not None or self._is_over(GRACE_S)

    def _is_over(self, patience_s: float) -> bool:
        return self._asked_s is not None and self._clock() - self._asked_s >= patience_s

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its stopper into a scratch file that nobody reads

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by its results here."""
        return False

    def stop_all(self) -> bool:
        """What Tune asks after every event: whether it is to tear down what there is."""
        if not self.asked:
            return False
        self.take_no_more()
        return self.error is not None or not self.is_busy() or self._is_over(GRACE_S + TEAR_DOWN_S)
