"""A slot's worker group: one long Ray Train run whose ranks wait for commands.

Owns the group's life: start, one command at a time on all ranks, noticing that a rank died or failed, coming back after Ray Train
has restarted the ranks, and leaving nothing behind. What a trial is, and what to do after a loss, is the slot's business.

A dead rank is noticed in three ways, the first one wins: Ray Train restarts the group and its ranks join as a new generation
(seconds); another rank fails in a collective and a probe then finds the dead one (seconds); no heartbeat for as long as ranks may
stand still. Ranks that live and stand still are noticed by what their heartbeats say (`failures.hang_limit_s`); silence has no
shorter limit of its own, since a call that holds the interpreter's lock (a regular expression over a long text, the sort of a long
list) silences a sound rank, and `failures.hang_minutes` promises it its time. Still or silent, all ranks are then killed, so that
Ray Train restarts the group; so they are when a device or the way between ranks broke (`breakage.py`). Called by `slot.py`, and
once the trials have ended by `examination.py`: it is the slot then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError, RayActorError
from ray.util import remove_placement_group

from tlcore.engine.process import GPU_SHARE
from tlcore.errors import OutOfMemory, SlotFailed, SweepError
from tlcore.sweep.cluster.growth import waits_for_room
from tlcore.sweep.cluster.resources import Shape
from tlcore.sweep.slots.controller import in_words, root_of
from tlcore.sweep.slots.failures import (
    PATIENCE,
    LossKind,
    StartFailed,
    as_error,
    first_cause,
    hang_limit_s,
    who_is_behind,
)
from tlcore.sweep.slots.kernel import has_killed, oom_kills_on
from tlcore.sweep.slots.mailbox import RankFailure, RankInfo, Status, open_mailbox
from tlcore.sweep.slots.trainer import run_ranks
from tlcore.sweep.slots.worker import HEARTBEAT_S

POLL_S = 5.0
START_S = 900.0
START_ATTEMPTS = 3
"""Starts in vain, one after the other, after which Ray Train is to try no more; it would for ever."""
PROBE_S = 10.0
LEAVE_S = 20.0
SETTLE_S = 1.0
COLLECTIVE_S = 1800
NODE_S = 30.0
"""How long Ray may take to say that a node is dead, from when its workers no longer answer."""
_SEE_LOG = "see the Ray Train controller's log in the log directory"
_LONGEST_WORDS = 300
_QUIET_S = 4 * HEARTBEAT_S
"""Silence by which a rank is known not to answer."""


class Cancelled(SweepError):
    """The sweep is being stopped; not a failure of the trial."""


class GroupLost(Exception):
    """The generation that was asked is gone; the next one may carry on. `cause` is a sentence; `nodes` has Ray's id of the node
    that is to blame, or of all among which it is; none where nothing is known."""

    def __init__(
        self, cause: str, rank: int | None = None, loss: LossKind = "worker", nodes: Sequence[str] = ()
    ) -> None:
        super().__init__(cause)
        self.cause, self.rank, self.loss, self.nodes = cause, rank, loss, tuple(nodes)


@dataclass(frozen=True)
class GroupSettings:
    """How to make the group: where Ray Train may write its few small files, and what the ranks run. `board` takes their progress,
    if anybody wants it; `hang_s` is the recipe's `failures.hang_minutes` in seconds; on the nodes in `avoid` no worker is put."""

    shape: Shape
    session: str
    board: str | None
    scratch: Path
    name: str
    hang_s: float = 600.0
    avoid: tuple[str, ...] = ()

    @property
    def collective_s(self) -> int:
        """When a collective ends by itself; later than its ranks count as hung, so that it is told which one is behind."""
        return max(COLLECTIVE_S, int(2 * max(PATIENCE.values()) * self.hang_s))


def worker_environment(shape: Shape) -> dict[str, str]:
    """Environment of every rank, set before its first import: the device DeepSpeed uses and threads per rank.

    Ray leaves all GPUs of a node in view of workers that asked for none, and torch would take one.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, int(shape.cpus))), "TOKENIZERS_PARALLELISM": "false"}
    if not shape.gpus:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    elif shape.gpus < 1:
        environment[GPU_SHARE] = f"{shape.gpus:g}"
    return environment


class WorkerGroup:
    """Ranks that stay. Create it, `launch`, `await_ranks`; `run` one command after another; `close`."""

    def __init__(self, settings: GroupSettings) -> None:
        self.settings = settings
        self.mailbox = open_mailbox()
        self.generation = 0
        self._place: Any = None
        self._ranks: list[RankInfo] = []
        self._thread = threading.Thread(target=self._fit, name=f"train-{settings.name}", daemon=True)
        self._ended: BaseException | None = None

    def launch(self) -> None:
        """Have Ray Train start the ranks; `await_ranks` waits for them."""
        self._thread.start()

    def _fit(self) -> None:
        settings = self.settings
        loop = {"mailbox": self.mailbox, "session": settings.session, "board": settings.board}
        environment = worker_environment(settings.shape)
        try:
            run_ranks(
                settings.shape,
                loop,
                settings.name,
                settings.scratch,
                settings.collective_s,
                settings.avoid,
                environment,
            )
        except Exception as error:  # noqa: BLE001 (a thread's edge: `await_ranks` and `run` raise it in the slot)
            self._ended = error

    def await_ranks(self, note: Callable[[bool], None]) -> None:
        """Return when the ranks can be asked: those of the present generation, or after a loss those of the next.

        Args:
            note: told whether they wait for room, as often as that is looked at.

        Raises StartFailed, SlotFailed, Cancelled.
        """
        if self._ranks:
            return
        deadline, why = time.monotonic() + START_S, ""
        while time.monotonic() < deadline:
            found = ray.get(self.mailbox.wait_complete.remote(self.generation, POLL_S))
            if found is not None:
                self.generation, self._ranks = found
                self._place = self._ranks[0].place
                note(False)
                return
            if ray.get(self.mailbox.is_stopping.remote()):
                raise Cancelled("the sweep is being stopped")
            self._check_alive()
            failures, why, nodes = ray.get(self.mailbox.start_failures.remote())
            if failures >= START_ATTEMPTS:
                words = f"the workers did not start {failures} times, the last time by {why}"
                raise self._not_started(words, nodes)
            if ray.get(self.mailbox.is_placed.remote()):
                note(False)
            elif waits_for_room(self.settings.shape):  # others hold it, or an autoscaler makes it: no sign of a failure
                note(True)
                deadline = time.monotonic() + START_S
        words = (
            f"{self.settings.shape} did not start within {START_S:.0f} s{f'; the last time by {why}' if why else ''}"
        )
        if ray.get(self.mailbox.is_placed.remote()):  # ranks that cannot reach each other try for longer than that
            raise self._not_started(words, ray.get(self.mailbox.start_failures.remote())[2])
        raise SlotFailed(
            words, hint="see what holds the cluster's resources (`ray status`), or lower resources.workers"
        )

    def _not_started(self, words: str, nodes: Sequence[str]) -> StartFailed:
        return StartFailed(words, hint=_SEE_LOG, nodes=list(nodes), shape=self.settings.shape)

    def run(self, command: dict[str, Any]) -> Any:
        """Perform one command on every rank and return rank 0's answer.

        Raises:
            GroupLost: ranks died, hung or lost their device; `await_ranks` gives the next generation.
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
                raise self._judge(number, status.failures)
            self._check_still(status)
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
        if self._place is not None:
            # Ray Train's controller does so as it ends; one that did not end in time would hold the workers' room for ever
            remove_placement_group(self._place)
        ray.kill(self.mailbox)

    def _kill_ranks(self) -> None:
        for info in self._ranks:
            ray.kill(info.actor)

    def serves(self, shape: Shape, avoid: Collection[str]) -> bool:
        """Whether this group will do for a trial of a shape that keeps away from some nodes. One that is being restarted will do
        only if it was told to keep away from them: Ray Train may put it anywhere."""
        if self.settings.shape != shape:
            return False
        nodes = {info.node_id for info in self._ranks}
        return set(avoid) <= set(self.settings.avoid) or (bool(nodes) and not nodes & set(avoid))

    def _lost_between(self, number: int) -> Exception:
        return why_dead(self._dead_ranks(), _dead_nodes, oom_kills_on) or GroupLost(
            f"the workers were restarted during command {number}"
        )

    def _judge(self, number: int, failures: tuple[RankFailure, ...]) -> Exception:
        """Whose fault is it? A rank whose neighbour died, or failed, fails in a collective before that is known."""
        time.sleep(SETTLE_S)
        dead = why_dead(self._dead_ranks(), _dead_nodes, oom_kills_on)
        if dead is not None:
            return dead
        later: Status = ray.get(self.mailbox.wait.remote(self.generation, number, 0.0))
        first = first_cause(later.failures or failures)
        if first.broken is None:
            return as_error(first)
        loss = as_loss(first, self._ranks)
        self._kill_ranks()  # after such an error no process can use its device, or its connections, again
        return loss

    def _dead_ranks(self) -> list[tuple[RankInfo, Exception]]:
        probes = {info.rank: info.actor.__ray_ready__.remote() for info in self._ranks}
        deadline = time.monotonic() + PROBE_S
        died: list[tuple[RankInfo, Exception]] = []
        taken_down: list[tuple[RankInfo, Exception]] = []
        for info in self._ranks:
            try:
                ray.get(probes[info.rank], timeout=max(0.1, deadline - time.monotonic()))
            except (RayActorError, OutOfMemoryError) as error:
                (taken_down if "ray.kill" in str(error) else died).append((info, error))
            except GetTimeoutError:
                continue  # busy, not dead
        return died + taken_down

    def _check_still(self, status: Status) -> None:
        """Give the generation up when a rank is silent, or when none has moved for too long."""
        hang_s = self.settings.hang_s
        silent = {rank: quiet_s for rank, quiet_s in status.silent_s.items() if quiet_s > _QUIET_S}
        waited_for = [info for info in self._ranks if info.rank not in status.answers]
        stands = {info.rank: status.stands[info.rank] for info in waited_for if info.rank in status.stands}
        limit_s = hang_limit_s(stands.values(), hang_s, status.longest_gap_s)
        if not waited_for or max([status.still_s, *silent.values()]) <= limit_s:
            return
        behind = who_is_behind(waited_for, stands, silent, status.still_s)
        node = next((info.node_id for info in waited_for if info.rank == behind.rank), None)
        gone = _dead_nodes() if behind.rank in silent else set()
        self._kill_ranks()
        raise GroupLost(behind.cause, behind.rank, "node" if node in gone else "hang", _known(node))

    def _check_alive(self) -> None:
        if ray.get(self.mailbox.is_cancelled.remote()):
            raise Cancelled("the sweep is being stopped")
        if not self._thread.is_alive():
            why = in_words(root_of(self._ended)) if self._ended is not None else "its ranks left"
            nodes = ray.get(self.mailbox.start_failures.remote())[2]
            raise self._not_started(f"the worker group ended as it was started: {why}", nodes)


def why_dead(
    found: Sequence[tuple[RankInfo, Exception]],
    dead_nodes: Callable[[set[str | None]], set[str]],
    kills_on: Callable[[str], int | None],
) -> GroupLost | OutOfMemory | None:
    """What happened to ranks whose process is gone; those that Ray Train took down after another one's death come last. A node
    that died is one loss, whatever ran there.

    Args:
        found: each dead rank, and what Ray says when it is called.
        dead_nodes: which nodes are dead, given those that may be.
        kills_on: the kernel's count of its kills for want of memory on a node.
    """
    if not found:
        return None
    killed = next((info for info, error in found if isinstance(error, OutOfMemoryError)), None)
    if killed is not None:
        return _killed(killed, "by Ray: its node was running out of memory")
    gone = dead_nodes({info.node_id for info, error in found if isinstance(error, ActorUnavailableError)})
    lost = [info for info, _ in found if info.node_id in gone]
    if lost:
        ranks = ", ".join(str(info.rank) for info in lost)
        return GroupLost(f"node {lost[0].node} died with rank {ranks}", lost[0].rank, "node", _known(lost[0].node_id))
    first = found[0][0]
    if first.node_id is not None and has_killed(first.oom_kills, kills_on(first.node_id)):
        return _killed(first, "by the kernel, which says that it killed for want of memory there")
    return GroupLost(f"{_name(first)} died", first.rank, "worker", _known(first.node_id))


def _killed(info: RankInfo, by: str) -> OutOfMemory:
    return OutOfMemory(f"{_name(info)} was killed {by}", rank=info.rank, step=None)


def _known(node: str | None) -> Sequence[str]:
    return () if node is None else (node,)


def _name(info: RankInfo) -> str:
    return f"rank {info.rank} (pid {info.pid} on {info.node})"


def _dead_nodes(unreachable: Collection[str | None] = ()) -> set[str]:
    """Which nodes are dead, once that is known of those whose workers no longer answer (`NODE_S` at most)."""
    deadline = time.monotonic() + NODE_S
    while True:
        alive = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
        if time.monotonic() > deadline or not any(alive.get(node, False) for node in unreachable if node):
            return {node for node, lives in alive.items() if not lives}
        time.sleep(0.5)


def as_loss(failure: RankFailure, ranks: Sequence[RankInfo]) -> GroupLost:
    """A broken device or link as the loss of a worker. To blame is the node of that device; where ranks lost touch, any node of
    theirs may be."""
    mine = next((info for info in ranks if info.rank == failure.rank), None)
    name = _name(mine) if mine is not None else f"rank {failure.rank}"
    said = " ".join(failure.message.split())[:_LONGEST_WORDS]
    if failure.broken == "device":
        where = _known(mine.node_id if mine is not None else None)
        return GroupLost(f"the device of {name} failed: {failure.kind}: {said}", failure.rank, "worker", where)
    nodes = sorted({info.node_id for info in ranks if info.node_id is not None})
    return GroupLost(f"{name} lost touch with the others: {failure.kind}: {said}", failure.rank, "worker", nodes)
