"""A trial's session that writes down every optimizer step it has done: what the recovery bench counts.

Owns the lines' form and their writing; in all else the session is the one of any sweep. Its import path is what the bench's driver
names (`driver.py`); made in the ranks, which find the file in their environment. Read by `steps.py`.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from typing import Any, Final

from jobs.bench.recovery.steps import STEPS_FILE
from tlcore.train.session import TrialSession


class LoggedSession(TrialSession):
    """One trial on one rank; its `life` is this object's, so a trial that was started again has another one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._life: Final = secrets.token_hex(6)

    def train_step(self) -> None:
        """One optimizer step, and its line: in the file when this returns, whatever kills the process then."""
        super().train_step()
        line = {
            "trial": self.trial,
            "step": self.step,
            "rank": self.rank,
            "life": self._life,
            "pid": os.getpid(),
            "committed": self._saver.committed_step,
            "at_s": time.time(),
        }
        descriptor = os.open(os.environ[STEPS_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")  # one write: ranks do not tear each other's lines
        finally:
            os.close(descriptor)
