"""Work behind the training step gives way to it.

Owns one call. Called by the writer's background threads when they start.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

BACKGROUND_NICE = 10


def give_way() -> None:
    """Lower this thread's priority for the rest of its life, where the system has priorities of single threads (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)
