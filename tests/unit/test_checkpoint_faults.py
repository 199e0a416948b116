"""Stored bytes that are not what they were: found, named, never restored from."""

from __future__ import annotations

import json

import pytest
from checkpoint_state import CHUNK, State, restored, same, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from tlcore.checkpoint import newest_intact, read_manifest, verify
from tlcore.checkpoint.digest import seal, unseal
from tlcore.checkpoint.manifest import parse_index, parse_manifest
from tlcore.errors import CheckpointCorrupt, CheckpointError, CheckpointIncompatible, StorageDenied, StorageError
from tlcore.storage import open_store

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    store = MemoryStore()
    saved(store, State(), world_size=2)
    return store


def chunks(store):
    return store.keys("cas/")


def index(store, rank=1):
    return f"trials/t000/step-00000200/rank-{rank:04d}-0001.json"


MANIFEST = "trials/t000/step-00000200/MANIFEST.json"


def test_a_flipped_byte_in_any_chunk_is_found(store):
    for key in chunks(store):
        size = len(store.objects[key][0])
        for at in {0, size // 2, size - 1}:
            store.flip(key, at)
            with pytest.raises(CheckpointCorrupt, match=f"{key}: bytes from .* do not match their digest"):
                restored(store, State())
            assert [problem.key for problem in verify(store, read_manifest(store, "t000", 200))] == [key]
            store.flip(key, at)
    assert same(restored(store, State())[0], State())


def test_a_range_that_was_damaged_on_the_way_is_read_again(store):
    key = chunks(store)[0]
    damaged = []

    def once(kind, requested):
        if kind == "get_into" and requested == key:
            store.flip(key, 0) if len(damaged) < 2 else None
            damaged.append(key)

    store.before = once
    assert same(restored(store, State())[0], State())
    assert len(damaged) > 1


def test_a_flipped_byte_anywhere_in_an_index_is_found(store):
    for at in range(0, len(store.objects[index(store)][0]), 97):
        store.flip(index(store), at)
        with pytest.raises(CheckpointCorrupt, match=r"rank-0001-0001.json: .* do not match the manifest's digest"):
            restored(store, State())
        store.flip(index(store), at)


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(store):
    for at in range(0, len(store.objects[MANIFEST][0]), 41):
        store.flip(MANIFEST, at)
        with pytest.raises(CheckpointCorrupt, match=r"MANIFEST.json: .* do not match the digest they begin with"):
            read_manifest(store, "t000", 200)
        store.flip(MANIFEST, at)


@pytest.mark.parametrize(("fault", "message"), [("missing", "chunk is missing"), ("short", "shorter than its")])
def test_missing_and_truncated_chunks_are_named(tmp_path, fault, message):
    store = open_store(f"file://{tmp_path}/run")
    saved(store, State(), world_size=2)
    for key in [each.key for each in store.list("cas/")]:
        held = store.get(key)
        if fault == "missing":
            store.delete([key])
        else:
            store.put(key, held[:-1])
        with pytest.raises(CheckpointCorrupt, match=f"{key}: the {message}|{key}: the chunk is {message}"):
            restored(store, State())
        for every_byte in (True, False):
            assert key in [problem.key for problem in verify(store, read_manifest(store, "t000", 200), every_byte)]
        store.put(key, held)


def test_an_index_that_is_gone_is_named(store):
    store.delete([index(store)])
    with pytest.raises(CheckpointCorrupt, match=r"rank-0001-0001.json: named by a manifest and missing"):
        restored(store, State())


@pytest.mark.parametrize("error", [StorageDenied("no"), StorageError("418 Teapot", status=418, code="Teapot")])
def test_a_store_that_does_not_give_a_chunk_does_not_make_it_corrupt(store, error):
    """A plain StorageError too: it is what every answer is that has no kind of its own."""

    def refuse(kind, key):
        if kind == "get_into":
            raise error

    store.before = refuse
    with pytest.raises(type(error), match=error.message):
        restored(store, State())
    for every_byte in (True, False):
        with pytest.raises(type(error), match=error.message):
            verify(store, read_manifest(store, "t000", 200), every_byte)


def test_the_newest_whole_checkpoint_is_found_and_the_others_explained(store):
    state = State()
    state.change()
    saved(store, state, step=300)
    state.change()
    saved(store, state, step=400)
    store.flip("trials/t000/step-00000400/MANIFEST.json", 200)
    gone = next(key for key in chunks(store) if key not in named_by(store, 200) and key in named_by(store, 300))
    store.delete([gone])
    found = newest_intact(store, "t000")
    assert found.manifest is not None
    assert found.manifest.step == 200
    text = "\n".join(map(str, found.problems))
    assert "step-00000400/MANIFEST.json" in text
    assert f"{gone}: the chunk is missing" in text


def test_flips_that_only_reading_finds_lead_further_back(store):
    state = State()
    state.change()
    saved(store, state, step=300)
    big = next(k for k in chunks(store) if k in named_by(store, 300) - named_by(store, 200))
    store.flip(big, 0)
    assert newest_intact(store, "t000", every_byte=True).manifest.step == 200
    assert newest_intact(store, "t000", before_step=300).manifest.step == 200
    assert newest_intact(store, "t000", before_step=200).manifest is None


def named_by(store, step):
    manifest = read_manifest(store, "t000", step)
    found = set()
    for ref in manifest.indexes:
        for chunk in parse_index(store.get(ref.key), ref.key).chunks:
            found.add(f"cas/{chunk.digest[:2]}/{chunk.digest}")
    return found


# -- junk ------------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_junk_is_corrupt_and_nothing_else(data):
    for parse in (parse_manifest, parse_index):
        with pytest.raises(CheckpointCorrupt):
            parse(data, "key")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def paths(value, prefix=()):
    yield prefix
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in list(members)[:12]:
        yield from paths(inner, (*prefix, name))


def changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=400, deadline=None)
@given(data=st.data(), new=json_values)
@pytest.mark.parametrize("which", ["manifest", "index"])
def test_sealed_documents_with_any_value_changed_read_or_raise_our_errors(which, data, new):
    """A digest proves that nobody flipped a bit, not that a writer made sense."""
    key, parse = (MANIFEST, parse_manifest) if which == "manifest" else (index(None), parse_index)
    body = unseal(BASE.get(key), key)
    body.pop("sha256", None)
    path = data.draw(st.sampled_from([each for each in paths(body) if each]))
    document = seal(changed(body, path, new))
    try:
        parse(document, key)
    except (CheckpointCorrupt, CheckpointIncompatible) as error:
        assert key in str(error)


BASE = MemoryStore()
saved(BASE, State(), world_size=2)


@pytest.mark.parametrize(
    ("document", "path", "new", "message"),
    [
        ("manifest", ("format",), 3, "format 3, this version of tlcore reads 2"),
        ("manifest", ("kind",), "rank-index", "kind: 'manifest' is expected"),
        ("manifest", ("step",), True, "step: a whole number from 0 .* not True"),
        ("manifest", ("indexes", 0, "key"), "../../etc/passwd", "'../../etc/passwd' is not the key of a rank index"),
        ("manifest", ("indexes", 0, "rank"), 1, "indexes: one per rank of 2 is expected"),
        ("manifest", ("common", "parameters", "embed", "shape"), [1 << 47, 1 << 47], "has more than"),
        ("index", ("chunks", 0, "bytes"), 1 << 60, r"chunks\[0\].bytes: a whole number"),
        ("index", ("chunks", 0, "leaves"), "zz" * 32, r"chunks\[0\].leaves: 64 hex digits"),
        ("index", ("chunks", 0, "digest"), "0" * 64, "is not the digest of the leaves"),
        ("index", ("rows", 0, 4), 0, r"rows\[0\]: \[\d+, 0\) is empty|rows\[0\]: \[0, 0\) is empty"),
        ("index", ("rows", 0, 6), 1 << 20, "reach past its chunk"),
        ("index", ("rows", 0, 5), 10_000, r"rows\[0\]: a whole number from 0 to \d+ is expected, not 10000"),
        ("index", ("dtypes", 0), "pickle", "'pickle' is not a dtype"),
    ],
)
def test_impossible_values_are_named_by_their_path(document, path, new, message):
    key, parse = (MANIFEST, parse_manifest) if document == "manifest" else (index(None), parse_index)
    body = unseal(BASE.get(key), key)
    body.pop("sha256", None)
    with pytest.raises(CheckpointError, match=message):
        parse(seal(changed(body, path, new)), key)


def test_deep_nesting_is_corrupt():
    rest = b'"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    import hashlib

    document = b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest
    with pytest.raises(CheckpointCorrupt, match="not JSON"):
        parse_manifest(document, "key")


def test_the_documents_are_plain_json():
    for key in (MANIFEST, index(None)):
        assert json.loads(BASE.get(key))["format"] == 2
    assert max(len(BASE.objects[key][0]) for key in BASE.keys("cas/")) == CHUNK
