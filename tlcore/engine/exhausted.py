"""Whether an error means that memory ran out: the one place where vendors' words for it are known.

Owns the translation of torch's, numpy's, Python's and the CUDA libraries' errors into `OutOfMemory`. Must stay importable without
torch: a rank's edge (`sweep/slots/worker.py`) translates by it whatever a session raised. Kills by the kernel or by Ray leave no
error behind; `sweep/slots/group.py` sees those.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from tlcore.errors import OutOfMemory

_DEVICE_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "Cuda failure 2 'out of memory'",  # NCCL
    "_STATUS_ALLOC_FAILED",  # cuBLAS, and cuDNN up to 8
    "_DEVICE_ALLOCATION_FAILED",  # cuDNN 9
)
_HOST_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "_HOST_ALLOCATION_FAILED",
)
_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) ?(bytes|[KMGT]i?B)")
_UNITS = {"bytes": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def as_out_of_memory(error: BaseException, rank: int, step: int | None) -> OutOfMemory | None:
    """The error as `OutOfMemory` with `rank`, `step` and `asked_bytes` (None where the error does not say); None for another one.

    An error raised from one that means it (`raise ... from`) means it, too.
    """
    for each in causes(error):
        where = _where(each)
        if where is not None:
            return _told(where, str(each), rank, step)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _where(error: BaseException) -> str | None:
    """Which memory ran out; None when none did."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "host"
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return "device"
    if isinstance(error, RuntimeError):
        text = str(error)
        if any(word in text for word in _HOST_WORDS):
            return "host"
        if any(word in text for word in _DEVICE_WORDS):
            return "device"
    return None


def asked_bytes(text: str) -> int | None:
    """How much was asked for, as the error says it."""
    found = _ASKED.search(text)
    if found is None:
        return None
    number, unit = found.groups()
    return int(float(number) * _UNITS[unit if unit == "bytes" else unit[0]])


def _told(where: str, text: str, rank: int, step: int | None) -> OutOfMemory:
    asked = asked_bytes(text)
    amount = "" if asked is None else f", asking for {_size(asked)}"
    at = "" if step is None else f" at step {step}"
    said = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return OutOfMemory(
        f"rank {rank} ran out of {where} memory{at}{amount}" + (f": {said[:200]}" if said else ""),
        rank=rank,
        step=step,
        asked_bytes=asked,
    )


def _size(amount: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        scale = _UNITS[unit[0]]
        if amount >= scale:
            return f"{amount / scale:.2f} {unit}"
    return f"{amount} bytes"
