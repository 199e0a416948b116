"""Lazy snapshots: `save` returns before the copy, `before_update` after it, and the bytes are those of an eager save."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from checkpoint_state import CHUNK, SETTINGS, State, close, restored, same, save, wait, writers
from memory_store import Gate, MemoryStore

from tlcore.checkpoint import CheckpointWriter, Piece, Row, WriterSettings, list_manifests, read_manifest
from tlcore.checkpoint.manifest import read_index
from tlcore.errors import CheckpointError, StorageFull

pytestmark = pytest.mark.unit

LAZY = replace(SETTINGS, snapshot="lazy")


@pytest.fixture
def store():
    return MemoryStore()


class Held:
    """A piece whose copy waits until it is let go, as a long one would."""

    def __init__(self, piece: Piece, error: Exception | None = None) -> None:
        self._piece, self._error = piece, error
        self.row, self.immutable = piece.row, piece.immutable
        self.begun, self.go = threading.Event(), threading.Event()

    def copy_into(self, start, target) -> None:
        self.begun.set()
        assert self.go.wait(30), "the test never let the copy go"
        if self._error is not None:
            raise self._error
        self._piece.copy_into(start, target)


def with_held(pieces, error=None):
    """The pieces with the embedding's masters held, and that one."""
    at = next(i for i, piece in enumerate(pieces) if (piece.row.parameter, piece.row.state) == ("embed", "fp32"))
    held = Held(pieces[at], error)
    return [*pieces[:at], held, *pieces[at + 1 :]], held


def stored(store, step):
    """What a checkpoint holds, rank by rank: which rows lie in chunks of which digest."""
    found = []
    for ref in read_manifest(store, "t000", step).indexes:
        index = read_index(store, ref)
        found.append(([chunk.digest for chunk in index.chunks], [str(row) for row in index.rows]))
    return found


def train(store, snapshot, world_size=2, memory_chunks=None):
    """Save at every step and change everything right after `before_update`, buffers right after `save`."""
    bound = None if memory_chunks is None else memory_chunks * CHUNK
    settings = replace(SETTINGS, snapshot=snapshot, memory_bytes=bound)
    state = State(seed=5)
    ranks = writers(store, world_size, settings=settings)
    for step in range(1, 6):
        for rank, writer in enumerate(ranks):
            writer.save(step, state.pieces(rank, world_size), state.common() if rank == 0 else None)
        state.data["seen", "buffer", "int64"] += np.uint8(1)
        for writer in ranks:
            writer.before_update()
        state.change(step)
    reports = wait(ranks)
    close(ranks)
    return reports


@pytest.mark.parametrize("memory_chunks", [None, 9, 2])
def test_lazy_saves_store_the_bytes_of_eager_ones_while_the_state_changes(store, memory_chunks):
    eager = MemoryStore()
    train(eager, "eager")
    reports = train(store, "lazy", memory_chunks=memory_chunks)
    assert [report.outcome for report in reports] == ["committed"] * 10
    for step in range(1, 6):
        assert stored(store, step) == stored(eager, step)


def test_save_returns_before_the_copy_and_before_update_after_it(store):
    [writer] = writers(store, 1, settings=LAZY)
    state, as_saved = State(), State()
    pieces, held = with_held(state.pieces(0, 1))
    writer.save(200, pieces, state.common())
    assert held.begun.wait(30)
    state.data["seen", "buffer", "int64"] += np.uint8(1)
    updating = threading.Event()

    def step():
        writer.before_update()
        updating.set()
        state.change()

    training = threading.Thread(target=step)
    training.start()
    assert not updating.wait(0.1)
    held.go.set()
    training.join(30)
    assert updating.is_set()
    [report] = writer.wait(200)
    writer.close()
    assert report.committed
    assert report.stall_s >= 0.1
    assert same(restored(store, state)[0], as_saved)


def test_buffers_of_one_save_do_not_leak_into_the_next(store):
    """The second save keeps its buffers in the memory that kept the first one's."""
    gate = Gate("cas/")
    store.before = gate
    [writer] = writers(store, 1, settings=LAZY)
    state = State()
    seen = []
    for step in (1, 2):
        seen.append(state.data["seen", "buffer", "int64"].copy())
        writer.save(step, state.pieces(0, 1), state.common())
        state.change()
        writer.before_update()
    gate.open()
    writer.wait()
    writer.close()
    for step in (1, 2):
        back, _ = restored(store, state, step=step)
        assert np.array_equal(back.data["seen", "buffer", "int64"], seen[step - 1])


@pytest.mark.parametrize("next_call", ["save", "wait", "close", "before_update"])
def test_whatever_comes_next_waits_for_the_copy(store, next_call):
    [writer] = writers(store, 1, settings=LAZY)
    state = State()
    pieces, held = with_held(state.pieces(0, 1))
    writer.save(1, pieces, state.common())
    calls = {
        "save": lambda: writer.save(2, state.pieces(0, 1), state.common()),
        "wait": lambda: writer.wait(1),
        "close": writer.close,
        "before_update": writer.before_update,
    }
    ended = threading.Event()
    caller = threading.Thread(target=lambda: (calls[next_call](), ended.set()))
    caller.start()
    assert not ended.wait(0.1)
    held.go.set()
    caller.join(30)
    assert ended.is_set()
    writer.close()
    assert 1 in list_manifests(store, "t000")


def test_a_copy_that_fails_fails_its_save_and_holds_nothing_up(store):
    [writer] = writers(store, 1, settings=LAZY)
    state = State()
    pieces, held = with_held(state.pieces(0, 1), MemoryError("no page is left"))
    held.go.set()
    writer.save(1, pieces, state.common())
    writer.before_update()
    with pytest.raises(CheckpointError, match=r"step 1: the snapshot was not completed: MemoryError: no page is left"):
        writer.wait(1)
    writer.save(2, state.pieces(0, 1), state.common())
    writer.before_update()
    state.change()
    assert writer.wait(2)[0].committed
    writer.close()
    assert writer._slots.free == writer._slots.made
    assert list_manifests(store, "t000") == [2]


def test_an_eager_copy_that_fails_is_told_to_the_caller_and_fails_its_save_only(store):
    [writer] = writers(store, 1)
    state = State()
    pieces, held = with_held(state.pieces(0, 1), MemoryError("no page is left"))
    held.go.set()
    with pytest.raises(MemoryError):
        writer.save(1, pieces, state.common())
    with pytest.raises(CheckpointError, match="step 1: the snapshot was not completed"):
        writer.wait()
    writer.save(2, state.pieces(0, 1), state.common())
    assert writer.wait()[0].committed
    writer.close()


@pytest.mark.parametrize("chunks", [1, 3, 100])
def test_a_store_that_fails_does_not_hold_training_up(store, chunks):
    """With less memory than a snapshot the copy waits for the store, and must go on when the store is given up."""

    def full(kind, key):
        if kind == "put" and "cas/" in key:
            raise StorageFull("no space left")

    store.before = full
    state = State(shapes={"w": (400, 64)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=replace(LAZY, memory_bytes=chunks * CHUNK))

    def steps():
        for step in range(1, 5):
            writer.save(step, state.pieces(0, 1), state.common())
            writer.before_update()

    training = threading.Thread(target=steps, daemon=True)
    training.start()
    training.join(30)
    assert not training.is_alive()
    writer.close()
    assert {report.outcome for report in writer.poll()} == {"failed"}
    assert writer._slots.free == writer._slots.made


def test_abandoning_ends_a_copy_that_waits_for_memory(store):
    gate = Gate("cas/")
    store.before = gate
    state = State(shapes={"w": (400, 64)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=replace(LAZY, memory_bytes=CHUNK))
    writer.save(1, state.pieces(0, 1), state.common())
    assert gate.reached.wait(30)
    ending = threading.Thread(target=writer.abandon, daemon=True)
    ending.start()
    gate.open()
    ending.join(30)
    assert not ending.is_alive()
    assert [report.outcome for report in writer.poll()] == ["failed"]
    assert list_manifests(store, "t000") == []


@pytest.mark.parametrize("memory_chunks", [None, 2, 40])
@pytest.mark.parametrize("snapshot", ["eager", "lazy"])
def test_under_every_bound_each_save_commits_the_whole_state_of_its_step(store, snapshot, memory_chunks):
    """Saves as fast as they are taken, into a store that dawdles; what is committed is the state of its step."""
    settings = replace(
        SETTINGS,
        snapshot=snapshot,
        memory_bytes=None if memory_chunks is None else memory_chunks * CHUNK,
    )
    slow = threading.Semaphore(2)

    def dawdle(kind, key):
        if kind == "put" and "cas/" in key:
            with slow:
                threading.Event().wait(0.001)

    store.before = dawdle
    state = State(shapes={"w": (200, 64)}, frozen_elements=5_000)
    [writer] = writers(store, 1, settings=settings)
    as_saved = {}
    for step in range(1, 9):
        as_saved[step] = {key: data.copy() for key, data in state.data.items()}
        writer.save(step, state.pieces(0, 1), state.common())
        assert sum(not save.future.done() for save in writer._saves.values()) <= 2
        writer.before_update()
        state.change()
    writer.close()
    reports = {report.step: report.outcome for report in writer.poll()}
    assert reports == dict.fromkeys(as_saved, "committed")
    assert list_manifests(store, "t000") == list(as_saved)
    store.before = lambda kind, key: None
    for step in as_saved:
        back, _ = restored(store, state, step=step)
        assert all(np.array_equal(back.data[key], data) for key, data in as_saved[step].items())


def test_frozen_bytes_do_not_take_the_memory_of_snapshots(store):
    """Small frozen pieces are copied while a slow store holds earlier ones: the next save must not wait for that."""
    gate = Gate("cas/")
    store.before = gate
    [writer] = writers(store, 1)
    state = State()
    for step in (1, 2):
        saving = threading.Thread(target=lambda at=step: writer.save(at, state.pieces(0, 1), state.common()))
        saving.start()
        saving.join(30)
        assert not saving.is_alive()
    gate.open()
    assert [report.committed for report in writer.wait()] == [True, True]
    writer.close()


def test_larger_chunks_go_first(store):
    state = State(shapes={"small": (5,), "large": (CHUNK // 4,), "middle": (CHUNK * 3 // 16,)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=replace(SETTINGS, connections=1, hashers=1))
    save([writer], state, 200)
    writer.wait()
    writer.close()
    sizes = [len(store.objects[key][0]) for kind, key in store.requests if kind == "put" and "cas/" in key]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 4
    assert same(restored(store, state)[0], state)


def test_a_piece_that_is_no_row_of_its_size_is_refused():
    with pytest.raises(CheckpointError, match="28 bytes expected"):
        Piece(Row("norm", "fp32", 0, 7, "float32"), np.zeros(3, np.uint8))


def test_lazy_is_a_setting_that_is_checked():
    with pytest.raises(CheckpointError, match="none of eager, lazy"):
        WriterSettings(snapshot="later")
    assert isinstance(CheckpointWriter(MemoryStore(), "t000", 0, 1, 1, LAZY).before_update(), float)
