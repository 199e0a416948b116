"""Starting processes for the kill bench from one warm fork server, hearing what they tell, and killing them at a chosen moment.

Owns processes and their pipes. Called by `saves.py`, `groups.py`. Python's own fork server is used: it has torch (and
DeepSpeed, where groups are killed) loaded and has opened no store, so a rank starts in some 30 ms; its children die with it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_JOIN_S = 60.0
REQUESTS = ("claim", "put", "index", "look", "commit", "delete")
"""Stages of a save that are requests to the store, as `ranks.stage_of` names them."""


def preload(modules: Sequence[str]) -> None:
    """What the fork server loads before its first child; call once, before any `start`."""
    _CONTEXT.set_forkserver_preload(list(modules))


@dataclass(frozen=True)
class Told:
    """One line of a process: a word, what it is about (a stage, or a step), and free text; `at_s` is when it was heard."""

    word: str
    subject: str
    text: str
    at_s: float

    @property
    def step(self) -> int:
        """The subject as a step."""
        return int(self.subject)


@dataclass
class Victim:
    """A process started from the fork server, and everything it has told; `times` counts words, and words with their subject."""

    process: Any
    wire: Connection
    told: list[Told] = field(default_factory=list)
    times: Counter[str | tuple[str, str]] = field(default_factory=Counter)
    deaf: bool = False
    _rest: bytes = b""

    def hear(self) -> None:
        """Take in what can be read now; blocks when nothing can."""
        data = os.read(self.wire.fileno(), 1 << 16)
        if not data:
            self.deaf = True
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        now = time.monotonic()
        for line in lines:
            word, subject, text = line.decode(errors="replace").split("\t", 2)
            self.told.append(Told(word, subject, text, now))
            self.times[word] += 1
            self.times[word, subject] += 1

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()

    def gone(self) -> int:
        """Wait for its end, hear the last of it, and return its exit status (negative: the signal)."""
        while not self.deaf:
            hear([self], 1.0)
        self.process.join(_JOIN_S)
        if self.process.exitcode is None:
            raise RuntimeError(f"process {self.process.pid} does not end")
        return int(self.process.exitcode)

    @property
    def stages(self) -> list[str]:
        """What it was doing when it told its last line: requests under way by stage, `snapshot`, `hash` (a save in flight without
        a request: hashing, or waiting for other ranks); `between` saves, or `start` before the first."""
        times = self.times
        found = [stage for stage in REQUESTS if times["begin", stage] > times["end", stage]]
        if times["save"] > times["saved"]:
            found.append("snapshot")
        if not found and times["saved"] > times["uploaded"] + times["committed"]:
            found.append("hash")
        return found or ["between" if times["saved"] else "start"]


def start(target: Callable[..., None] | str, *arguments: Any) -> Victim:
    """A process running `target(*arguments, wire)`; as `module:function`, it is imported there alone."""
    ear, wire = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(target, *arguments, wire), daemon=True)
    process.start()
    wire.close()
    return Victim(process, ear)


def _run(target: Callable[..., None] | str, *arguments: Any) -> None:
    function = _imported(target) if isinstance(target, str) else target
    function(*arguments)


def _imported(name: str) -> Callable[..., None]:
    module, _, function = name.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), function)
    return found


def hear(victims: Sequence[Victim], timeout_s: float) -> None:
    """Take in what these have told, waiting at most so long for something."""
    wires = {each.wire: each for each in victims if not each.deaf}
    for wire in wait(list(wires), timeout_s) if wires else ():
        wires[wire].hear()  # type: ignore[index]


def hear_until(victims: Sequence[Victim], done: Callable[[], bool], timeout_s: float) -> bool:
    """Listen until `done()`; False when the time is over or nobody is left to tell anything."""
    deadline = time.monotonic() + timeout_s
    while not done():
        left = deadline - time.monotonic()
        if left <= 0 or all(each.deaf for each in victims):
            return False
        hear(victims, left)
    return True


def listen(victims: Sequence[Victim], seconds: float) -> None:
    """Keep listening for so long, so that no pipe fills and stops its process."""
    hear_until(victims, lambda: False, seconds)
