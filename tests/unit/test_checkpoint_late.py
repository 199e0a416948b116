"""Saves that come faster than the store takes them, and snapshots larger than their memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from checkpoint_state import CHUNK, SETTINGS, State, close, restored, same, save, writers
from memory_store import Gate, MemoryStore

from tlcore.checkpoint import (
    list_manifests,
)
from tlcore.checkpoint.commit import Committer, Identity
from tlcore.checkpoint.patience import Patience
from tlcore.errors import CheckpointError, StorageFull

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    return MemoryStore()


def fail(kinds, part, error):
    def hook(kind, key):
        if kind in kinds and part in key and not key.endswith(".failed"):
            raise error

    return hook


def test_wait_keeps_the_caller_until_there_is_room(store):
    gate = Gate("cas/")
    store.before = gate
    [writer] = writers(store, 1)
    state = State()
    third = threading.Event()

    def train():
        for step in (1, 2, 3):
            writer.save(step, state.pieces(0, 1), state.common())
        third.set()

    thread = threading.Thread(target=train)
    thread.start()
    assert gate.reached.wait(30)
    assert not third.wait(0.1)
    gate.open()
    thread.join(60)
    assert third.is_set()
    assert [report.committed for report in writer.wait()] == [True] * 3
    writer.close()


@pytest.mark.parametrize("failed", [0, 1])
def test_a_save_that_one_rank_failed_ends_on_the_other_without_waiting(store, failed):
    ranks = writers(store, 2)
    other = ranks[1 - failed]
    other.save(1, State().pieces(1 - failed, 2), State().common() if failed else None)
    Committer(store, Identity("t000", failed, 2, 1), Patience(1), 60).give_up(1, "no space left")
    with pytest.raises(CheckpointError, match=f"given up by rank {failed}: no space left"):
        other.wait()
    close(ranks)
    assert list_manifests(store, "t000") == []


def test_a_step_saved_twice_is_saved_once(store):
    [writer] = writers(store, 1)
    for _ in range(2):
        writer.save(1, State().pieces(0, 1), State().common())
    assert [report.step for report in writer.wait()] == [1]
    writer.close()


def buffers(writer, state):
    """How many of them one snapshot of the state takes."""
    pieces = state.pieces(0, 1)
    return writer._make_room(writer._plan(pieces), pieces).need


# -- memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_memory_stays_within_its_bound_when_it_holds_no_snapshot(store, chunks):
    state = State(shapes={"w": (400, 64)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=replace(SETTINGS, memory_bytes=chunks * CHUNK, connections=8))
    for step in (1, 2, 3):
        writer.save(step, state.pieces(0, 1), state.common())
        writer.wait(step)
        state.change()
    writer.close()
    assert writer._slots.made == chunks
    state.change(-3)
    assert same(restored(store, state, step=1)[0], state)


def test_with_memory_for_one_snapshot_one_save_is_in_flight(store):
    state = State()
    need = buffers(writers(store, 1)[0], state)
    gate = Gate("cas/")
    store.before = gate
    [writer] = writers(store, 1, settings=replace(SETTINGS, memory_bytes=(need + 1) * CHUNK))
    save([writer], state, 1)
    assert gate.reached.wait(30)
    assert not writer.has_room()
    gate.open()
    save([writer], state, 2)
    writer.close()
    assert writer._slots.made == need
    assert [report.outcome for report in writer.poll()] == ["committed", "committed"]


def test_prepared_memory_is_what_the_saves_use(store):
    [writer] = writers(store, 1)
    state = State()
    writer.prepare(state.pieces(0, 1))
    writer._background.submit(bool).result()
    save([writer], state, 1)
    writer.wait()
    made = writer._slots.made
    save([writer], state, 2)
    writer.close()
    assert made == writer._slots.made == buffers(writer, state)


def test_small_chunks_share_a_buffer(store):
    """Of 26 on five connections one is left after whole rounds: it is cut in quarters, which lie in one buffer."""
    state = State(shapes={"w": (25 * CHUNK // 12, 1)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=replace(SETTINGS, connections=5))
    pieces = state.pieces(0, 1)
    plan = [chunk for chunk in writer._plan(pieces) if not chunk.immutable]
    assert buffers(writer, state) < len(plan)
    writer.save(1, pieces, state.common())
    writer.close()
    assert writer._slots.made == writer._slots.free == buffers(writer, state)
    assert same(restored(store, state, step=1)[0], state)


def test_buffers_are_used_again(store):
    [writer] = writers(store, 1)
    state = State()
    need = buffers(writer, state)
    for step in range(5):
        writer.save(step, state.pieces(0, 1), state.common())
        state.change()
    writer.close()
    assert need <= writer._slots.made <= 2 * need


@pytest.mark.parametrize("part", ["cas/", "writers/"])
@pytest.mark.parametrize("chunks", [1, 100])
def test_a_failing_store_leaves_memory_for_the_next_save(store, part, chunks):
    state = State(shapes={"w": (400, 64)}, frozen_elements=0)
    store.before = fail(("put", "put_if_absent"), part, StorageFull("no space left"))
    [writer] = writers(store, 1, settings=replace(SETTINGS, memory_bytes=chunks * CHUNK))

    def train():
        for step in range(1, 5):
            writer.save(step, state.pieces(0, 1), state.common())

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(30)
    assert not training.is_alive()
    for step in range(1, 5):
        with pytest.raises(CheckpointError, match="no space left"):
            writer.wait(step)
    writer.close()
    assert writer._slots.free == writer._slots.made <= 2 * 20
