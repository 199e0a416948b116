"""On a CUDA device: the snapshot of device memory. Skips itself elsewhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from checkpoint_state import SETTINGS, State, blank, restored
from memory_store import MemoryStore

from tlcore.checkpoint import CheckpointWriter, Row
from tlcore.engine.device import TensorPiece, TorchDevice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 1 << 20


def busy(seconds_worth: int = 30) -> None:
    """Give the compute stream work that outlasts the calls that follow."""
    matrix = torch.rand(4096, 4096, device="cuda")
    for _ in range(seconds_worth):
        matrix = (matrix @ matrix).clamp_(0, 1)


@pytest.mark.parametrize("snapshot", ["eager", "lazy"])
def test_a_snapshot_sees_the_step_before_it_and_not_the_one_after(snapshot: str) -> None:
    """The compute stream is behind all the time, so only the order on the device can make this right."""
    device, store = TorchDevice(torch.device("cuda")), MemoryStore()
    state = torch.zeros(64 * MIB // 4, device="cuda")
    common = {"parameters": {"w": {"shape": [state.numel()], "dtype": "float32", "trained": True, "tied_to": None}}}
    settings = replace(SETTINGS, chunk_bytes=4 * MIB, snapshot=snapshot)
    row = Row("w", "fp32", 0, state.numel(), "float32")
    with CheckpointWriter(store, "t000", 0, 1, 1, settings, device=device) as writer:
        for step in range(1, 5):
            busy()
            state += 1
            writer.save(step, [TensorPiece(row, state.view(torch.uint8), device)], common)
            busy()
            writer.before_update()
            state += 100
        writer.wait()
    values = {}
    for step in range(1, 5):
        from tlcore.checkpoint import CheckpointReader, Piece, read_manifest

        host = np.zeros(state.numel() * 4, np.uint8)
        CheckpointReader(store, read_manifest(store, "t000", step)).read_into([Piece(row, host)])
        values[step] = set(np.unique(host.view(np.float32)))
    assert values == {step: {step + 100.0 * (step - 1)} for step in range(1, 5)}


def test_slots_are_page_locked() -> None:
    memory = TorchDevice(torch.device("cuda")).empty(16 * MIB)
    assert torch.from_numpy(memory).is_pinned()


def test_every_kind_of_row_comes_back() -> None:
    device, store, state = TorchDevice(torch.device("cuda")), MemoryStore(), State()
    pieces = [
        TensorPiece(piece.row, torch.from_numpy(piece.data).cuda(), device, piece.immutable)
        for piece in state.pieces(0, 1)
    ]
    with CheckpointWriter(store, "t000", 0, 1, 1, replace(SETTINGS, snapshot="lazy"), device=device) as writer:
        writer.save(200, pieces, state.common())
        writer.wait()
    back, _ = restored(store, blank(state))
    assert all(np.array_equal(back.data[key], state.data[key]) for key in state.data)
