"""A slot's worker group: one long Ray Train run whose ranks wait for commands.

Owns the group's life: start, one command at a time on all ranks, noticing that a rank died or failed, coming back after Ray Train
has restarted the ranks, and leaving nothing behind. What a trial is, and what to do after a loss, is the slot's business.

A dead rank is noticed in three ways, the first one wins: Ray Train restarts the group and its ranks join as a new generation
(seconds); another rank fails in a collective and a probe then finds the dead one (seconds); no heartbeat for `SILENT_S`, after
which the rank is killed so that Ray Train restarts the group (a frozen process). Called by `slot.py`.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tlcore.errors import SlotFailed, SweepError, TlcoreError, TrainError
from tlcore.sweep.controller import NoRestart, ProcessGroup
from tlcore.sweep.mailbox import RankFailure, RankInfo, Status, open_mailbox
from tlcore.sweep.resources import Shape
from tlcore.sweep.worker import worker_loop

POLL_S = 5.0
START_S = 900.0
SILENT_S = 60.0
PROBE_S = 10.0
LEAVE_S = 20.0
SETTLE_S = 1.0
COLLECTIVE_S = 1800


class Cancelled(SweepError):
    """The sweep is being stopped; not a failure of the trial."""


class GroupLost(Exception):
    """The generation that was asked is gone; the next one may carry on. `cause` is a sentence."""

    def __init__(self, cause: str, rank: int | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.rank = rank


@dataclass(frozen=True)
class GroupSettings:
    """How to make the group: where Ray Train may write its few small files, and what the ranks run."""

    shape: Shape
    session: str
    board: str
    scratch: Path
    name: str


def worker_environment(shape: Shape) -> dict[str, str]:
    """Environment of every rank, set before its first import: the device DeepSpeed uses and threads per rank."""
    environment = {"OMP_NUM_THREADS": str(max(1, int(shape.cpus))), "TOKENIZERS_PARALLELISM": "false"}
    if not shape.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


class WorkerGroup:
    """Ranks that stay. Create it, `launch`, `await_ranks`; `run` one command after another; `close`."""

    def __init__(self, settings: GroupSettings) -> None:
        self.settings = settings
        self.mailbox = open_mailbox()
        self.generation = 0
        self._ranks: list[RankInfo] = []
        self._thread = threading.Thread(target=self._fit, name=f"train-{settings.name}", daemon=True)
        self._ended: BaseException | None = None

    def launch(self) -> None:
        """Have Ray Train start the ranks; `await_ranks` waits for them."""
        self._thread.start()

    def _fit(self) -> None:
        # Ray Train propagates these from here to its controller; the default poll of 2 s is most of a recovery
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        shape = self.settings.shape
        try:
            # not `TorchTrainer`, which is this with a backend that loads torch here too: see controller.py
            DataParallelTrainer(
                worker_loop,
                train_loop_config={
                    "mailbox": self.mailbox,
                    "session": self.settings.session,
                    "board": self.settings.board,
                },
                backend_config=ProcessGroup("nccl" if shape.gpus else "gloo", COLLECTIVE_S),
                scaling_config=ScalingConfig(
                    num_workers=shape.workers,
                    use_gpu=shape.gpus > 0,
                    resources_per_worker=shape.per_worker,
                    placement_strategy=shape.placement.upper(),
                    label_selector=dict(shape.labels) or None,
                ),
                run_config=RunConfig(
                    name=self.settings.name,
                    storage_path=str(self.settings.scratch),
                    failure_config=FailureConfig(max_failures=-1),
                    callbacks=[NoRestart(self.mailbox)],
                    worker_runtime_env={"env_vars": worker_environment(shape)},
                ),
            ).fit()
        except Exception as error:  # noqa: BLE001 (a thread's edge: `await_ranks` and `run` raise it in the slot)
            self._ended = error

    def await_ranks(self) -> Any:
        """Return when the ranks can be asked: those of the present generation, or after a loss those of the next.

        Returns the placement group of new ranks, None where they are the ones known. Raises SlotFailed, Cancelled.
        """
        if self._ranks:
            return None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = ray.get(self.mailbox.wait_complete.remote(self.generation, POLL_S))
            if found is not None:
                self.generation, self._ranks = found
                return self._ranks[0].place
            self._check_alive()
        raise SlotFailed(
            f"{self.settings.shape} did not start within {START_S:.0f} s",
            hint="see what holds the cluster's resources (`ray status`), or lower resources.workers",
        )

    def run(self, command: dict[str, Any]) -> Any:
        """Perform one command on every rank and return rank 0's answer.

        Raises:
            GroupLost: ranks died; `await_ranks` gives the next generation.
            TlcoreError: a rank failed; the error is its own where it is one of ours, else TrainError.
            Cancelled: the sweep is being stopped.
        """
        return self.run_all(command)[0]

    def run_all(self, command: dict[str, Any]) -> dict[int, Any]:
        """As `run`, with every rank's answer; those of most commands are rank 0's alone."""
        try:
            return self._run(command)
        except GroupLost:
            self._ranks = []
            raise

    def _run(self, command: dict[str, Any]) -> dict[int, Any]:
        number = ray.get(self.mailbox.post.remote(self.generation, command))
        if number is None:
            raise GroupLost("the workers were restarted")
        while True:
            status: Status = ray.get(self.mailbox.wait.remote(self.generation, number, POLL_S))
            if status.verdict == "answered":
                return status.answers
            if status.verdict == "lost":
                raise self._lost_between(number)
            if status.verdict == "cancelled":
                raise Cancelled("the sweep is being stopped")
            if status.verdict == "failed":
                raise self._judge(status.failures)
            self._check_silent(status)
            self._check_alive()

    def close(self, healthy: bool) -> None:
        """Send the ranks away and end the Train run; ranks that may hang (`healthy` False) are killed first."""
        ray.get(self.mailbox.close.remote())
        if not healthy:
            self._kill_ranks()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)
        if self._thread.is_alive():
            self._kill_ranks()
            self._thread.join(LEAVE_S)
        ray.kill(self.mailbox)

    def _kill_ranks(self) -> None:
        for info in self._ranks:
            ray.kill(info.actor)

    def _lost_between(self, number: int) -> GroupLost:
        dead = self._dead_ranks()
        return _died(dead[0]) if dead else GroupLost(f"the workers were restarted during command {number}")

    def _judge(self, failures: tuple[RankFailure, ...]) -> Exception:
        """Whose fault is it? A rank whose neighbour died fails in a collective before the death is known."""
        time.sleep(SETTLE_S)
        dead = self._dead_ranks()
        return _died(dead[0]) if dead else as_error(failures[0])

    def _dead_ranks(self) -> list[RankInfo]:
        """Ranks whose process is gone; those that Ray Train took down after another one's death come last."""
        probes = {info.rank: info.actor.__ray_ready__.remote() for info in self._ranks}
        deadline = time.monotonic() + PROBE_S
        died: list[RankInfo] = []
        taken_down: list[RankInfo] = []
        for info in self._ranks:
            try:
                ray.get(probes[info.rank], timeout=max(0.1, deadline - time.monotonic()))
            except RayActorError as error:
                (taken_down if "ray.kill" in str(error) else died).append(info)
            except GetTimeoutError:
                continue  # busy, not dead
        return died + taken_down

    def _check_silent(self, status: Status) -> None:
        for info in self._ranks:
            if status.silent_s.get(info.rank, 0.0) > SILENT_S:
                ray.kill(info.actor)
                raise GroupLost(
                    f"rank {info.rank} (pid {info.pid} on {info.node}) gave no sign of life for {SILENT_S:.0f} s",
                    info.rank,
                )

    def _check_alive(self) -> None:
        if ray.get(self.mailbox.is_cancelled.remote()):
            raise Cancelled("the sweep is being stopped")
        if not self._thread.is_alive():
            raise SlotFailed(
                f"the worker group ended: {self._ended}", hint="see the Ray Train controller's log in the log directory"
            )


def _died(info: RankInfo) -> GroupLost:
    return GroupLost(f"rank {info.rank} (pid {info.pid} on {info.node}) died", info.rank)


def as_error(failure: RankFailure) -> TlcoreError:
    """A rank's error as an exception that names the rank; the class, and so the exit code, is the rank's own."""
    own = failure.error
    if isinstance(own, TlcoreError):
        own.fields.setdefault("rank", failure.rank)
        own.fields.setdefault("traceback", failure.traceback)
        return own
    return TrainError(
        f"rank {failure.rank}: {failure.kind}: {failure.message}",
        hint="the traceback is in the worker's log",
        rank=failure.rank,
        traceback=failure.traceback,
    )
