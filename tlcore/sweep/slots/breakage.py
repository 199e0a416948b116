"""Whether an error means that a device broke, or that ranks lost touch with each other: where vendors' words for it are known.

Owns the translation of CUDA's, NCCL's and gloo's errors into one word. That memory ran out is `engine/exhausted.py`'s to say, and
comes first. Must stay importable without torch: a rank's edge (`worker.py`) judges by it whatever a session raised, and Ray Train's
controller (`controller.py`) why ranks could not be connected. What it costs is `group.py`'s and `recovery.py`'s.
"""

from __future__ import annotations

from typing import Final, Literal

from tlcore.engine.exhausted import causes

Breakage = Literal["device", "link"]
"""`device`: this rank's own. `link`: it, or another one, or what is between them: who says so need not be the cause."""

_OF_THE_PROGRAM: Final = (
    "device-side assert",
    "invalid argument",
    "invalid configuration argument",
    "invalid usage",
    "ncclInvalidArgument",
    "ncclInvalidUsage",
)
"""An index out of range, say: the same words would come from any other device."""
_DEVICE_WORDS: Final = (
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "an illegal memory access was encountered",
    "cudaErrorIllegalAddress",
    "unspecified launch failure",
    "cudaErrorLaunchFailure",
    "hardware stack error",
    "device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
)
_LINK_TYPES: Final = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError"})
_NCCL_WORDS: Final = ("unhandled system error", "remote error", "unhandled cuda error", "internal error")
_LINK_WORDS: Final = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "no route to host",
    "unreachable",
)
"""In errors of gloo, which says the rest (ranks that send different sizes) in the same class."""


def breakage(error: BaseException) -> Breakage | None:
    """What broke, as far as the error or one that it was raised from tells; None where neither did."""
    return next((found for each in causes(error) if (found := _of(each)) is not None), None)


def _of(error: BaseException) -> Breakage | None:
    if not isinstance(error, RuntimeError):  # torch's own classes are
        return None
    text, own = str(error), type(error).__module__.startswith("torch")
    if any(words in text for words in _OF_THE_PROGRAM):
        return None
    if own and type(error).__name__ in _LINK_TYPES:
        return "link"
    if own and type(error).__name__ == "AcceleratorError":
        return "device"
    if any(words in text for words in _DEVICE_WORDS):
        return "device"
    if "gloo" in text.lower() and any(words in text.lower() for words in _LINK_WORDS):
        return "link"
    return "link" if "NCCL" in text and any(words in text for words in _NCCL_WORDS) else None
