"""Which checkpoints and chunks stay: retention, garbage collection, and pointers to checkpoints."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from checkpoint_state import State, close, restored, same, save, saved, wait, writers
from memory_store import MemoryStore

from tlcore.checkpoint import (
    CheckpointRef,
    Retention,
    clone_checkpoint,
    delete_checkpoint,
    gc,
    list_manifests,
    read_manifest,
    steps_to_delete,
    verify,
)
from tlcore.checkpoint.manifest import read_index
from tlcore.checkpoint.retention import on_offer
from tlcore.errors import CheckpointCorrupt, CheckpointError, RequestError

pytestmark = pytest.mark.unit
DAY = 24 * 3600


def facts(metrics: dict[int, float | None]):
    return [
        SimpleNamespace(step=step, attempt=1, metrics={} if value is None else {"eval_loss": value})
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


def retained(store, keep_last, committed, metric=None):
    return Retention(store, "t000", keep_last, 0, metric, "max").after_commit(committed)


def test_deleting_keeps_a_copy_of_the_manifest_first_and_takes_it_away_then():
    store, _ = aged((1, 2, 3))
    store.requests.clear()
    assert retained(store, 1, committed=3) == [1, 2]
    changes = [each for each in store.requests if each[0] in ("put", "delete")]
    assert changes[:2] == [
        ("put", "trials/t000/step-00000001/RETIRED-0001.json"),
        ("delete", "trials/t000/step-00000001/MANIFEST.json"),
    ]
    assert list_manifests(store, "t000") == [3]
    assert verify(store, read_manifest(store, "t000", 3)) == []


def test_a_writer_lists_its_trial_once():
    store, state = aged((1, 2))
    retention = Retention(store, "t000", 2, 0, None, "max")
    for step in (3, 4, 5):
        saved(store, state, step=step)
        store.requests.clear()
        assert retention.after_commit(step) == ([1] if step == 3 else [step - 2])
        assert bool([each for each in store.requests if each[0] == "list"]) == (step == 3)
    assert list_manifests(store, "t000") == [4, 5]


def test_what_a_writer_relies_on_stays_even_if_it_is_neither_new_nor_good():
    store, _ = aged((1, 2, 3, 4))
    assert retained(store, 1, committed=2) == [1, 3]
    assert list_manifests(store, "t000") == [2, 4]


def manifest(step, attempt=1, offered=False):
    return SimpleNamespace(step=step, attempt=attempt, metrics={}, common={"offered": True} if offered else {})


@pytest.mark.parametrize(
    ("committed", "kept"),
    [
        (3, []),
        (4, []),  # the first that may be taken over
        (5, [4]),
        (7, [4]),
        (8, [4]),  # the driver has not heard of 8 yet
        (9, [8]),
        (12, [8]),
        (99, [12]),  # its manifest cannot be read
    ],
)
def test_what_others_may_take_over_stays_until_the_driver_knows_of_the_next(committed, kept):
    there = [manifest(step, offered=step % 4 == 0) for step in range(1, 13)]
    assert on_offer(there, committed) == kept
    assert on_offer(there[::-1], committed) == kept


def test_after_a_restart_that_went_back_what_was_reported_last_may_still_be_taken_over():
    there = [manifest(4, offered=True), manifest(8, offered=True), manifest(7, attempt=2)]
    assert on_offer(there, 7) == [8]
    assert on_offer([*there, manifest(10, attempt=2)], 10) == [8]


def test_a_writer_keeps_what_others_may_take_over_and_a_clone_of_it_too():
    store, state = MemoryStore(), State()
    retention, left = Retention(store, "t000", 2, 0, None, "max"), {}
    for step in range(1, 11):
        state.change()
        saved(store, state, step=step, **({"offered": True} if step in (4, 8) else {}))
        retention.after_commit(step)
        left[step] = list_manifests(store, "t000")
    assert left[4] == [3, 4]
    assert (left[6], left[7], left[8]) == ([4, 5, 6], [4, 6, 7], [4, 7, 8])
    assert (left[9], left[10]) == ([8, 9], [8, 9, 10])

    clone_checkpoint(store, read_manifest(store, "t000", 8), "t001")
    fresh = Retention(store, "t001", 1, 0, None, "max")
    for step in (9, 10):
        ranks = writers(store, 1, trial="t001")
        save(ranks, state, step)
        wait(ranks, step)
        close(ranks)
        fresh.after_commit(step)
    assert list_manifests(store, "t001") == [8, 10]


def test_a_damaged_manifest_is_left_for_verify_to_tell_of():
    store, _ = aged((1, 2, 3))
    store.flip("trials/t000/step-00000001/MANIFEST.json", 200)
    assert retained(store, 1, committed=3) == [2]
    assert list_manifests(store, "t000") == [1, 3]


def test_deleting_what_is_not_there_and_what_cannot_be_read():
    store, _ = aged((1,))
    delete_checkpoint(store, "t000", 9)
    store.flip("trials/t000/step-00000001/MANIFEST.json", 200)
    delete_checkpoint(store, "t000", 1)
    assert list_manifests(store, "t000") == []
    assert gc(store, now=store.now).deleted == 0


def test_whoever_has_read_a_manifest_can_restore_after_its_deletion_for_a_day():
    store, state = MemoryStore(), State()
    saved(store, state, step=1)
    saved(store, State(seed=1), step=2)
    store.later(DAY + 1)
    manifest = read_manifest(store, "t000", 1)
    delete_checkpoint(store, "t000", 1)
    store.later(DAY - 1)
    assert gc(store, now=store.now).deleted == 0
    assert verify(store, manifest) == []
    store.later(2)
    assert gc(store, now=store.now).deleted > 0
    assert verify(store, manifest) != []
    assert not store.keys("trials/t000/step-00000001/")


def aged(steps=(1, 2, 3)):
    store, state = MemoryStore(), State()
    for step in steps:
        saved(store, state, step=step)
        state.change()
    return store, state


def test_chunks_nobody_names_are_collected_after_the_grace_period():
    store, _ = aged()
    delete_checkpoint(store, "t000", 1)
    young = gc(store, now=store.now)
    assert (young.deleted, young.kept) == (0, len(store.keys("cas/")))
    store.later(DAY + 1)
    before = store.keys("cas/")
    dry = gc(store, now=store.now, dry_run=True)
    assert store.keys("cas/") == before
    done = gc(store, now=store.now)
    assert replace(done, dry_run=True) == dry
    assert 0 < done.deleted == len(before) - len(store.keys("cas/"))
    assert done.kept == len(store.keys("cas/"))
    for step in (2, 3):
        assert verify(store, read_manifest(store, "t000", step)) == []
    assert gc(store, now=store.now).deleted == 0


def test_what_a_running_save_uploaded_or_names_stays():
    store, _ = aged((1,))
    store.later(DAY + 1)
    state = State(seed=9)
    ranks = writers(store, 2)
    ranks[1].save(7, state.pieces(1, 2))
    ranks[1].close()
    gc(store, now=store.now)
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
            gc(store, now=store.now)
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
    report = gc(store, now=store.now)
    assert report.deleted_leftovers == 1
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
        gc(store, now=store.now)
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
    report = gc(store, now=store.now)
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
        gc(store, now=store.now)
    assert store.keys("cas/") == chunks


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
