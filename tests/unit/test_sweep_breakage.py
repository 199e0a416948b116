"""Which errors mean that a device or the way between ranks broke, in the words of CUDA, NCCL and gloo."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tlcore.sweep.slots.breakage import breakage

pytestmark = pytest.mark.unit

SEE = "\nSearch for `cuda...' in https://docs.nvidia.com/cuda for more information."


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: uncorrectable ECC error encountered{SEE}"),
        torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered{SEE}"),
        torch.AcceleratorError(f"CUDA error: unknown error{SEE}"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("cudaErrorLaunchFailure"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        RuntimeError(
            "CUDA error: all CUDA-capable devices are busy; CUDA-capable device(s) is/are busy or unavailable"
        ),
    ],
)
def test_a_device_that_broke(error):
    assert breakage(error) == "device"


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError(
            "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO)"
        ),
        dist.DistBackendError(
            "NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited or there was a network error"
        ),
        dist.DistNetworkError("The client socket has failed to connect to 10.0.0.7:4711"),
        dist.DistStoreError("wait timeout after 900000ms"),
        RuntimeError("NCCL Error 2: unhandled system error"),
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]:4711"
        ),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error: Connection reset by peer"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms"),
    ],
)
def test_ranks_that_lost_touch(error):
    assert breakage(error) == "link"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: device-side assert triggered{SEE}"),
        torch.AcceleratorError(f"CUDA error: invalid configuration argument{SEE}"),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage (run with NCCL_DEBUG=WARN)"),
        RuntimeError("[enforce fail at /gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 3x2)"),
        ConnectionResetError("Connection reset by peer"),
        ValueError("an illegal memory access was encountered"),
    ],
)
def test_what_any_other_device_would_say_as_well(error):
    assert breakage(error) is None


def test_an_error_that_was_raised_from_one_means_it():
    error = ValueError("no batch")
    error.__cause__ = RuntimeError("CUDA error: unspecified launch failure")
    assert breakage(error) == "device"
