"""Ranks that restore together: every stored byte read once, handed to whoever wants it; a fault on one ends it on all."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from checkpoint_state import State, blank, same, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from thread_peers import ThreadPeers, together

from tlcore.checkpoint import CheckpointReader, Piece, Row, exchange, read_manifest
from tlcore.checkpoint.exchange import Extent, plan_reads
from tlcore.checkpoint.manifest import read_index
from tlcore.errors import CheckpointCorrupt, CheckpointError, CheckpointIncompatible, StorageDenied
from tlcore.storage.keys import chunk_key

pytestmark = pytest.mark.unit


def restore(store, like, world_size, layout="flat"):
    state = blank(like)
    manifest = read_manifest(store, "t000", 200)
    found = together(
        world_size,
        lambda rank, peers: CheckpointReader(store, manifest).read_into(state.pieces(rank, world_size, layout), peers),
    )
    return state, found


def requested(store):
    return [key for kind, key in store.requests if kind == "get_into"]


@pytest.mark.parametrize(("wrote", "reads"), list(itertools.product([1, 2, 3, 4], [2, 3, 4])))
@pytest.mark.parametrize("layouts", list(itertools.product(["flat", "each"], repeat=2)))
def test_together_they_restore_what_each_wants_and_read_it_once(wrote, reads, layouts):
    store, state = MemoryStore(), State(seed=wrote)
    saved(store, state, world_size=wrote, layout=layouts[0])
    back, reports = restore(store, state, reads, layouts[1])
    assert same(back, state)
    total = read_manifest(store, "t000", 200).totals.state_bytes
    assert sum(report.bytes_read for report in reports) <= total
    assert sum(report.bytes_wanted for report in reports) >= total - 8


def test_what_all_want_is_read_by_one_and_the_work_is_shared():
    store, state = MemoryStore(), State(frozen_elements=60_000)
    saved(store, state, world_size=2)
    manifest = read_manifest(store, "t000", 200)
    copies = [blank(state) for _ in range(3)]
    whole = together(
        3, lambda rank, peers: CheckpointReader(store, manifest).read_into(copies[rank].pieces(0, 1), peers)
    )
    assert all(same(copy, state) for copy in copies)
    total = manifest.totals.state_bytes
    assert sum(report.bytes_read for report in whole) == total
    assert max(report.bytes_read for report in whole) <= total / 3 + (16 << 10)
    assert [report.bytes_received for report in whole] == [total - report.bytes_read for report in whole]
    assert len(requested(store)) == len(set(requested(store)))


def test_at_the_same_topology_nothing_is_handed_on():
    store, state = MemoryStore(), State()
    saved(store, state, world_size=3)
    _, reports = restore(store, state, 3)
    assert [report.bytes_received for report in reports] == [0, 0, 0]


def test_windows_are_bounded_and_many(monkeypatch):
    monkeypatch.setattr(exchange, "WINDOW_BYTES", 20_000)
    store, state = MemoryStore(), State(shapes={"w": (300, 77), "v": (41, 501), "u": (9001,)}, frozen_elements=0)
    saved(store, state, world_size=1)
    sizes = []
    whole = ThreadPeers.exchange

    def noted(self, send, send_bytes, receive_bytes):
        sizes.append(max(send.nbytes, sum(receive_bytes)))
        return whole(self, send, send_bytes, receive_bytes)

    monkeypatch.setattr(ThreadPeers, "exchange", noted)
    back, _ = restore(store, state, 4, "each")
    assert same(back, state)
    assert len(sizes) > 4 * 5
    assert max(sizes) <= 32_768, "one leaf at least goes at a time"


@pytest.mark.parametrize("layout", ["flat", "each"])
@pytest.mark.parametrize("reads", [1, 2, 3])
def test_what_comes_first_is_there_when_told_on_every_rank_and_no_later_byte_is_waited_for(layout, reads):
    store, state = MemoryStore(), State(shapes={"w": (300, 77), "v": (41, 501)}, frozen_elements=0)
    saved(store, state, world_size=2)
    manifest = read_manifest(store, "t000", 200)
    back, told = blank(state), []
    late = chunks_without(store, manifest, "fp32")
    open_gate = threading.Event()
    store.before = lambda kind, key: open_gate.wait(30) if kind == "get_into" and key in late else None

    def then():
        told.append({key: data.copy() for key, data in back.data.items() if key[1] == "fp32"})
        if len(told) == reads:
            open_gate.set()

    together(
        reads,
        lambda rank, peers: CheckpointReader(store, manifest).read_into(
            back.pieces(rank, reads, layout), peers, frozenset({"fp32"}), then
        ),
    )
    assert late
    assert same(back, state)
    assert len(told) == reads
    for seen in told:
        assert all(np.array_equal(data, state.data[key]) for key, data in seen.items())


def chunks_without(store, manifest, kind):
    """Keys of the chunks that hold nothing of one state."""
    indexes = [read_index(store, ref) for ref in manifest.indexes]
    held = {each.chunks[row.chunk].digest for each in indexes for row in each.rows if row.row.state == kind}
    return {chunk_key(chunk.digest) for each in indexes for chunk in each.chunks if chunk.digest not in held}


@pytest.mark.parametrize(
    ("fault", "own", "others"),
    [
        ("flip", CheckpointCorrupt, CheckpointCorrupt),
        ("gone", CheckpointCorrupt, CheckpointCorrupt),
        ("denied", StorageDenied, CheckpointError),
    ],
)
@pytest.mark.parametrize("layout", ["flat", "each"])
def test_a_fault_that_one_rank_meets_ends_it_on_all(fault, own, others, layout):
    store, state = MemoryStore(), State()
    saved(store, state, world_size=2)
    for key in store.keys("cas/"):
        held = store.objects[key]
        if fault == "flip":
            store.flip(key, 5)
        elif fault == "gone":
            store.delete([key])
        else:
            store.before = lambda kind, asked, key=key: refuse() if kind == "get_into" and asked == key else None
        _, found = restore(store, state, 3, layout)
        kinds = sorted(type(each).__name__ for each in found)
        assert kinds == sorted([own.__name__, *[others.__name__] * 2])
        told = [each for each in found if "could not read its part" in str(each)]
        assert len(told) == 2
        assert all(type(each) is others for each in told)
        store.objects[key] = held
        store.before = lambda kind, asked: None
    assert same(restore(store, state, 3, layout)[0], state)


def refuse():
    raise StorageDenied("no")


def test_where_one_finds_damage_and_one_is_refused_none_falls_back():
    """Were one to raise CheckpointCorrupt alone, it would go on with an older checkpoint, and wait there for the others."""

    def work(rank, peers):
        errors = [CheckpointCorrupt("flipped", key="cas/a"), StorageDenied("no"), None]

        def read():
            if errors[rank] is not None:
                raise errors[rank]
            return b""

        return exchange.together(peers, read)

    damaged, refused, well = together(3, work)
    assert type(refused) is StorageDenied
    assert [type(damaged), type(well)] == [CheckpointError] * 2
    assert "rank 1 could not read its part of the checkpoint: no" in str(damaged)
    assert str(well) == str(damaged)


def test_an_index_that_one_rank_cannot_read_ends_it_on_all():
    store, state = MemoryStore(), State()
    saved(store, state, world_size=3)
    store.flip("trials/t000/step-00000200/rank-0001-0001.json", 400)
    _, found = restore(store, state, 2)
    assert [type(each) for each in found] == [CheckpointCorrupt, CheckpointCorrupt]
    assert "rank 1 could not read" in str(found[0])
    assert requested(store) == []


def test_each_index_is_read_by_one_rank():
    store, state = MemoryStore(), State()
    saved(store, state, world_size=4)
    store.requests.clear()
    restore(store, state, 3)
    read = [key for kind, key in store.requests if kind == "get" and "rank-" in key]
    assert len(read) == len(set(read)) == 4


def test_what_one_rank_wants_in_vain_is_told_to_all_before_anything_is_read():
    store, state = MemoryStore(), State()
    saved(store, state, world_size=2)
    manifest = read_manifest(store, "t000", 200)

    def work(rank, peers):
        row = Row("layer.weight", "fp32" if rank else "momentum", 0, 9, "float32")
        return CheckpointReader(store, manifest).read_into([Piece(row, np.zeros(36, np.uint8))], peers)

    found = together(2, work)
    assert [type(each) for each in found] == [CheckpointIncompatible] * 2
    assert "its states are exp_avg, exp_avg_sq, fp32" in str(found[1])
    assert requested(store) == []


LEAF = 4096


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 150_000)), max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_plan_reads_all_that_is_wanted_and_hands_it_to_whoever_wants_it(spans, long):  # fmt: skip
    """Whatever is wanted of a chunk of 500,000 bytes, by however many, with long runs read directly or never."""
    extent = Extent(500_000, LEAF)
    wants = []
    for rank in spans:
        merged = exchange.coalesce((start, min(start + size, extent.size_bytes)) for start, size in rank)
        wants.append(np.array([(0, *span) for span in merged], np.int64).reshape(-1, 3))
    before = exchange.DIRECT_BYTES
    exchange.DIRECT_BYTES = 0 if long else 1 << 40
    try:
        plan = plan_reads(wants, [extent], gap_bytes=LEAF)
    finally:
        exchange.DIRECT_BYTES = before
    got = [np.zeros(extent.size_bytes, bool) for _ in wants]
    reads = [request for requests in plan.alone for request in requests]
    reads += [request for window in plan.windows for request in window]
    for request in reads:
        assert request.start % LEAF == 0
        assert request.end % LEAF == 0 or request.end == extent.size_bytes
        got[request.reader][request.start : request.end] = True
        for part in request.parts:
            assert request.start <= part.start < part.end <= request.end
            got[part.rank][part.start : part.end] = True
    for array, held in zip(wants, got, strict=True):
        for _, start, end in array:
            assert held[start:end].all()
    if not long:
        ordered = sorted((request.start, request.end) for request in reads)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(ordered)), "a byte is read twice"
