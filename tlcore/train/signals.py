"""Ctrl-C and SIGTERM as a request to stop cleanly, and as an order to stop at once when they come again.

Owns the signal handlers while work runs. Called by `local.py` and by the sweep's runner.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

AGAIN_S: Final = 2.0
"""Signals closer together are one request: a terminal's Ctrl-C reaches torchrun's ranks directly, and again by way of torchrun."""


@contextmanager
def stop_signals(ask: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Within this block the first SIGINT or SIGTERM calls `ask`, and a later one raises KeyboardInterrupt.

    Outside the main thread, which alone may have handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_s: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = clock()
        if not asked_s:
            asked_s.append(now)
            ask()
        elif now - asked_s[0] >= AGAIN_S:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
