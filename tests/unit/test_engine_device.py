"""State that lies in a device's memory on its way to a checkpoint: the torch side, on the CPU, where the same code runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checkpoint_state import CHUNK, SETTINGS, State, close, restored, same, wait
from memory_store import MemoryStore

torch = pytest.importorskip("torch")

from tlcore.checkpoint import CheckpointWriter, Row  # noqa: E402
from tlcore.engine.device import TensorPiece, TorchDevice  # noqa: E402
from tlcore.engine.state import Interval, to_piece  # noqa: E402

pytestmark = pytest.mark.unit


class Recorded(TorchDevice):
    """Notes the order of calls."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.calls: list[str] = []

    def begin(self):
        self.calls.append("begin")
        super().begin()

    def mark(self):
        self.calls.append("mark")
        landed = super().mark()
        return lambda: (self.calls.append("landed"), landed())[1]

    def hold(self):
        self.calls.append("hold")
        super().hold()

    def copy(self, source, target):
        self.calls.append("copy")
        super().copy(source, target)


def on_device(state: State, device: TorchDevice, rank=0, world_size=1):
    return [
        TensorPiece(piece.row, torch.from_numpy(piece.data), device, piece.immutable)
        for piece in state.pieces(rank, world_size)
    ]


def copies_of_trained(writer, pieces) -> int:
    return sum(len(chunk.cuts) for chunk in writer._plan(pieces) if not chunk.immutable)


@pytest.mark.parametrize("snapshot", ["eager", "lazy"])
@pytest.mark.parametrize("memory_chunks", [None, 2])
def test_tensors_are_stored_as_their_bytes(snapshot, memory_chunks):
    store, state, as_saved, device = MemoryStore(), State(), State(), Recorded()
    bound = None if memory_chunks is None else memory_chunks * CHUNK
    settings = replace(SETTINGS, snapshot=snapshot, memory_bytes=bound)
    ranks = [CheckpointWriter(store, "t000", rank, 2, 1, settings, device=device) for rank in range(2)]
    for rank, writer in enumerate(ranks):
        writer.prepare(on_device(state, device, rank, 2))
        writer.save(200, on_device(state, device, rank, 2), state.common() if rank == 0 else None)
    for writer in ranks:
        writer.before_update()
    state.change()
    assert [report.outcome for report in wait(ranks)] == ["committed", "committed"]
    close(ranks)
    assert same(restored(store, state)[0], as_saved)


def test_frozen_tensors_are_copied_and_sent_once():
    store, state, device = MemoryStore(), State(frozen_elements=60_000), Recorded()
    writer = CheckpointWriter(store, "t000", 0, 1, 1, SETTINGS, device=device)
    writer.save(1, on_device(state, device), state.common())
    writer.wait()
    state.change()
    device.calls.clear()
    writer.save(2, on_device(state, device), state.common())
    [report] = writer.wait()
    writer.close()
    frozen = sum(2 * elements for elements in state.frozen.values())
    assert report.bytes_reused == frozen
    assert device.calls.count("copy") == copies_of_trained(writer, on_device(state, device))
    assert same(restored(store, state, step=2)[0], state)


@pytest.mark.parametrize("snapshot", ["eager", "lazy"])
def test_copies_are_ordered_between_the_callers_work(snapshot):
    """Begun after what came before; nothing after may change live memory before the device is told to hold it back."""
    store, state, device = MemoryStore(), State(frozen_elements=0), Recorded()
    writer = CheckpointWriter(store, "t000", 0, 1, 1, replace(SETTINGS, snapshot=snapshot), device=device)
    writer.save(1, on_device(state, device), state.common())
    after_save = list(device.calls)
    writer.before_update()
    before_update = list(device.calls)
    writer.wait()
    writer.close()
    trained = copies_of_trained(writer, on_device(state, device))
    assert after_save[0] == "begin"
    if snapshot == "eager":
        assert after_save.count("copy") == trained
        assert after_save[-1] == "landed"
    else:
        assert after_save[:4] == ["begin", "copy", "mark", "hold"], "the buffer is copied first, and held until then"
        assert before_update[-1] == "hold"
        # The buffer's second copy, into its chunk, is one within host memory.
        assert before_update.count("copy") == trained


def test_an_interval_becomes_a_view_on_its_memory():
    values = torch.arange(6, dtype=torch.bfloat16)
    piece = to_piece(Interval("w", "fp32", 4, values), TorchDevice(torch.device("cpu")))
    assert piece.row == Row("w", "fp32", 4, 10, "bfloat16")
    values[0] = 7
    target = np.zeros(4, np.uint8)
    piece.copy_into(0, target)
    assert target.tobytes() == values[:2].view(torch.uint8).numpy().tobytes()


def test_host_memory_for_copies_holds_what_is_copied():
    device = TorchDevice(torch.device("cpu"))
    memory = device.empty(1 << 12)
    assert (memory.dtype, memory.nbytes, memory.flags.writeable) == (np.uint8, 1 << 12, True)
    source = torch.arange(1 << 12, dtype=torch.int32).view(torch.uint8)
    TensorPiece(Row("w", "fp32", 0, 1 << 12, "int32"), source, device).copy_into(8, memory)
    device.mark()()
    assert memory.tobytes() == source[8 : 8 + (1 << 12)].numpy().tobytes()
