"""The writer: what is visible when, what it reports, what is sent again, which settings it takes."""

from __future__ import annotations

import pytest
from checkpoint_state import CHUNK, State, close, restored, same, save, saved, wait, writers
from memory_store import Gate, MemoryStore, puts

from tlcore.checkpoint import (
    WriterSettings,
    claim_attempt,
    list_manifests,
    read_manifest,
    verify,
)
from tlcore.checkpoint.upload import UNCOMMITTED_REUSE_S, Reusable
from tlcore.errors import CheckpointError, StaleWriter, StorageFull

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    return MemoryStore()


def test_nothing_is_visible_before_the_manifest_and_chunks_come_first(store):
    saved(store, State(), world_size=2)
    writes = [key for kind, key in store.requests if kind.startswith("put") and "writers/" not in key]
    assert writes[-1] == "trials/t000/step-00000200/MANIFEST.json"
    for rank in (0, 1):
        at = writes.index(f"trials/t000/step-00000200/rank-000{rank}-0001.json")
        assert at < len(writes) - 1
    assert [kind for kind, key in store.requests if key.endswith("MANIFEST.json") and kind.startswith("put")] == [
        "put_if_absent"
    ]


def test_killed_between_chunks_and_manifest_leaves_nothing_visible(store):
    gate = Gate("MANIFEST", kinds=("put_if_absent",))
    store.before = gate
    ranks = writers(store, 2)
    save(ranks, State(), 200)
    assert gate.reached.wait(30)
    assert list_manifests(store, "t000") == []
    assert store.keys("cas/")
    gate.open()
    wait(ranks)
    close(ranks)
    assert list_manifests(store, "t000") == [200]


def test_pieces_may_change_as_soon_as_save_returns(store):
    gate = Gate("cas/")
    store.before = gate
    state, as_saved = State(), State()
    ranks = writers(store, 2)
    save(ranks, state, 200)
    state.change(77)
    gate.open()
    wait(ranks)
    close(ranks)
    assert same(restored(store, state)[0], as_saved)


def test_reports_say_what_it_took(store):
    reports = saved(store, State(), world_size=2)
    assert [report.outcome for report in reports] == ["committed", "committed"]
    assert all(report.committed and report.manifest_key.endswith("step-00000200/MANIFEST.json") for report in reports)
    total = sum(data.nbytes for data in State().data.values())
    assert sum(report.bytes_new + report.bytes_reused for report in reports) == total
    assert all(0 <= report.stall_s <= report.seconds for report in reports)
    assert reports[0].to_dict()["committed"] is True


# -- reuse ---------------------------------------------------------------------------------------------------------------


def test_frozen_bytes_are_sent_once_and_hashed_once(store, monkeypatch):
    state = State(frozen_elements=60_000)
    ranks = writers(store, 2)
    save(ranks, state, 100)
    wait(ranks)
    frozen = sum(2 * elements for elements in state.frozen.values())
    sizes: list[int] = []
    from tlcore.checkpoint import upload

    real = upload.leaf_digests
    monkeypatch.setattr(
        upload, "leaf_digests", lambda parts, leaf: (sizes.extend(map(len, parts)), real(parts, leaf))[1]
    )
    state.change()
    save(ranks, state, 200)
    reports = wait(ranks, 200)
    close(ranks)
    assert sum(report.bytes_reused for report in reports) == frozen
    assert sum(sizes) == sum(data.nbytes for data in state.data.values()) - frozen
    assert same(restored(store, state)[0], state)


def test_frozen_chunks_are_the_same_at_any_world_size(store):
    state = State(frozen_elements=60_000)
    saved(store, state, step=100, world_size=2)
    before = len(puts(store))
    state.change()
    ranks = writers(store, 3, attempt=2, parent=read_manifest(store, "t000", 100))
    save(ranks, state, 200)
    reports = wait(ranks)
    close(ranks)
    assert len(puts(store)) > before
    assert sum(report.bytes_reused for report in reports) == sum(2 * n for n in state.frozen.values())


def test_an_unchanged_state_is_not_sent_again_by_a_restarted_writer(store):
    state = State()
    saved(store, state, step=100)
    ranks = writers(store, 2, attempt=2, parent=read_manifest(store, "t000", 100))
    save(ranks, state, 200)
    reports = wait(ranks)
    close(ranks)
    assert [report.bytes_new for report in reports] == [0, 0]
    assert verify(store, read_manifest(store, "t000", 200)) == []


def test_equal_chunks_of_one_save_are_sent_once(store):
    state = State(shapes={"w": (5 * CHUNK // 4,)}, frozen_elements=0)
    for name, kind, dtype in state.data:
        state.data[name, kind, dtype][:] = 0
    saved(store, state, world_size=1)
    assert len(puts(store)) == 2
    assert same(restored(store, state)[0], state)


def test_frozen_chunks_are_relied_on_for_as_long_as_commits_hold_them(store):
    state = State(frozen_elements=60_000)
    frozen = sum(2 * elements for elements in state.frozen.values())
    ranks = writers(store, 2)
    now = [0.0]
    for writer in ranks:
        writer._runner._reusable._clock = lambda: now[0]
    for step in range(1, 5):
        save(ranks, state, step)
        reports = wait(ranks, step)
        assert sum(report.bytes_reused for report in reports) == (frozen if step > 1 else 0)
        state.change()
        now[0] += 10 * UNCOMMITTED_REUSE_S
    close(ranks)


def test_only_the_last_commit_and_the_last_hour_are_relied_on():
    now = [0.0]
    known = Reusable(clock=lambda: now[0])
    known.sent(["a"])
    known.committed(["b", "c"])
    assert all(each in known for each in "abc")
    known.committed(["c"])
    assert "b" not in known
    now[0] = UNCOMMITTED_REUSE_S
    assert "a" not in known
    assert "c" in known


# -- the next attempt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failed", [0, 1])
def test_a_step_that_one_rank_failed_to_save_is_saved_again_by_all(store, failed):
    """What the other rank had put at the first try, its index above all, is no part of the second."""
    state, ranks = State(), writers(store, 2)
    refuse = [StorageFull("no space left")]

    def hook(kind, key):
        if refuse and kind == "put" and key.endswith(f"rank-000{failed}-0001.json"):
            raise refuse.pop()

    store.before = hook
    save(ranks, state, 200)
    reports = [report for writer in ranks for report in writer.settle()]
    assert reports[0].outcome == "failed"
    claim = ranks[0].claim_next(200)
    for writer in ranks:
        writer.renew(claim)
    save(ranks, state, 200)
    assert all(report.committed and report.bytes_new == 0 for report in wait(ranks, 200))
    close(ranks)
    manifest = read_manifest(store, "t000", 200)
    assert (manifest.attempt, {ref.key[-9:] for ref in manifest.indexes}) == (2, {"0002.json"})
    assert verify(store, manifest) == []
    assert same(restored(store, state)[0], state)


def test_a_writer_renewed_before_its_first_commit_still_knows_its_parent(store):
    state = State()
    saved(store, state, step=100)
    parent = read_manifest(store, "t000", 100)
    ranks = writers(store, 2, attempt=2, parent=parent)
    claim = ranks[0].claim_next(200)
    for writer in ranks:
        writer.renew(claim, parent)
    save(ranks, state, 200)
    assert [report.bytes_new for report in wait(ranks)] == [0, 0]
    close(ranks)


def test_the_next_attempt_is_claimed_once_however_often_it_is_asked_for(store):
    [writer] = writers(store, 1)
    claims = [writer.claim_next(1), writer.claim_next(1)]
    assert claims[0] == claims[1] and claims[0].attempt == 2
    assert store.keys("trials/t000/writers/") == ["trials/t000/writers/0002"]
    writer.close()


def test_an_attempt_that_another_writer_has_claimed_is_not_taken(store):
    [writer] = writers(store, 1, attempt=claim_attempt(store, "t000").attempt)
    claim_attempt(store, "t000")
    with pytest.raises(StaleWriter, match="trial t000 step 7: attempt 2 owns the trial, not attempt 1"):
        writer.claim_next(7)
    writer.close()


# -- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"connections": 0}, "less than 1"), ({"memory_bytes": 5}, "hold no chunk")],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(CheckpointError, match=message):
        WriterSettings(**fields)
