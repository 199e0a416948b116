"""What a failing store, a lost rank or a wrong call does to a save, and what it leaves alone."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from checkpoint_state import SETTINGS, State, close, restored, same, save, wait, writers
from memory_store import Gate, MemoryStore, puts

from tlcore.checkpoint import (
    CheckpointWriter,
    list_manifests,
)
from tlcore.errors import CheckpointError, StorageDenied, StorageFull, StorageUnreachable

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    return MemoryStore()


def fail(kinds, part, error):
    def hook(kind, key):
        if kind in kinds and part in key and not key.endswith(".failed"):
            raise error

    return hook


@pytest.mark.parametrize("part", ["cas/", "rank-0001", "rank-0000", "MANIFEST"])
def test_a_failed_save_is_told_on_every_rank_and_disturbs_nothing(store, part):
    state, first = State(), State()
    ranks = writers(store, 2)
    save(ranks, state, 100)
    wait(ranks)
    state.change()
    store.before = fail(("put", "put_if_absent"), part, StorageFull("no space left"))
    save(ranks, state, 200)
    for writer in ranks:
        with pytest.raises(CheckpointError):
            writer.wait(200)
    store.before = lambda kind, key: None
    assert list_manifests(store, "t000") == [100]
    assert same(restored(store, state, step=100)[0], first)
    save(ranks, state, 300)
    assert [report.outcome for report in wait(ranks, 300)] == ["committed", "committed"]
    close(ranks)
    assert same(restored(store, state, step=300)[0], state)


@pytest.mark.parametrize("part", ["cas/", "rank-0001"])
def test_an_error_that_is_not_ours_is_told_to_the_other_ranks_and_goes_up(store, part):
    """Otherwise they would wait for this rank until their deadline; what it says may quote what was signed."""
    ranks = writers(store, 2, settings=replace(SETTINGS, commit_deadline_s=5))
    store.before = fail(("put",), part, ValueError("signed with hunter2"))
    ranks[1].save(200, State().pieces(1, 2))
    with pytest.raises(ValueError, match="hunter2"):
        ranks[1].wait()
    store.before = lambda kind, key: None
    ranks[0].save(200, State().pieces(0, 2), State().common())
    with pytest.raises(CheckpointError, match="given up by rank 1: it met ValueError"):
        ranks[0].wait()
    close(ranks)
    assert list_manifests(store, "t000") == []
    assert not [key for key, (data, _) in store.objects.items() if b"hunter2" in data]


def test_failures_are_polled_once(store):
    store.before = fail(("put",), "cas/", StorageDenied("credentials expired"))
    [writer] = writers(store, 1)
    assert writer.poll() == []
    writer.save(1, State().pieces(0, 1), State().common())
    writer.close()
    [report] = writer.poll()
    assert (report.outcome, report.error, report.committed) == ("failed", "credentials expired", False)
    assert writer.poll() == []


def test_a_store_that_is_away_for_a_moment_is_asked_again(store, monkeypatch):
    monkeypatch.setattr("tlcore.checkpoint.patience.FIRST_PAUSE_S", 0.001)
    seen: set[str] = set()
    lock = threading.Lock()

    def once_each(kind, key):
        with lock:
            first = (kind, key) not in seen and kind != "list"
            seen.add((kind, key))
        if first:
            raise StorageUnreachable("away")

    store.before = once_each
    [writer] = writers(store, 1)
    writer.save(1, State().pieces(0, 1), State().common())
    [report] = writer.wait()
    writer.close()
    assert report.retries == len(puts(store)) // 2 + 3


def test_a_rank_that_never_comes_ends_the_save_and_is_named(store):
    settings = replace(SETTINGS, commit_deadline_s=0.05)
    [rank0, _, _] = ranks = writers(store, 3, settings=settings)
    for rank in (0, 2):
        ranks[rank].save(200, State().pieces(rank, 3), State().common() if rank == 0 else None)
    with pytest.raises(CheckpointError, match=r"trial t000 step 200: no index of rank 1 after 0.05 s"):
        rank0.wait()
    with pytest.raises(CheckpointError, match=r"given up by rank 0|no manifest"):
        ranks[2].wait()
    close(ranks)
    assert list_manifests(store, "t000") == []


def test_state_that_no_rank_passed_is_refused_by_name(store):
    [writer] = writers(store, 1)
    pieces = [piece for piece in State().pieces(0, 1) if piece.row.parameter != "norm"]
    writer.save(1, pieces, State().common())
    with pytest.raises(CheckpointError, match=r"parameter 'norm' of shape \[7\] has no rows"):
        writer.wait()
    writer.close()


def test_state_that_two_ranks_passed_is_refused(store):
    ranks = writers(store, 2)
    for rank, writer in enumerate(ranks):
        writer.save(1, State().pieces(0, 1), State().common() if rank == 0 else None)
    with pytest.raises(CheckpointError, match="are there twice"):
        wait(ranks)
    close(ranks)


def test_abandoning_ends_at_once_and_commits_nothing(store):
    ranks = writers(store, 2)
    ranks[0].save(200, State().pieces(0, 2), State().common())
    ranks[0].abandon()
    close(ranks)
    [report] = ranks[0].poll()
    assert report.outcome == "failed"
    assert list_manifests(store, "t000") == []


def test_leaving_by_an_error_abandons_and_leaving_normally_completes(store):
    gate = Gate("cas/")
    with pytest.raises(RuntimeError), writers(store, 1)[0] as writer:
        store.before = gate
        writer.save(100, State().pieces(0, 1), State().common())
        assert gate.reached.wait(30)
        threading.Timer(0.05, gate.open).start()
        raise RuntimeError
    store.before = lambda kind, key: None
    assert list_manifests(store, "t000") == []
    with writers(store, 1)[0] as writer:
        writer.save(200, State().pieces(0, 1), State().common())
    assert list_manifests(store, "t000") == [200]
    with pytest.raises(CheckpointError, match="closed"):
        writer.save(300, State().pieces(0, 1), State().common())


@pytest.mark.parametrize(
    ("rank", "common", "message"),
    [(0, None, "given on rank 0"), (1, {}, "only there"), (0, {"x": float("nan")}, "JSON"), (0, {"x": b""}, "JSON")],
)
def test_calls_that_cannot_work_fail_in_the_caller(store, rank, common, message):
    writer = CheckpointWriter(store, "t000", rank, 2, 1, SETTINGS)
    with pytest.raises(CheckpointError, match=message):
        writer.save(1, State().pieces(rank, 2), common)
    with pytest.raises(CheckpointError, match="step 1 was not saved"):
        writer.wait(1)
    writer.close()


def test_a_table_of_parameters_that_is_none_fails_the_save(store):
    [writer] = writers(store, 1)
    writer.save(1, State().pieces(0, 1), {"parameters": {"embed": {"shape": "big"}}})
    with pytest.raises(CheckpointError, match=r"common.parameters.embed.shape: a list"):
        writer.wait()
    writer.close()
