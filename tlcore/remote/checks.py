"""What preflight runs on the nodes: facts of one node, a probe of the storage from there, an all-reduce across ranks.

Owns the measuring, not the verdict (`preflight.py`). Runs inside Ray tasks and actors, so everything returned is
plain data, and a failure is a returned sentence: one broken node must not hide what the others said.
"""

from __future__ import annotations

import platform
import socket
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tlcore.errors import TlcoreError
from tlcore.storage import probe

PACKAGES = ("tlcore", "torch", "transformers", "deepspeed", "ray", "datasets", "pyarrow", "obstore", "numpy")
_COLLECTIVE_TIMEOUT_S = 60
_ELEMENTS = 4 << 20
_ROUNDS = 3


@dataclass(frozen=True)
class NodeFacts:
    """One node as seen from itself. `storage_s` is the probe's time in seconds, None when it failed or was not asked
    for; `storage_weakness` is what a storage that passed does not promise all the same."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    storage_s: float | None
    storage_error: str
    storage_weakness: str = ""


def look(storage: str | None) -> NodeFacts:
    """Versions, devices and, with a URL, whether this node can write and read there."""
    return NodeFacts(_versions(), _devices(), *(_probe(storage) if storage else (None, "", "")))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _devices() -> tuple[str, ...]:
    import torch

    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(f"{device.name}, {device.total_memory / (1 << 30):.0f} GiB" for device in properties)


def _probe(storage: str) -> tuple[float | None, str, str]:
    begun = time.monotonic()
    try:
        weakness = probe(storage)
    except TlcoreError as error:
        return None, str(error), ""
    return time.monotonic() - begun, "", weakness


class Rank:
    """One member of the test group; a Ray actor where its device is."""

    def rendezvous(self) -> str:
        """An address on this node for the others to meet at, as host:port."""
        import ray

        with socket.socket() as holder:
            holder.bind(("", 0))
            port = holder.getsockname()[1]
        return f"{ray.util.get_node_ip_address()}:{port}"

    def all_reduce(self, rank: int, world_size: int, meeting: str, backend: str) -> dict[str, Any]:
        """Sum a 16 MiB tensor over all ranks a few times; seconds per round, or the error in words."""
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        try:
            dist.init_process_group(
                backend,
                init_method=f"tcp://{meeting}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=_COLLECTIVE_TIMEOUT_S),
            )
            return _rounds(torch.ones(_ELEMENTS, device=device), rank, world_size)
        except (RuntimeError, ValueError) as error:
            return {"error": f"rank {rank}: {error}"}
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _rounds(ones: Any, rank: int, world_size: int) -> dict[str, Any]:
    import torch.distributed as dist

    times = []
    for _ in range(_ROUNDS):
        total = ones.clone()
        begun = time.monotonic()
        dist.all_reduce(total)
        value = float(total.sum())  # waits for the device
        times.append(time.monotonic() - begun)
        if value != float(world_size) * _ELEMENTS:
            return {"error": f"rank {rank}: the sum over {world_size} ranks came out wrong"}
    return {"seconds": min(times), "bytes": 4 * _ELEMENTS}
