"""Damage of every kind on real stores: `verify` names it, a restore refuses it, and the older checkpoint is taken instead."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from checkpoint_state import State, close, restored, same, save, wait, writers

from tlcore import cli
from tlcore.checkpoint import list_manifests, newest_intact, read_manifest, verify
from tlcore.checkpoint.digest import seal, unseal
from tlcore.checkpoint.manifest import FORMAT
from tlcore.errors import CheckpointCorrupt, CheckpointIncompatible
from tlcore.storage import create_run, open_store
from tlcore.storage.keys import manifest_key, rank_index_key

pytestmark = pytest.mark.integration
MANIFEST, INDEX = manifest_key("t000", 200), rank_index_key("t000", 200, 1, 1)


@pytest.fixture(params=["s3", "file"])
def store(request, tmp_path):
    """Two checkpoints, 100 and 200, which share nothing but the frozen part."""
    empty = request.getfixturevalue("s3_store") if request.param == "s3" else open_store(f"file://{tmp_path}/run")
    fill(empty)
    return empty


def fill(store, trial="t000"):
    ranks = writers(store, 2, trial=trial)
    for step in (100, 200):
        save(ranks, state_at(step), step)
        wait(ranks, step)
    close(ranks)


def state_at(step):
    state = State(seed=5)
    state.change(step)
    return state


def own_chunks(store):
    """Keys of chunks that only step 200 has, largest first."""
    found = {}
    for step in (100, 200):
        for ref in read_manifest(store, "t000", step).indexes:
            chunks = json.loads(store.get(ref.key))["chunks"]
            found[step] = found.get(step, {}) | {each["digest"]: each["bytes"] for each in chunks}
    mine = {digest: size for digest, size in found[200].items() if digest not in found[100]}
    return [f"cas/{digest[:2]}/{digest}" for digest in sorted(mine, key=lambda each: (-mine[each], each))]


def flip(store, key, at):
    data = store.get(key)
    store.put(key, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    return key


def resealed(store, key, **changes):
    body = unseal(store.get(key), key)
    body.pop("sha256", None)
    store.put(key, seal({**body, **changes}))
    return key


def flipped_chunk(store):
    return flip(store, own_chunks(store)[0], 777)


def missing_chunk(store):
    store.delete([own_chunks(store)[0]])
    return own_chunks(store)[0]


def truncated_chunk(store):
    key = own_chunks(store)[0]
    store.put(key, store.get(key)[:-1])
    return key


def empty_chunk(store):
    key = own_chunks(store)[0]
    store.put(key, b"")
    return key


def swapped_chunks(store):
    """Each is whole and has the right size; only the places are wrong."""
    by_size = {}
    for key in own_chunks(store):
        size = len(store.get(key))
        if size in by_size:
            one, other = by_size[size], key
            data = store.get(one), store.get(other)
            store.put(one, data[1])
            store.put(other, data[0])
            return one
        by_size[size] = key
    raise AssertionError("no two chunks of one size")


def flipped_index(store):
    return flip(store, INDEX, 300)


def missing_index(store):
    store.delete([INDEX])
    return INDEX


def index_of_another_save(store):
    """Sealed and sensible, but not the bytes that the manifest means."""
    store.put(INDEX, store.get(rank_index_key("t000", 100, 1, 1)))
    return INDEX


def flipped_manifest(store):
    return flip(store, MANIFEST, 400)


def manifest_of_a_newer_format(store):
    return resealed(store, MANIFEST, format=FORMAT + 1)


def manifest_without_a_rank(store):
    body = unseal(store.get(MANIFEST), MANIFEST)
    return resealed(store, MANIFEST, world_size=1, indexes=[each for each in body["indexes"] if each["rank"] == 0])


def junk_manifest(store):
    store.put(MANIFEST, hashlib.sha512(b"junk").digest())
    return MANIFEST


CHUNKS = [flipped_chunk, missing_chunk, truncated_chunk, empty_chunk, swapped_chunks]
DOCUMENTS = [flipped_index, missing_index, index_of_another_save, flipped_manifest, manifest_of_a_newer_format,
             manifest_without_a_rank, junk_manifest]  # fmt: skip


@pytest.mark.parametrize("damage", CHUNKS + DOCUMENTS)
def test_damage_is_named_and_the_older_checkpoint_is_taken(store, damage):
    key = damage(store)
    assert list_manifests(store, "t000") == [100, 200]
    found = newest_intact(store, "t000", every_byte=True)
    assert found.manifest is not None
    assert found.manifest.step == 100
    assert key in {problem.key for problem in found.problems}
    assert {problem.step for problem in found.problems} == {200}
    assert all(problem.key in problem.text for problem in found.problems)
    if damage is not manifest_without_a_rank:  # restored as what it says it is, it fits no model; only rows tell
        named = "|".join(
            sorted(problem.key for problem in found.problems)
        )  # of two that are swapped, either comes first
        with pytest.raises((CheckpointCorrupt, CheckpointIncompatible), match=named):
            restored(store, State(), step=200)
    assert verify(store, found.manifest) == []
    assert same(restored(store, State(), step=100, world_size=3)[0], state_at(100))


@pytest.mark.parametrize("damage", DOCUMENTS)
def test_damaged_documents_are_found_without_reading_chunks(store, damage):
    damage(store)
    found = newest_intact(store, "t000", chunks=False)
    assert found.manifest is not None
    assert found.manifest.step == 100


def run(capsys, *words):
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(params=["s3", "file"])
def run_url(request, tmp_path):
    from datetime import UTC, datetime

    storage = request.getfixturevalue("s3_store").url if request.param == "s3" else f"file://{tmp_path}/runs"
    ref = create_run(storage, "reviews", {}, datetime.now(UTC), "one")
    fill(ref.open())
    return ref.url


def test_the_command_lists_verifies_and_says_which_older_one_is_whole(capsys, run_url):
    code, out, err = run(capsys, "checkpoints", "verify", run_url)
    assert (code, err.count("\n")) == (0, 2)
    assert out.splitlines()[-1] == "2 of 2 whole"
    store = open_store(run_url)
    key = flip(store, own_chunks(store)[0], 5)
    code, out, _ = run(capsys, "checkpoints", "verify", run_url)
    assert code == 1
    assert out.splitlines()[0].startswith("t000 step 100: whole, ")
    assert out.splitlines()[1] == "t000 step 200: DAMAGED, step 100 is whole"
    assert out.splitlines()[2].strip().startswith(f"{key}: bytes from 0 (leaf 0)")
    flipped_manifest(store)
    code, out, _ = run(capsys, "checkpoints", "verify", run_url, "--json")
    assert code == 1
    whole, damaged = json.loads(out)
    assert (whole["step"], whole["whole"], whole["problems"]) == (100, True, [])
    assert (damaged["step"], damaged["whole"], damaged["problems"][0]["key"]) == (200, False, MANIFEST)
    code, out, err = run(capsys, "checkpoints", "list", run_url)
    assert code == 0, err
    assert "t000 step 200: DAMAGED, " in err
    code, out, _ = run(capsys, "checkpoints", "list", run_url, "--json")
    assert [(each["step"], bool(each["damaged"])) for each in json.loads(out)] == [(100, False), (200, True)]


def test_the_command_fetches_the_newest_and_everything_works_on_the_copy(capsys, run_url, tmp_path):
    copy = f"{tmp_path}/copy"
    code, out, err = run(capsys, "checkpoints", "fetch", run_url, copy)
    assert code == 0, err
    assert out.splitlines()[-1] == f"file://{copy}/trials/t000/step-00000200"
    code, out, _ = run(capsys, "checkpoints", "fetch", f"{run_url}/trials/t000/step-200", copy, "--json")
    assert (code, json.loads(out)["bytes_copied"]) == (0, 0)
    code, out, _ = run(capsys, "checkpoints", "verify", copy)
    assert (code, out.splitlines()[-1]) == (0, "1 of 1 whole")
    assert same(restored(open_store(copy), State(), step=200)[0], state_at(200))


def test_the_command_chooses_by_trial_and_says_what_it_cannot_choose(capsys, run_url, tmp_path):
    fill(open_store(run_url), "t001")
    code, _, err = run(capsys, "checkpoints", "fetch", run_url, f"{tmp_path}/copy")
    assert code == 2
    assert "so none is the best" in err
    assert f"name one, as {run_url}/<trial>; with checkpoints: t000, t001" in err
    code, out, _ = run(capsys, "checkpoints", "fetch", run_url, f"{tmp_path}/copy", "--trial", "t001")
    assert code == 0, err
    assert out.splitlines()[-1].endswith("/trials/t001/step-00000200")
    code, out, _ = run(capsys, "checkpoints", "list", run_url, "--trial", "t001", "--json")
    assert {each["trial"] for each in json.loads(out)} == {"t001"}
    code, _, err = run(capsys, "checkpoints", "verify", f"{run_url}/trials/t000/step-7")
    assert (code, "steps: 100, 200" in err) == (1, True)
    code, _, err = run(capsys, "checkpoints", "gc", f"{run_url}-mistyped")
    assert (code, "no run at" in err) == (1, True)


def test_the_command_collects_and_says_by_trial_what_goes(capsys, run_url):
    from datetime import timedelta

    from tlcore.checkpoint import delete_checkpoint, gc
    from tlcore.storage.clock import store_now

    store = open_store(run_url)
    delete_checkpoint(store, "t000", 100)
    code, out, err = run(capsys, "checkpoints", "gc", run_url, "--dry-run")
    assert code == 0, err
    assert out.splitlines()[0] == "would go: 0 chunks, 0 B and 0 leftovers of abandoned or deleted checkpoints"
    assert err.splitlines() == ["listing chunks", "marking"] or err.splitlines()[0] == "listing chunks"
    code, _, err = run(capsys, "checkpoints", "gc", run_url, "--grace-hours", "1")
    assert (code, "at least 7200 s" in err) == (2, True)
    report = gc(store, now=store_now(store) + timedelta(days=2))
    assert report.trials["t000"].steps == {100}
    assert report.deleted == report.trials["t000"].chunks > 0
    assert verify(store, read_manifest(store, "t000", 200)) == []
    code, out, _ = run(capsys, "checkpoints", "gc", run_url, "--json")
    assert json.loads(out)["deleted"] == 0
