"""Saved by some ranks, restored by others, bit for bit; and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from checkpoint_state import CHUNK, STATES, State, blank, restored, same, save, saved, writers
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from tlcore.checkpoint import (
    CheckpointReader,
    Piece,
    Row,
    WriterSettings,
    list_manifests,
    newest_step,
    read_manifest,
    verify,
)
from tlcore.errors import CheckpointError, CheckpointIncompatible

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("wrote", "reads"), list(itertools.product([1, 2, 3, 4], repeat=2)))
def test_any_world_size_reads_any_other(wrote, reads):
    store, state = MemoryStore(), State(seed=wrote)
    saved(store, state, world_size=wrote)
    back, _ = restored(store, state, world_size=reads)
    assert same(back, state)


@pytest.mark.parametrize("layouts", list(itertools.product(["flat", "each"], repeat=2)))
def test_any_layout_reads_any_other(layouts):
    store, state = MemoryStore(), State()
    saved(store, state, world_size=3, layout=layouts[0])
    back, _ = restored(store, state, world_size=2, layout=layouts[1])
    assert same(back, state)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4799), max_size=6), st.lists(st.integers(0, 4799), max_size=6))
def test_any_cuts_read_any_others(write_cuts, read_cuts):
    store, state = MemoryStore(), State(shapes={"w": (4800,)}, frozen_elements=0)

    class Cut(State):
        def __init__(self, cuts):
            super().__init__(shapes={"w": (4800,)}, frozen_elements=0)
            self.cuts = [0, *sorted({cut for cut in cuts if cut}), 4800]

        def _trained_rows(self, rank, world_size, layout):
            spans = [s for i, s in enumerate(itertools.pairwise(self.cuts)) if i % world_size == rank]
            return [Row("w", state, *span, "float32") for span in spans for state in STATES]

    source = Cut(write_cuts)
    source.data = state.data
    saved(store, source, world_size=2)
    target = Cut(read_cuts)
    for data in target.data.values():
        data[:] = 0
    for rank in range(3):
        CheckpointReader(store, read_manifest(store, "t000", 200)).read_into(target.pieces(rank, 3))
    assert same(target, state)


def test_a_part_is_read_without_the_rest():
    store, state = MemoryStore(), State(shapes={"w": (1 << 20,)}, frozen_elements=0)
    saved(store, state, world_size=1)
    view = np.zeros(40, np.uint8)
    report = CheckpointReader(store, read_manifest(store, "t000", 200)).read_into(
        [Piece(Row("w", "exp_avg", 5000, 5010, "float32"), view)]
    )
    assert np.array_equal(view, state.data["w", "exp_avg", "float32"][20000:20040])
    assert (report.bytes_wanted, report.requests) == (40, 1)
    assert report.bytes_read <= CHUNK


def test_the_manifest_tells_what_was_handed_over():
    store, state = MemoryStore(), State()
    saved(
        store, state, world_size=2, metrics={"eval_accuracy": 0.75, "note": "x"}, parent="trials/a/step-1/MANIFEST.json"
    )
    manifest = read_manifest(store, "t000", 200)
    assert (manifest.trial, manifest.step, manifest.world_size, manifest.attempt) == ("t000", 200, 2, 1)
    assert (manifest.zero_stage, manifest.scalars, manifest.metrics) == (1, {"step": 7}, {"eval_accuracy": 0.75})
    assert manifest.parent == "trials/a/step-1/MANIFEST.json"
    assert manifest.totals.state_bytes == sum(data.nbytes for data in state.data.values())
    assert manifest.parameters["layer.weight"].shape == (64, 32)
    assert verify(store, manifest) == []


def test_steps_are_listed_in_order_and_by_trial():
    store = MemoryStore()
    for step in (1000, 30, 200):
        saved(store, State(), step=step, world_size=1)
    assert list_manifests(store, "t000") == [30, 200, 1000]
    assert newest_step(store, "t000") == 1000
    assert (list_manifests(store, "t00"), newest_step(store, "t001")) == ([], None)
    with pytest.raises(CheckpointError, match="trial t000 has no checkpoint of step 7"):
        read_manifest(store, "t000", 7)


def test_a_tied_parameter_is_read_from_where_it_is_stored():
    store, state = MemoryStore(), State()
    common = state.common()
    common["parameters"]["head"] = {**common["parameters"]["layer.weight"], "tied_to": "layer.weight"}
    saved(store, state, parameters=common["parameters"])
    reader = CheckpointReader(store, read_manifest(store, "t000", 200))
    view = np.zeros(4 * 64 * 32, np.uint8)
    reader.read_into([Piece(Row("head", "fp32", 0, 64 * 32, "float32"), view)])
    assert np.array_equal(view, state.data["layer.weight", "fp32", "float32"])
    assert reader.states("head") == sorted(STATES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("layer.weight", "fp32", 0, 4096, "float32"), r"'layer.weight' .* shape is \[64, 32\], 2048 elements"),
        (Row("layer.weight", "momentum", 0, 9, "float32"), r"its states are exp_avg, exp_avg_sq, fp32"),
        (Row("layer.weight", "fp32", 0, 9, "bfloat16"), r"as bfloat16 is wanted; it is stored as float32"),
        (Row("new.head", "fp32", 0, 9, "float32"), r"'new.head' .* the checkpoint has no such parameter"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_read(row, message):
    store, state = MemoryStore(), State()
    saved(store, state)
    reader = CheckpointReader(store, read_manifest(store, "t000", 200))
    target = np.zeros(row.size_bytes, np.uint8)
    with pytest.raises(CheckpointIncompatible, match=message):
        reader.read_into([*blank(state).pieces(0, 1), Piece(row, target)])
    assert not [key for kind, key in store.requests if kind == "get_into"]
    assert not target.any()


@pytest.mark.parametrize(("second", "requests"), [(130 << 10, 2), (60 << 10, 1)])
def test_neighbours_are_one_request_and_what_lies_apart_is_not_read(second, requests):
    """One pack of 256 KiB with leaves of 32 KiB; byte 0 and byte `second` of it are wanted."""
    store, state = MemoryStore(), State(shapes={"w": (1 << 16,)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=WriterSettings(chunk_bytes=1 << 20))
    save([writer], state, 200)
    writer.close()
    pieces = [Piece(Row("w", "exp_avg", at // 4, at // 4 + 1, "float32"), np.zeros(4, np.uint8)) for at in (0, second)]
    report = CheckpointReader(store, read_manifest(store, "t000", 200)).read_into(pieces)
    assert report.requests == requests
    assert report.bytes_read <= (64 << 10 if requests == 2 else 160 << 10)
    for piece in pieces:
        expected = state.data["w", "exp_avg", "float32"][4 * piece.row.start : 4 * piece.row.end]
        assert np.array_equal(piece.data, expected)
