"""A session with real collectives and no model: what the sweep's tests drive instead of training.

It trains twenty steps an epoch, each with an all-reduce over gloo; its accuracy grows with the learning rate and the
fraction; its checkpoint is a manifest key in the run's store. In the directory above that of `data.train`, `trace.jsonl`
says what every rank did, and `<trial>.fault` makes one rank fail at one step, once.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from tlcore.errors import DataError
from tlcore.storage import open_store, put_json
from tlcore.storage.keys import manifest_key
from tlcore.train.progress import Progress, Report

STEPS_PER_EPOCH = 20


class StandInSession:
    """One trial on one rank."""

    def __init__(self, recipe, run_url, trial, on_progress=None, resume_step=None, inherits=False):
        self.recipe, self.trial, self.on_progress = recipe, trial, on_progress
        self.store = open_store(run_url)
        self.directory = Path(recipe.data.train).parents[1]
        self.rank = dist.get_rank()
        self.total = recipe.train.epochs * STEPS_PER_EPOCH
        self.step, self.interrupted = resume_step or 0, False
        self.trace("start", resume_step=resume_step, threads=os.environ.get("OMP_NUM_THREADS"))

    def advance(self, fraction, commit=False):
        while self.step < round(fraction * self.total):
            self._fault()
            asked = torch.tensor([float(self.interrupted and not self._is_to_hold())])
            dist.all_reduce(asked)
            if asked:
                self.save()
                self.trace("left")
                return self._record(Report, interrupted=True)
            self.step += 1
            time.sleep(0.01)
            if self.on_progress is not None:
                self.on_progress(self._record(Progress, learning_rate=0.0, stall_s=0.0))
        self.save()
        self.trace("report", fraction=fraction)
        accuracy = min(1.0, self.recipe.train.learning_rate * 1000 * fraction)
        return self._record(Report, metrics={"eval_accuracy": accuracy, "eval_loss": 1.0 - accuracy})

    def _record(self, kind, **more):
        facts = {"step": self.step, "total_steps": self.total, "fraction": self.step / self.total}
        return kind(**facts, loss=1.0, samples_per_s=100.0, checkpoint_step=self.step, **more)

    def interrupt(self):
        self.interrupted = True

    def save(self, wait=True):
        dist.barrier()
        if self.rank == 0:
            put_json(self.store, manifest_key(self.trial, self.step), {"step": self.step})

    def close(self):
        self.trace("close")

    def trace(self, event, **facts):
        line = {"trial": self.trial, "event": event, "rank": self.rank, "pid": os.getpid(), "step": self.step, **facts}
        with (self.directory / "trace.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _is_to_hold(self):
        """Whether the trial is still on its way to the step where a test has it stand still: an interrupt waits for that."""
        try:
            fault = json.loads((self.directory / f"{self.trial}.fault").read_text())
        except FileNotFoundError:
            return False
        return fault["kind"] == "hold" and fault["step"] > self.step

    def _fault(self):
        path = self.directory / f"{self.trial}.fault"
        if not path.exists():
            return
        fault = json.loads(path.read_text())
        if (fault["rank"], fault["step"]) != (self.rank, self.step):
            return
        path.unlink()
        if fault["kind"] == "hold":
            self.trace("holds")
            while not self.interrupted:
                time.sleep(0.02)
        if fault["kind"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["kind"] == "data":
            raise DataError("column 'text' is not there", hint="set data.text")
        if fault["kind"] == "raise":
            raise ValueError("the answer is 42")
