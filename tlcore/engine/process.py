"""What a process must settle before torch and DeepSpeed are imported: accelerator, threads, allocator, log levels.

Owns process-wide state and nothing else; must stay importable without torch. Called first by every training process
(`train/local.py`, `sweep/slots/worker.py`, the benches).

Why the allocator: glibc hands gradients and flat buffers back to the kernel at every step and takes zeroed pages for the next
one. Keeping them took a 22.7 M parameter step (batch 32, length 40, two threads) from 0.70 to 0.58 s in plain torch, from 0.83 to
0.63 s under ZeRO-1 on one rank, and from 0.97 to 0.75 s on two.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import sys
import warnings
from pathlib import Path

CUDA_BYTES = 600 << 20
"""Of a device, for a process that uses it: its context, kernels and communicators, about."""
GPU_SHARE = "TLCORE_GPU_SHARE"
"""Environment variable: the part of its device that a worker may take, where that is not all."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_KEEP_BYTES = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def has_cuda_device() -> bool:
    """Whether this process may use an NVIDIA device, asked without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def prepare_process(threads: int = 1) -> None:
    """Settle accelerator, threads, allocator and log levels of this process. Call before importing torch.

    Args:
        threads: intra-op threads per rank, used where OMP_NUM_THREADS says nothing else.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not has_cuda_device():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _keep_freed_memory()
    for name in ("DeepSpeed", "torch.distributed.elastic", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Warns on every machine that has nvcc and no device, of a CUDA_HOME that nothing here uses.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # DeepSpeed's gloo barrier and torch's c10d warn once per process about devices they then pick rightly.
    warnings.filterwarnings("ignore", message=".*barrier\\(\\).*device.*", category=UserWarning)
    # DeepSpeed calls collectives by names that newer torch has renamed.
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)


def end_process_group() -> None:
    """End torch's process group, through DeepSpeed where that was used: it keeps groups of its own, and its next engine in this
    process would talk to those of the group that is gone."""
    used = sys.modules.get("deepspeed.comm.comm")
    if used is not None and used.cdb is not None:
        used.destroy_process_group()
        return
    import torch.distributed as dist

    dist.destroy_process_group()


def give_memory_back() -> None:
    """Collect garbage and return free heap pages to the kernel; for the gap between two trials of one process."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _keep_freed_memory() -> None:
    libc = _glibc()
    if libc is None:
        return
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    libc.mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
