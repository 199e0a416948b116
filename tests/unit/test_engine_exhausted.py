"""Which errors mean that memory ran out: the real ones where a machine without a GPU can raise them, else their own words."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from tlcore.engine.exhausted import as_out_of_memory, asked_bytes
from tlcore.errors import DataError

pytestmark = pytest.mark.unit

ASKED = 2**46


def raised(act):
    try:
        act()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is looked at)
        return error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize(
    "act",
    [lambda: torch.empty(ASKED, dtype=torch.uint8), lambda: np.zeros(ASKED, np.uint8)],
    ids=["torch", "numpy"],
)
def test_a_real_allocation_that_fails_says_how_much_was_asked(act):
    found = as_out_of_memory(raised(act), 3, 12)
    assert "rank 3 ran out of host memory at step 12, asking for 65536.00 GiB" in found.message
    assert (found.fields["rank"], found.fields["step"], found.fields["asked_bytes"]) == (3, 12, ASKED)


def test_torchs_own_class_is_device_memory():
    words = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 1 MiB is free."
    found = as_out_of_memory(torch.OutOfMemoryError(words), 0, None)
    assert found.message.startswith("rank 0 ran out of device memory, asking for 20.00 MiB: CUDA out of memory.")


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device"),
        (RuntimeError("NCCL error ... Last error:\nCuda failure 2 'out of memory'"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), "host"),
        (MemoryError(), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
    ],
)
def test_other_words_for_it(error, where):
    found = as_out_of_memory(error, 1, 2)
    assert f"ran out of {where} memory at step 2" in found.message
    assert found.fields["asked_bytes"] is None


@pytest.mark.parametrize(
    "error",
    [ValueError("out of memory of the past"), RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "no space")],
)
def test_other_errors_are_none(error):
    assert as_out_of_memory(error, 0, 0) is None


def test_an_error_raised_from_it_means_it_and_one_raised_beside_it_does_not():
    try:
        try:
            raise MemoryError
        except MemoryError as inner:
            raise ValueError("could not build the batch") from inner
    except ValueError as error:
        assert as_out_of_memory(error, 0, 0) is not None
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise DataError("the smaller batch has no rows")  # noqa: B904 (the case)
    except DataError as error:
        assert as_out_of_memory(error, 0, 0) is None


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("you tried to allocate 40000000000 bytes. Error code 12", 40000000000),
        ("Tried to allocate 2.50 GiB.", int(2.5 * 2**30)),
        ("Unable to allocate 7.00 KiB for an array", 7168),
        ("no number", None),
    ],
)
def test_how_much_was_asked(text, amount):
    assert asked_bytes(text) == amount
