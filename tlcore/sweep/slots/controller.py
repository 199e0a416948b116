"""What runs in Ray Train's controller for a slot's worker group: connecting its ranks, telling why they do not start, and ending a
run that is over.

Owns the torch process group's making and end. Ray's own backend (`ray.train.torch`) imports torch in every process that names it:
the driver, the slot and the controller, for work that only ranks do. Measured: 470 MB and 2 s of processor time in each, one after
the other before the first rank starts. Here torch is imported in the ranks alone, so this module's top must stay light, and so must
`tlcore.sweep` itself. Handed to Ray Train by `group.py`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train import BackendConfig, UserCallback
from ray.train.backend import Backend
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

from tlcore.errors import SlotFailed
from tlcore.sweep.slots.breakage import breakage

DISCONNECT_S = 20.0
_LONGEST_REASON = 400


@dataclass
class ProcessGroup(BackendConfig):
    """The ranks' process group: torch's `backend` ("gloo", "nccl"), and the seconds after which a collective has failed."""

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """Who makes it."""
        return ProcessGroupBackend


class ProcessGroupBackend(Backend):
    """Connects the ranks when Ray Train has started them, and lets go of them before it ends them."""

    share_cuda_visible_devices = True
    """Ranks of one node see each other's GPUs: NCCL wants them for peer-to-peer copies."""

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Make the process group, with rank 0's node as the meeting point."""
        address, port = worker_group.execute_single(0, free_endpoint)
        worker_group.execute(connect, address, port, backend_config.backend, backend_config.timeout_s)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """End the process group; ranks that hang in a collective are killed next, so they are not waited for."""
        try:
            ray.get(worker_group.execute_async(disconnect), timeout=DISCONNECT_S)
        except GetTimeoutError:
            logging.getLogger(__name__).warning("the process group did not end within %.0f s", DISCONNECT_S)


class NoRestart(UserCallback):
    """Ends the Train run when ranks die after the slot has let go of them; Ray Train would restart them for ever."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called for every failed poll; an exception here is what ends the run."""
        if ray.get(self._mailbox.is_closed.remote()):
            raise SlotFailed(_CLOSED)


class StartWatch(ControllerCallback, WorkerGroupCallback):
    """Tells the mailbox whether the ranks have their room and where, and why they are being started again, which Ray Train does for
    ever and keeps to itself; ends the run when the slot has let go of it meanwhile."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._places: list[Place] = []

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called for every new state; an exception here is what ends the run."""
        if not isinstance(current_state, ReschedulingState | RestartingState):
            return
        error = root_of(current_state.training_failed_error)
        if not isinstance(error, WorkerGroupStartupTimeoutError):  # it waits for room: no failure
            nodes = suspects(current_state.training_failed_error, self._places, every_place)
            ray.get(self._mailbox.start_failed.remote(in_words(error), nodes))
        if ray.get(self._mailbox.is_closed.remote()):
            raise SlotFailed(_CLOSED)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Called before their placement group is asked for."""
        self._places = []
        ray.get(self._mailbox.set_placed.remote(False))

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """Called once that is there and their processes are, by rank. Adds nothing to what the ranks are told."""
        self._places = [(worker.metadata.node_id, worker.metadata.node_ip) for worker in workers]
        ray.get(self._mailbox.set_placed.remote(True, sorted({node for node, _ in self._places})))
        return {}


_CLOSED = "the slot has closed this worker group"
_ADDRESS = re.compile(r"\bip[=:] ?([0-9a-fA-F.:]+)")
"""Of the process that Ray's error is about, as it stands in the error's words alone."""
Place = tuple[str, str]
"""A node by Ray's id of it, and its address."""


def every_place() -> list[Place]:
    """The cluster's live nodes."""
    return [(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]


def suspects(error: BaseException, places: Sequence[Place], elsewhere: Callable[[], Sequence[Place]]) -> list[str]:
    """Nodes that a start in vain may be due to, by id: those of the ranks that the error is about, where it says so. Else all that
    the ranks were on; so also where these could not reach each other, which says nothing about whose fault that is.

    Args:
        error: as Ray Train has it.
        places: each rank's; empty where their processes did not come to be.
        elsewhere: where these may have been then.
    """
    group = sorted({node for node, _ in places})
    if breakage(root_of(error)) == "link":
        return group
    failed = [rank for each in _wrapped(error) for rank in getattr(each, "worker_failures", {})]
    named = {places[rank][0] for rank in failed if 0 <= rank < len(places)}
    if not named:
        addresses = {found for each in _wrapped(error) for found in _ADDRESS.findall(str(each))}
        there = places or (elsewhere() if addresses else ())
        named = {node for node, address in there if address in addresses}
    return sorted(named) or group


def root_of(error: BaseException) -> BaseException:
    """The error inside those that Ray and Ray Train wrap around it, on its way from a rank."""
    return _wrapped(error)[-1]


def _wrapped(error: BaseException) -> list[BaseException]:
    """The error, and each inside the one before it."""
    found = [error]
    while type(error).__module__.startswith("ray."):
        failures = list(getattr(error, "worker_failures", {}).values())
        wrapped = (getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause", "__cause__"))
        inner = next((each for each in [*failures, *wrapped] if isinstance(each, BaseException)), None)
        if inner is None:
            break
        error = inner
        found.append(error)
    return found


def in_words(error: BaseException) -> str:
    """An error's kind and message in one line, not too long a one."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}…"


def free_endpoint() -> tuple[str, int]:
    """This node's address, and a TCP port that is free there now."""
    address: str = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return address, probe.getsockname()[1]


def connect(address: str, port: int, backend: str, timeout_s: int) -> None:
    """Join the process group, on a rank; torch's environment is set as `torchrun` sets it."""
    import torch.distributed as dist

    context = ray.train.get_context()
    places = {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
    }
    os.environ.update({name: str(value) for name, value in places.items()})
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def disconnect() -> None:
    """Leave the process group, on a rank."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
