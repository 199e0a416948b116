"""Properties over generated state, documents and worlds: what is saved any way is read back any other way, and whatever
stands in the store is either read or refused by an error of ours, within bounded memory."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from checkpoint_state import SETTINGS, State, saved, wait
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from tlcore.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    Piece,
    Row,
    fetch_checkpoint,
    newest_intact,
    read_manifest,
    verify,
)
from tlcore.checkpoint.digest import seal, sha256_hex, unseal
from tlcore.checkpoint.intervals import ITEM_BYTES, ParameterFacts, cover_faults
from tlcore.checkpoint.manifest import parse_index, parse_manifest
from tlcore.checkpoint.notices import read_notice
from tlcore.errors import CheckpointCorrupt, CheckpointError, CheckpointIncompatible

pytestmark = pytest.mark.unit
OURS = (CheckpointCorrupt, CheckpointIncompatible)

# -- rows against counting ------------------------------------------------------------------------------------------------

NAMES, STATES = ("a", "b", "c"), ("fp32", "exp_avg")
some_rows = st.lists(
    st.builds(
        lambda name, state, start, size, dtype: Row(name, state, start, start + size, dtype),
        st.sampled_from((*NAMES, "ghost")),
        st.sampled_from(STATES),
        st.integers(0, 8),
        st.integers(1, 8),
        st.sampled_from(("float32", "bfloat16")),
    ),
    max_size=8,
)
some_tables = st.fixed_dictionaries(
    dict.fromkeys(
        NAMES,
        st.builds(
            lambda shape, tie: ParameterFacts(tuple(shape), "float32", True, tie),
            st.lists(st.integers(0, 4), max_size=2),
            st.sampled_from((None, None, None, "a", "ghost")),
        ),
    )
)


@settings(max_examples=200)
@given(some_rows, some_tables)
def test_the_cover_check_agrees_with_counting_every_element(rows, table):
    assert bool(cover_faults(rows, table)) == (not covers(rows, table))


@given(st.data())
def test_any_tiling_covers_and_loses_that_with_any_row(data):
    table = {name: ParameterFacts((data.draw(st.integers(1, 20)),), "float32", True) for name in NAMES}
    rows = [
        row
        for name, facts in table.items()
        for state in STATES
        for row in tiles(data, name, state, facts.elements, "float32")
    ]
    assert cover_faults(data.draw(st.permutations(rows)), table) == []
    at = data.draw(st.integers(0, len(rows) - 1))
    assert cover_faults([*rows, rows[at]], table)
    fewer = rows[:at] + rows[at + 1 :]
    gone = (rows[at].parameter, rows[at].state) not in {(row.parameter, row.state) for row in fewer}
    assert bool(cover_faults(fewer, table)) == (not gone)  # a state that no row has is one that was not saved


def covers(rows, table):
    """The model: count how often each element of each state is there."""
    for row in rows:
        facts = table.get(row.parameter)
        if facts is None or facts.tied_to is not None or row.end > facts.elements:
            return False
    for name, facts in table.items():
        mine = [row for row in rows if row.parameter == name]
        if facts.tied_to is not None:
            target = table.get(facts.tied_to)
            if target is None or target.tied_to is not None:
                return False
            continue
        if facts.elements and not mine:
            return False
        for state in {row.state for row in mine}:
            held = [row for row in mine if row.state == state]
            if len({row.dtype for row in held}) > 1:
                return False
            if [sum(row.start <= at < row.end for row in held) for at in range(facts.elements)] != [1] * facts.elements:
                return False
    return True


def tiles(data, name, state, elements, dtype):
    """`[0, elements)` cut anywhere."""
    cuts = sorted({0, elements, *data.draw(st.lists(st.integers(0, elements), max_size=4))})
    return [Row(name, state, start, end, dtype) for start, end in itertools.pairwise(cuts)]


# -- any state, saved by any ranks, read by any others ------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_any_world_saves_any_other_reads(data):
    whole = drawn_state(data)
    store = MemoryStore()
    ranks = spread(data, whole)
    writers = [CheckpointWriter(store, "t000", rank, len(ranks), 1, SETTINGS) for rank in range(len(ranks))]
    table = {
        name: {"shape": [array.nbytes // ITEM_BYTES[dtype]], "dtype": dtype, "trained": True, "tied_to": None}
        for (name, _, dtype), array in whole.items()
    }
    for rank, writer in enumerate(writers):
        writer.save(7, ranks[rank], {"parameters": table} if rank == 0 else None)
    assert {report.outcome for report in wait(writers, 7)} == {"committed"}
    for writer in writers:
        writer.close()
    manifest = read_manifest(store, "t000", 7)
    assert verify(store, manifest) == []
    assert manifest.totals.state_bytes == sum(array.nbytes for array in whole.values())
    blank = {key: np.zeros_like(array) for key, array in whole.items()}
    readers = spread(data, blank)
    reports = [CheckpointReader(store, manifest).read_into(pieces) for pieces in readers]
    assert all(np.array_equal(blank[key], whole[key]) for key in whole)
    assert sum(report.bytes_wanted for report in reports) == manifest.totals.state_bytes


def drawn_state(data):
    """Some states of some parameters: (name, state, dtype) -> bytes. Sizes lie around leaves (32 KiB) and chunks (16 KiB)."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    whole = {}
    for name in NAMES[: data.draw(st.integers(1, 3))]:
        dtype = data.draw(st.sampled_from(("float32", "bfloat16", "int64", "bool", "complex128")))
        sizes = st.one_of(st.integers(1, 40), st.integers(1, 12_000), st.sampled_from((1024, 4096, 8192)))
        elements = data.draw(sizes)
        for state in STATES[: data.draw(st.integers(1, 2))]:
            whole[name, state, dtype] = random.integers(0, 256, elements * ITEM_BYTES[dtype], dtype=np.uint8)
    return whole


def spread(data, whole):
    """Pieces by rank: every state cut anywhere, every cut given to any rank; the last rank may hold nothing."""
    ranks = [[] for _ in range(data.draw(st.integers(1, 4)))]
    for (name, state, dtype), array in whole.items():
        item = ITEM_BYTES[dtype]
        for row in tiles(data, name, state, array.nbytes // item, dtype):
            owner = data.draw(st.integers(0, len(ranks) - 1))
            ranks[owner].append(Piece(row, array[row.start * item : row.end * item]))
    return ranks


# -- whatever stands in the store -----------------------------------------------------------------------------------------

BASE = MemoryStore()
SMALL = {"w": (40, 16), "b": (), "norm": (7,)}
saved(BASE, State(shapes=SMALL, frozen_elements=200), world_size=2)
MANIFEST = "trials/t000/step-00000200/MANIFEST.json"
INDEX = "trials/t000/step-00000200/rank-0001-0001.json"
DOCUMENTS = {"manifest": (MANIFEST, parse_manifest), "index": (INDEX, parse_index)}

strange = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1 << 50, 1 << 63, 10**40, 1.5, 1e308, "", "x" * 2000, "\ud800", "../..", "\x00", [], {}]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(-2, 2**40), max_size=8),
    st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=20),
)


def body_of(key):
    body = unseal(BASE.get(key), key)
    body.pop("sha256", None)
    return body


def drawn_place(data, body):
    """A path into `body`, each step of it to any member, so that what stands at the top is met as often as what lies deep."""
    path, value = [], body
    while isinstance(value, dict | list) and value and (not path or data.draw(st.booleans())):
        names = sorted(value) if isinstance(value, dict) else range(len(value))
        path.append(data.draw(st.sampled_from(names)))
        value = value[path[-1]]
    return path


def mutated(data, body):
    """`body` after some of: another value, a missing member, an item twice, an unknown member."""
    body = json.loads(json.dumps(body))
    for _ in range(data.draw(st.integers(1, 3))):
        path = drawn_place(data, body)
        if not path:
            return body
        holder = body
        for name in path[:-1]:
            holder = holder[name]
        how = data.draw(st.sampled_from(["replace", "replace", "remove", "twice", "more"]))
        if how == "replace":
            holder[path[-1]] = data.draw(strange)
        elif how == "remove":
            del holder[path[-1]]
        elif how == "twice" and isinstance(holder, list):
            holder.append(holder[path[-1]])
        elif isinstance(holder, dict):
            holder[data.draw(st.text(max_size=5))] = data.draw(strange)
    return body


def bounded(parse, document, key):
    """Parse, or refuse by an error of ours, without allocating out of proportion to the document."""
    tracemalloc.start()
    try:
        return parse(document, key)
    except OURS as error:
        assert str(error).startswith(key)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (1 << 20) + 60 * len(document)
    return None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("which", DOCUMENTS)
def test_sealed_documents_mutated_anyhow_are_read_or_refused(which, data):
    key, parse = DOCUMENTS[which]
    parsed = bounded(parse, seal(mutated(data, body_of(key))), key)
    if which == "manifest" and parsed is not None:
        # What was read can be used: no name in it breaks a key, a listing or a table.
        assert parsed.key.startswith("trials/")
        json.dumps([parsed.scalars, parsed.metrics, parsed.parent, parsed.zero_stage])
        assert parse_manifest(parsed.to_bytes(), key) == parsed


@settings(max_examples=100, deadline=None)
@given(st.recursive(strange, lambda inner: st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12))
def test_any_sealed_json_is_refused(value):
    for key, parse in DOCUMENTS.values():
        with pytest.raises(CheckpointCorrupt):
            parse(seal(value if isinstance(value, dict) else {"value": value}), key)


@pytest.mark.parametrize(
    "rest",
    [
        b'"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'"a":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'"step":' + b"9" * 5000 + b"}",
        b'"step":1e999}',
        b'"step":NaN}',
        b'"step":1}{"step":2}',
        b'"step":"\xff"}',
        b'"a":1,"a":2}',
        b"}",
        b"",
    ],
)
def test_sealed_bytes_that_are_hardly_json_are_refused(rest):
    document = b'{"sha256":"' + sha256_hex(rest).encode() + b'",' + rest
    for key, parse in DOCUMENTS.values():
        assert bounded(parse, document, key) is None


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_checkpoint_with_mutated_documents_is_refused_or_read_by_everybody(data):
    """The digests are made right again, so that only the parsers and the arithmetic behind them stand in the way."""
    store = MemoryStore()
    store.objects = dict(BASE.objects)
    index = seal(mutated(data, body_of(INDEX)))
    store.put(INDEX, index)
    manifest = body_of(MANIFEST)
    manifest["indexes"][1] |= {"sha256": sha256_hex(index), "bytes": len(index)}
    store.put(MANIFEST, seal(mutated(data, manifest) if data.draw(st.booleans()) else manifest))
    assert all(str(problem) for problem in newest_intact(store, "t000", every_byte=True).problems)
    try:
        found = read_manifest(store, "t000", 200)
    except CheckpointError:
        return
    verify(store, found)
    for refused in (read_everything, fetch_elsewhere):
        try:
            refused(store, found)
        except OURS:
            continue


def read_everything(store, manifest):
    state = State(shapes=SMALL, frozen_elements=200)
    CheckpointReader(store, manifest).read_into(state.pieces(0, 1))


def fetch_elsewhere(store, manifest):
    class Elsewhere(MemoryStore):
        url = "memory://elsewhere"

    fetch_checkpoint(store, manifest, Elsewhere())


@settings(max_examples=100)
@given(st.one_of(st.binary(max_size=200), strange.map(lambda value: seal({"keys": value, "done": True, "format": 1}))))
def test_a_notice_is_read_or_may_name_anything(document):
    store = MemoryStore()
    store.put("gc/x.json", document)
    notice = read_notice(store, next(store.list("gc/")))
    assert notice is not None
    assert notice.keys is None or all(isinstance(key, str) for key in notice.keys)
