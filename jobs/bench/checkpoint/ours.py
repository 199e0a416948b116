"""tlcore's side of the checkpoint bench: saves, restores and training beside them, as a run of `tlcore train` does them.

Owns what is timed around `train.saving.Saver` and `ShardedModel.restore`. Called by `rank.py`.

A save lasts from the call until the PUT of its manifest was answered, which the store's wrapper sees. Stall is the time that the
calls took which training makes: `Saver.save`, and under lazy snapshots the wait before the optimizer's update.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.bench.checkpoint.account import CountingStore, Usage, grown, memory_files
from jobs.bench.checkpoint.model import Trained, recipe_of
from jobs.bench.checkpoint.raw import live_tensors
from tlcore.checkpoint import CheckpointReader, read_manifest
from tlcore.checkpoint.manifest import read_index
from tlcore.storage import open_store
from tlcore.storage.keys import chunk_key, manifest_key
from tlcore.train.saving import Saver


class Ours:
    """Saves and restores of one model on one rank.

    Args:
        url: the run's place.
        name: of the model; each of its savers has a trial of its own.
    """

    def __init__(self, trained: Trained, url: str, name: str) -> None:
        self._trained, self._url, self._name = trained, url, name
        self.store = CountingStore(open_store(url))
        self._savers: dict[str, tuple[Saver, str]] = {}
        self._trials = 0

    def saver(self, snapshot: str) -> tuple[Saver, str]:
        """The saver of one kind of snapshot and its trial, made at first need (on all ranks together)."""
        if snapshot not in self._savers:
            world, model = dist.get_world_size(), self._trained.model
            self._trials += 1
            trial = f"{self._name}-{snapshot}-{self._trials}"
            recipe = recipe_of(model.stage, world, snapshot, self._url)
            saver = Saver(self.store, trial, recipe, {}, dist.get_rank(), world, None, model.memory)
            saver.prepare(model)
            self._savers[snapshot] = saver, trial
        return self._savers[snapshot]

    def save(self, snapshot: str) -> dict[str, Any]:
        """Save the present state and wait until it is committed; training stands still meanwhile."""
        (saver, trial), step = self.saver(snapshot), self._trained.step
        counts, usage, files = self.store.counts.copy(), Usage.now(), memory_files()
        dist.barrier()
        began = time.monotonic()
        saver.save(self._trained.model, step, {}, {})
        stall_s = time.monotonic() - began
        called = Usage.now()
        saver.wait()
        ended = Usage.now()
        committed = self.store.committed_at.get(manifest_key(trial, step))
        counted = self.store.counts - counts
        return {
            "step": step,
            "trial": trial,
            "stall_s": stall_s,
            "save_s": None if committed is None else committed - began,
            "cpu_s": ended.since(called).cpu_s,
            "snapshot_cpu_s": called.since(usage).cpu_s,
            "file_bytes": ended.since(usage).file_bytes + grown(files, memory_files()),
            "state_bytes": sum(each.nbytes for each in live_tensors(self._trained)),
            **counted,
        }

    def restore(self, trial: str, step: int) -> dict[str, Any]:
        """Take the state of a checkpoint, manifest and indexes included."""
        counts, usage = self.store.counts.copy(), Usage.now()
        dist.barrier()
        began = time.monotonic()
        self._trained.model.restore(CheckpointReader(self.store, read_manifest(self.store, trial, step)))
        seconds = time.monotonic() - began
        state_bytes = sum(each.nbytes for each in live_tensors(self._trained))
        used = Usage.now().since(usage)
        return {"restore_s": seconds, "cpu_s": used.cpu_s, "state_bytes": state_bytes, **(self.store.counts - counts)}

    def train_beside(self, snapshot: str | None, steps: int) -> dict[str, Any]:
        """Take `steps` steps, a save begun before the first of them where `snapshot` says of what kind; it ends outside the clock.

        Returns: seconds, step_s (median), blocked_s (of the calls that training makes for its saves, as a session does).
        """
        saver = self.saver(snapshot)[0] if snapshot else None
        blocked = Blocked(saver)
        step_seconds = []
        dist.barrier()
        began = time.monotonic()
        if saver is not None:
            blocked.time(lambda: saver.save(self._trained.model, self._trained.step, {}, {}))
        for _ in range(steps):
            step_began = time.monotonic()
            self._trained.train(1, blocked.before_update)
            if saver is not None:
                blocked.time(saver.poll)
            step_seconds.append(time.monotonic() - step_began)
        seconds = time.monotonic() - began
        if saver is not None:
            saver.wait()
        return {"seconds": seconds, "step_s": statistics.median(step_seconds), "blocked_s": blocked.seconds}

    def chunks(self, trial: str, step: int) -> list[tuple[str, int]]:
        """This rank's even share of a checkpoint's chunks: (key in the bucket, bytes)."""
        manifest = read_manifest(self.store, trial, step)
        root = self._url.removeprefix("s3://tlcore/")
        found = {chunk.digest: chunk for ref in manifest.indexes for chunk in read_index(self.store, ref).chunks}
        objects = [(f"{root}/{chunk_key(digest)}", chunk.size_bytes) for digest, chunk in sorted(found.items())]
        return objects[dist.get_rank() :: dist.get_world_size()]

    def fingerprint(self) -> int:
        """Of this rank's masters and moments: a sum that, over all ranks, is the same at every topology."""
        words = (each.cpu().view(torch.int32).numpy() for each in live_tensors(self._trained))
        return sum(int(each.sum(dtype=np.int64)) for each in words)

    def close(self) -> None:
        """Stop the savers and give their memory back; the next save makes a new one."""
        for saver, _ in self._savers.values():
            saver.close()
        self._savers.clear()


class Blocked:
    """Seconds for which a saver held training."""

    def __init__(self, saver: Saver | None) -> None:
        self._saver = saver
        self.seconds = 0.0

    def time(self, call: Callable[[], Any]) -> None:
        began = time.monotonic()
        call()
        self.seconds += time.monotonic() - began

    def before_update(self) -> None:
        """What training calls before the optimizer's update."""
        if self._saver is not None:
            self.time(self._saver.before_update)
