"""The ranks of one trial talking to each other: set-up in one process or under torchrun, sums, and agreed values.

Owns the use of torch.distributed outside DeepSpeed. Called by the rest of `train/`. Under Ray the process group is there already.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from tlcore.engine.process import CUDA_BYTES, GPU_SHARE, end_process_group
from tlcore.errors import TlcoreError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def rank_device() -> torch.device:
    """The device this rank trains on, its local rank's GPU or the CPU, and from here on the calling thread's own.

    Called before a thread's first collective: NCCL puts what ranks tell each other on the thread's device, and two ranks of a node
    that both leave it at the first GPU cannot talk.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Ray Train shows a worker all GPUs of its node's workers, torchrun all there are, and both say which is whose.
    local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(local)
    share = float(os.environ.get(GPU_SHARE, "1"))
    if share < 1:
        # Whoever has the rest of the device has been promised it; what CUDA itself takes is no memory of torch's.
        total = torch.cuda.get_device_properties(local).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, share - CUDA_BYTES / total), local)
    return torch.device("cuda", local)


@contextmanager
def process_group(alone: bool = False) -> Iterator[None]:
    """torch.distributed for this process: what is there already, torchrun's, or a group of one.

    Args:
        alone: a group of one under torchrun, too: for what rank 0 does once the others have gone.
    """
    if dist.is_initialized():
        yield
        return
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    backend = "nccl" if rank_device().type == "cuda" else "gloo"
    if "RANK" in os.environ and not alone:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        end_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum over all ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def from_rank_0(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite these tensors with rank 0's, in one broadcast per dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = defaultdict(list)
    for each in tensors:
        kinds[each.dtype, each.device].append(each)
    for held in kinds.values():
        joined = torch.cat([each.detach().reshape(-1) for each in held])
        dist.broadcast(joined.view(torch.uint8), src=0)  # as bytes: gloo knows fewer dtypes than torch
        for each, values in zip(held, joined.split([each.numel() for each in held]), strict=True):
            each.detach().copy_(values.view_as(each))


def agree(value: T) -> T:
    """Rank 0's value, on every rank."""
    if dist.get_world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    agreed: T = box[0]
    return agreed


def decide(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank. An error of ours that it raises there is raised on all ranks: the others would
    wait for its answer until the collective times out."""
    found: tuple[T | None, TlcoreError | None] = (None, None)
    if dist.get_rank() == 0:
        try:
            found = work(), None
        except TlcoreError as error:
            found = None, error
    answer, failure = agree(found)
    if failure is not None:
        raise failure
    return cast(T, answer)
