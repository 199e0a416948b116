"""A thread that looks on while the driver's own waits.

Owns its beginning and end. Called by `driver.py` and `examination.py`, which say what it looks at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching(watch: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run `watch` in a thread of that name for as long as the block takes; it ends when its event is set, and is waited for."""
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(over,), name=name, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
