"""Memory that ranks of one machine share; the ranks are threads here, each with files of its own."""

from __future__ import annotations

import errno
import json
import os
import threading

import numpy as np
import pytest

from tests.unit.thread_peers import together
from tlcore.engine.near import near_ranks


def parcel(sender, to, turn):
    """Nothing to itself, else a size of its own for each pair and turn."""
    size = 0 if sender == to else (sender + 1) * 3001 + to * 77 + (turn % 3) * 5000
    return np.full(size, (16 * sender + 4 * to + turn) % 251, np.uint8)


def hand_on(rank, peers, turns):
    """What arrived in each turn, copied as it must be; and this rank's file's size, bytes."""
    ranks = near_ranks(peers.gather, rank)
    arrived = []
    for turn in range(turns):
        sent = [parcel(rank, to, turn) for to in range(peers.world_size)]
        sizes = [each.nbytes for each in sent]
        memory = ranks.memory(sum(sizes))
        np.concatenate(sent, out=memory)
        arrived.append([each.copy() for each in ranks.exchange(memory, sizes)])
    return arrived, os.fstat(ranks._own.file.fileno()).st_size


@pytest.mark.parametrize("world", [2, 3])
def test_every_part_reaches_its_rank_and_memory_is_used_again(world):
    for rank, (arrived, file_bytes) in enumerate(together(world, lambda rank, peers: hand_on(rank, peers, 40))):
        for turn, parts in enumerate(arrived):
            for sender, part in enumerate(parts):
                assert np.array_equal(part, parcel(sender, rank, turn)), (rank, turn, sender)
        most = max(sum(parcel(rank, to, turn).nbytes for to in range(world)) for turn in range(3))
        assert file_bytes < 4 * (most + 4096)


def test_what_was_sent_stays_until_all_have_copied_it():
    """A rank that is quick fills memory for the next turns while a slow one still copies."""
    copied = threading.Event()

    def one(rank, peers):
        ranks = near_ranks(peers.gather, rank)
        first = ranks.memory(8)
        first[:] = rank + 1
        arrived = ranks.exchange(first, [8, 0] if rank else [0, 8])
        if rank == 0:
            for _ in range(5):
                ranks.memory(8)[:] = 99
            copied.set()
        copied.wait(30)
        return arrived[1 - rank].tolist()

    assert together(2, one) == [[2] * 8, [1] * 8]


def test_one_rank_without_such_memory_is_enough_for_none_to_use_it(monkeypatch):
    made = os.memfd_create
    calls = []

    def refused_once(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSYS, "no such call")
        return made(*arguments)

    monkeypatch.setattr(os, "memfd_create", refused_once)
    assert together(3, lambda rank, peers: near_ranks(peers.gather, rank)) == [None] * 3


@pytest.mark.parametrize("what", ["another rank's", "a pipe", "no file"])
def test_a_process_of_the_same_number_elsewhere_is_not_taken_for_the_one_that_was_meant(what):
    reading, writing = os.pipe()

    def one(rank, peers):
        def elsewhere(said):
            """Where rank 1's process and file have these numbers here, there is something else."""
            told = peers.gather(said)
            if said.startswith(b"["):
                pid, number, mark = json.loads(told[1])
                number = {"a pipe": reading, "no file": 1 << 20}.get(what, number)
                told[1] = json.dumps([pid, number, "00" * 16 if what == "another rank's" else mark]).encode()
            return told

        return near_ranks(elsewhere, rank)

    try:
        assert together(2, one) == [None, None]
    finally:
        os.close(reading)
        os.close(writing)


def test_a_machine_without_room_says_so_instead_of_ending_the_process(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "posix_fallocate", full)
    ranks = together(2, lambda rank, peers: near_ranks(peers.gather, rank))
    with pytest.raises(OSError, match="no space left"):
        ranks[0].memory(1 << 20)
