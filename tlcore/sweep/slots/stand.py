"""Where a rank stands, seen from beside it: what its heartbeat adds once the rank has not moved for some seconds.

Owns how a stack is read and put into words. The looking is done by the heartbeat's own thread, which goes on while the rank's
thread waits in a collective, a system call or a kernel: all that it needs is that the interpreter's lock is let go of. A process
that is stopped sends nothing, and that says enough. Called by `worker.py`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Final

from tlcore.sweep.slots.mailbox import Stand

STILL_S: Final = 3.0
"""Seconds without a move after which the stack is looked at; a look costs a tenth of a millisecond."""
_FRAMES: Final = 8
_WAITING_FILES: Final = ("/torch/distributed/", "/deepspeed/comm/", "/torch/cuda/")
_WAITING_CALLS: Final = (".wait(", ".item(", ".tolist(", ".cpu(", "synchronize(")
"""On a GPU a rank meets the others' absence where it next asks the device for something: the collective itself is only queued."""


class Lookout:
    """Looks at one thread of this process.

    Args:
        stand: where the rank says it is, without a stack.
        thread: identity of the thread that performs the commands.
        clock: monotonic seconds.
    """

    def __init__(self, stand: Callable[[], Stand], thread: int, clock: Callable[[], float]) -> None:
        self._stand, self._thread, self._clock = stand, thread, clock
        self._mark: object = None
        self._since_s = clock()

    def look(self) -> Stand:
        """Where the rank is; with its stack when it has not moved for `STILL_S`."""
        stand, now = self._stand(), self._clock()
        if stand.mark != self._mark:
            self._mark, self._since_s = stand.mark, now
            return stand
        frame = sys._current_frames().get(self._thread)
        if stand.phase == "idle" or frame is None or now - self._since_s < STILL_S:
            return stand
        frames = traceback.extract_stack(frame)
        return replace(stand, waits=waits_for_others(frames), stack=in_one_line(frames))


def waits_for_others(frames: Sequence[traceback.FrameSummary]) -> bool:
    """Whether the innermost frame waits for other ranks: inside torch.distributed, on the handle of a collective, or on a device in
    whose queue one stands. Where all ranks look so, none is blamed."""
    if not frames:
        return False
    inner = frames[-1]
    return any(part in inner.filename for part in _WAITING_FILES) or any(
        call in (inner.line or "") for call in _WAITING_CALLS
    )


def in_one_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """`session.py:150 advance > stepper.py:73 run > my_loss.py:12 loss: time.sleep(60)`, from the session's call inwards."""
    edge = max((at for at, each in enumerate(frames) if each.filename == _HOST_FILE), default=-1)
    kept = list(frames[edge + 1 :])[-_FRAMES:] or list(frames[-_FRAMES:])
    if not kept:
        return ""
    places = " > ".join(f"{PurePath(each.filename).name}:{each.lineno} {each.name}" for each in kept)
    return f"{places}: {kept[-1].line}" if kept[-1].line else places


_HOST_FILE: Final = str(PurePath(__file__).with_name("worker.py"))
