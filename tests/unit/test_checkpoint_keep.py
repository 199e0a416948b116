"""Which checkpoints and chunks stay: retention, garbage collection, and pointers to checkpoints."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from checkpoint_state import State, close, restored, same, save, saved, wait, writers
from memory_store import MemoryStore

from tlcore.checkpoint import (
    CheckpointRef,
    apply_retention,
    delete_checkpoint,
    gc,
    list_manifests,
    read_manifest,
    steps_to_delete,
    verify,
)
from tlcore.checkpoint.manifest import read_index
from tlcore.errors import CheckpointCorrupt, CheckpointError, RequestError

pytestmark = pytest.mark.unit
DAY = 24 * 3600


def facts(metrics: dict[int, float | None]):
    return [
        SimpleNamespace(step=step, metrics={} if value is None else {"eval_loss": value})
        for step, value in metrics.items()
    ]


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "mode", "kept"),
    [
        (2, 0, "max", {4, 5}),
        (1, 1, "max", {1, 5}),
        (1, 1, "min", {3, 5}),
        (1, 2, "min", {3, 4, 5}),
        (0, 0, "max", {5}),
        (9, 9, "max", {1, 2, 3, 4, 5}),
    ],
)
def test_the_newest_and_the_best_stay(keep_last, keep_best, mode, kept):
    manifests = facts({1: 0.9, 2: None, 3: 0.1, 4: 0.1 if mode == "min" else 0.2, 5: float("nan")})
    if (keep_last, keep_best, mode) == (1, 1, "min"):
        kept = {4, 5}
    assert {1, 2, 3, 4, 5} - set(steps_to_delete(manifests, keep_last, keep_best, "eval_loss", mode)) == kept


def test_deleting_takes_the_manifest_first_and_leaves_the_rest_whole():
    store = MemoryStore()
    state = State()
    for step in (1, 2, 3):
        saved(store, state, step=step)
        state.change()
    store.requests.clear()
    doomed = apply_retention(store, [read_manifest(store, "t000", s) for s in (1, 2, 3)], 1, 0, None, "max")
    deleted = [key for kind, key in store.requests if kind == "delete"]
    assert doomed == [1, 2]
    assert deleted[0] == "trials/t000/step-00000001/MANIFEST.json"
    assert list_manifests(store, "t000") == [3]
    assert not store.keys("trials/t000/step-00000001/")
    assert verify(store, read_manifest(store, "t000", 3)) == []


def aged(steps=(1, 2, 3)):
    store, state = MemoryStore(), State()
    for step in steps:
        saved(store, state, step=step)
        state.change()
    return store, state


def test_chunks_nobody_names_are_collected_after_the_grace_period():
    store, _ = aged()
    delete_checkpoint(store, "t000", 1)
    young = gc(store, store.now)
    assert (young.deleted, young.kept) == (0, len(store.keys("cas/")))
    store.later(DAY + 1)
    before = store.keys("cas/")
    dry = gc(store, store.now, dry_run=True)
    assert store.keys("cas/") == before
    done = gc(store, store.now)
    assert done == dry
    assert 0 < done.deleted == len(before) - len(store.keys("cas/"))
    assert done.kept == len(store.keys("cas/"))
    for step in (2, 3):
        assert verify(store, read_manifest(store, "t000", step)) == []
    assert gc(store, store.now).deleted == 0


def test_what_a_running_save_uploaded_or_names_stays():
    store, _ = aged((1,))
    store.later(DAY + 1)
    state = State(seed=9)
    ranks = writers(store, 2)
    ranks[1].save(7, state.pieces(1, 2))
    ranks[1].close()
    gc(store, store.now)
    ranks[0].save(7, state.pieces(0, 2), state.common())
    assert ranks[0].wait()[0].committed
    close(ranks)
    assert same(restored(store, state, step=7)[0], state)


def test_old_chunks_that_a_running_save_reuses_stay_while_its_manifest_is_still_to_come():
    store, state = MemoryStore(), State()
    saved(store, state, step=1)
    store.later(DAY + 1)
    ranks = writers(store, 2, parent=read_manifest(store, "t000", 1))
    for rank in (1, 0):
        if rank == 0:
            delete_checkpoint(store, "t000", 1)
            gc(store, store.now)
        ranks[rank].save(2, state.pieces(rank, 2), state.common() if rank == 0 else None)
        if rank == 1:
            ranks[1].close()
    held = {
        chunk.digest
        for ref in ranks[0].wait() and read_manifest(store, "t000", 2).indexes
        for chunk in index_of(store, ref)
    }
    close(ranks)
    mine = {chunk.digest for chunk in index_of(store, read_manifest(store, "t000", 2).indexes[1])}
    assert mine <= held
    assert mine <= {key.rpartition("/")[2] for key in store.keys("cas/")}


def index_of(store, ref):
    return read_index(store, ref).chunks


def test_an_index_whose_save_never_committed_goes_with_its_chunks():
    store = MemoryStore()
    ranks = writers(store, 2)
    ranks[1].save(7, State().pieces(1, 2))
    close(ranks)
    assert store.keys("trials/t000/step-00000007/")
    store.later(DAY + 1)
    report = gc(store, store.now)
    assert report.deleted_indexes == 1
    assert not store.keys("cas/")
    assert not store.keys("trials/t000/step-00000007/")


def test_a_save_that_reuses_chunks_survives_retention_and_collection_at_any_moment():
    store, state = MemoryStore(), State(frozen_elements=60_000)
    ranks = writers(store, 2)
    for step in range(1, 5):
        state.change()
        save(ranks, state, step)
        wait(ranks, step)
        for old in list_manifests(store, "t000")[:-1]:
            delete_checkpoint(store, "t000", old)
        store.later(DAY + 1)
        gc(store, store.now)
        assert verify(store, read_manifest(store, "t000", step)) == []
    close(ranks)


@pytest.mark.parametrize("read", ["MANIFEST.json", "rank-0001-0002.json"])
def test_marking_begins_again_when_retention_is_at_work(read):
    """While step 2 is being read, step 4 is committed and step 2 deleted: step 4 was not in the listing."""
    store, _ = aged((1, 2, 3, 4))
    late = {key: store.objects.pop(key) for key in store.keys("trials/t000/step-00000004/")}
    store.later(DAY + 1)

    def move_on(kind, key):
        if kind == "get" and key == f"trials/t000/step-00000002/{read}" and late:
            store.objects.update(late)
            late.clear()
            for each in store.keys("trials/t000/step-00000002/"):
                store.objects.pop(each)

    store.before = move_on
    report = gc(store, store.now)
    assert report.deleted > 0
    for step in (1, 3, 4):
        assert verify(store, read_manifest(store, "t000", step)) == []


@pytest.mark.parametrize("part", ["MANIFEST.json", "rank-0000-0001.json"])
def test_what_cannot_be_read_stops_the_collection(part):
    store, _ = aged((1,))
    chunks = store.keys("cas/")
    store.flip(f"trials/t000/step-00000001/{part}", 200)
    store.later(DAY + 1)
    with pytest.raises(CheckpointCorrupt):
        gc(store, store.now)
    assert store.keys("cas/") == chunks


def test_a_grace_period_that_running_saves_would_not_survive_is_refused():
    with pytest.raises(RequestError, match="at least 7200 s"):
        gc(MemoryStore(), datetime.now(UTC), grace_s=60)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/runs/sst/20261121-044500-ab12/trials/t003/step-00000200",
        "s3://bucket/runs/sst/20261121-044500-ab12/trials/t003/step-200/",
        "s3://bucket/runs/sst/20261121-044500-ab12/trials/t003/step-00000200/MANIFEST.json",
    ],
)
def test_pointers_read_as_they_are_written(text):
    ref = CheckpointRef.parse(text)
    assert ref == CheckpointRef("s3://bucket/runs/sst/20261121-044500-ab12", "t003", 200)
    assert str(ref) == "s3://bucket/runs/sst/20261121-044500-ab12/trials/t003/step-00000200"
    assert CheckpointRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", ["s3://b/run/trials/t0", "trials/t0/step-1", "s3://b/trials/t0/step-x", ""])
def test_other_text_is_no_pointer(text):
    with pytest.raises(RequestError, match="does not name a checkpoint"):
        CheckpointRef.parse(text)
    assert not CheckpointRef.is_one(text)


def test_a_pointer_opens_its_manifest(tmp_path):
    from tlcore.storage import open_store

    saved(open_store(f"file://{tmp_path}"), State(), step=5)
    store, manifest = CheckpointRef(f"file://{tmp_path}", "t000", 5).open()
    assert manifest.step == 5
    assert verify(store, manifest) == []
    with pytest.raises(CheckpointError, match="no checkpoint of step 6"):
        CheckpointRef(f"file://{tmp_path}", "t000", 6).open()
