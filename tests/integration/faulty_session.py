"""The stand-in session with more ways to go wrong: what the failure policy's tests drive.

`<trial>.fault` above `data.train` says what is wrong with a trial: `kind`, `rank`, `step`; for most kinds it is so once, or as
often as `times` says.

    oom      torch's own error as long as the micro-batch is larger than `fits`
    hang     this rank stays in `lose_itself`, the others wait for it in an all-reduce
    stop     SIGSTOP to itself
    kill     SIGKILL to itself; with `node`, only there
    data     a DataError, in every trial
    nan      what a loss that is not finite raises
    storage  the store is away when the trial starts
"""

from __future__ import annotations

import json
import os
import signal
import time

import ray
import torch
from standin_session import StandInSession

from tlcore.errors import DataError, Diverged, StorageUnreachable
from tlcore.recipe import plan_batch


def lose_itself():
    time.sleep(3600)


class FaultySession(StandInSession):
    """One trial on one rank."""

    def __init__(self, recipe, run_url, trial, on_progress=None, resume_step=None, inherits=False):
        super().__init__(recipe, run_url, trial, on_progress, resume_step, inherits)
        self.micro = plan_batch(recipe, recipe.resources.workers).micro_batch_size
        self.node = ray.get_runtime_context().get_node_id()
        self.trace("settings", micro=self.micro, stage=recipe.deepspeed.zero_stage, node=self.node)
        if self._step_of("storage") is not None:
            self._once()
            raise StorageUnreachable("no answer from the store")

    def _fault(self):
        for kind in ("oom", "hang", "stop", "kill", "data", "nan"):
            if self._step_of(kind) == self.step:
                getattr(self, f"_{kind}")()

    def _read(self):
        path = self.directory / f"{self.trial}.fault"
        return json.loads(path.read_text()) if path.exists() else {}

    def _step_of(self, kind):
        fault = self._read()
        return fault["step"] if (fault.get("kind"), fault.get("rank")) == (kind, self.rank) else None

    def _once(self):
        fault = self._read()
        path = self.directory / f"{self.trial}.fault"
        if fault.get("times", 1) <= 1:
            path.unlink()
        else:
            path.write_text(json.dumps({**fault, "times": fault["times"] - 1}))

    def _oom(self):
        if self.micro > self._read()["fits"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 1.00 GiB free.")

    def _hang(self):
        self._once()
        lose_itself()

    def _stop(self):
        self._once()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _kill(self):
        if self._read().get("node", self.node) != self.node:
            return
        self._once()
        os.kill(os.getpid(), signal.SIGKILL)

    def _data(self):
        raise DataError("column 'text' is not there", hint="set data.text")

    def _nan(self):
        raise Diverged(f"trial {self.trial}, step {self.step}: the loss is nan", trial=self.trial, step=self.step)
