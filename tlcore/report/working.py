"""How far a command is that takes minutes: a bar on a terminal, a plain line now and then elsewhere.

Owns the display on stderr, so that stdout holds results only. Called by `commands/storage.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tlcore.report import figures

LINE_EVERY_S = 10.0


class Working:
    """Shows `update(what, done, total)`; safe in several threads.

    Args:
        in_bytes: the numbers are bytes.
        stream: where to; a bar only where that is a terminal.
        clock: monotonic seconds.
    """

    def __init__(
        self, in_bytes: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._show: Callable[[float], str] = figures.size if in_bytes else lambda number: f"{number:.0f}"
        self._clock = clock
        self._lock = threading.Lock()
        self._said = ""
        self._said_s = 0.0
        console = Console(file=self._stream)
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._task = self._bar.add_task("", total=None, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, what: str, done: float = 0, total: float = 0) -> None:
        """Say what is being done, how much of it is done, and of how much (0: not known)."""
        shown = f"{self._show(done)} of {self._show(total)}" if total else ""
        with self._lock:
            if self._bar is not None:
                self._bar.update(self._task, description=what, total=total or None, completed=done, figures=shown)
            elif what != self._said or self._clock() - self._said_s >= LINE_EVERY_S:
                self._said, self._said_s = what, self._clock()
                self._stream.write(f"{what}{': ' if shown else ''}{shown}\n")
                self._stream.flush()
