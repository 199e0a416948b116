"""Shared memory between ranks: what is exchanged arrives, nothing of it stays open, and who cannot be reached is found out."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_state import State, blank, same, saved
from memory_store import MemoryStore
from thread_peers import together

from tlcore.checkpoint import CheckpointReader, exchange, read_manifest
from tlcore.engine.peers import MemoryPeers, share_memory

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a file is Linux's"),
]


def opened():
    """How many files of such memory this process has open."""
    return sum(
        "tlcore-restore" in str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )


def mapped():
    """How often it has such memory mapped."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("tlcore-restore")


@pytest.mark.parametrize(("wrote", "reads"), list(itertools.product([1, 2, 3], [2, 3, 4])))
def test_a_restore_in_shared_memory_gets_the_same_bytes(monkeypatch, wrote, reads):
    monkeypatch.setattr(exchange, "WINDOW_BYTES", 20_000)
    store, state = MemoryStore(), State(seed=wrote)
    saved(store, state, world_size=wrote, layout="flat")
    back, manifest = blank(state), read_manifest(store, "t000", 200)

    def work(rank, words):
        pieces = back.pieces(rank, reads, "each")
        return CheckpointReader(store, manifest).read_into(pieces, MemoryPeers(words), frozenset({"fp32"}))

    reports = together(reads, work)
    assert same(back, state)
    assert sum(report.bytes_received for report in reports) > 0
    assert (mapped(), opened()) == (0, 0)


def test_what_one_damaged_chunk_breaks_off_leaves_nothing_open():
    store, state = MemoryStore(), State()
    saved(store, state, world_size=2)
    store.flip(sorted(store.keys("cas/"))[0], 5)
    back, manifest = blank(state), read_manifest(store, "t000", 200)
    found = together(
        3,
        lambda rank, words: CheckpointReader(store, manifest).read_into(
            back.pieces(rank, 3, "each"), MemoryPeers(words)
        ),
    )
    assert {type(each).__name__ for each in found} == {"CheckpointCorrupt"}
    del found
    assert (mapped(), opened()) == (0, 0)


def test_parcels_of_any_size_lie_where_they_are_read():
    def size(sender, to, turn):
        return 0 if sender == to or (sender, to) == (0, 1) else 5000 * (sender + 1) + 701 * to + turn

    def parcel(sender, to, turn):
        return np.full(size(sender, to, turn), 16 * sender + 4 * to + turn, np.uint8)

    def work(rank, words):
        near = MemoryPeers(words)
        for turn in range(3):
            sent = [parcel(rank, to, turn) for to in range(3)]
            wanted = [parcel(sender, rank, turn) for sender in range(3)]
            send = near.buffer(sum(each.nbytes for each in sent))
            send[:] = np.concatenate(sent)
            arrived = near.exchange(send, [each.nbytes for each in sent], [each.nbytes for each in wanted])
            if not all(np.array_equal(one, other) for one, other in zip(arrived, wanted, strict=True)):
                return turn
            del send, arrived
            near.gather(b"")
        return "same"

    assert together(3, work) == ["same"] * 3
    assert (mapped(), opened()) == (0, 0)


def test_ranks_of_one_machine_find_each_others_memory():
    assert together(3, lambda rank, words: share_memory(words)) == [True] * 3


@pytest.mark.parametrize("fault", ["no such process", "another file", "none at all"])
def test_where_one_rank_is_not_reached_none_uses_it(fault):
    class Far:
        """Rank 1 is on another host, where the same numbers mean something else, or on a kernel without such memory."""

        def __init__(self, words):
            self.words, self.rank, self.world_size = words, words.rank, words.world_size

        def gather(self, own):
            if self.rank != 1 or len(own) < 16:
                return self.words.gather(own)
            if fault == "none at all":
                return self.words.gather(b"")
            process = 2**30 if fault == "no such process" else os.getpid()
            return self.words.gather(np.array([process, 0]).tobytes() + own[16:])

    assert together(3, lambda rank, words: share_memory(Far(words))) == [False] * 3


def test_where_such_memory_is_forbidden_none_uses_it(monkeypatch):
    def refuse(name):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert together(2, lambda rank, words: share_memory(words)) == [False] * 2
