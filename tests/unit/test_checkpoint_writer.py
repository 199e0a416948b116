"""The writer: what is visible when, what is sent again, who may commit, and what happens when it is late or the store fails."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from checkpoint_state import CHUNK, SETTINGS, State, close, restored, same, save, saved, wait, writers
from memory_store import Gate, MemoryStore

from tlcore.checkpoint import (
    CheckpointWriter,
    Piece,
    Row,
    WriterSettings,
    list_manifests,
    next_attempt,
    read_manifest,
    verify,
)
from tlcore.checkpoint.commit import Committer, Identity
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.upload import UNCOMMITTED_REUSE_S, Reusable
from tlcore.errors import CheckpointError, StaleWriter, StorageDenied, StorageFull, StorageUnreachable

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    return MemoryStore()


def puts(store, part="cas/"):
    return [key for kind, key in store.requests if kind == "put" and part in key]


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


# -- reuse -----------------------------------------------------------------------------------------------------------


def test_frozen_bytes_are_sent_once_and_hashed_once(store, monkeypatch):
    state = State(frozen_elements=60_000)
    ranks = writers(store, 2)
    save(ranks, state, 100)
    wait(ranks)
    frozen = sum(2 * elements for elements in state.frozen.values())
    sizes: list[int] = []
    from tlcore.checkpoint import upload

    real = upload.leaf_digests
    monkeypatch.setattr(upload, "leaf_digests", lambda data, leaf: (sizes.append(len(data)), real(data, leaf))[1])
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


# -- who may commit ----------------------------------------------------------------------------------------------------


def test_an_attempt_has_one_writer(store):
    first, second = writers(store, 1, attempt=1), writers(store, 1, attempt=1)
    save(first, State(seed=1), 200)
    wait(first)
    for step in (200, 300):
        save(second, State(seed=2), step)
        with pytest.raises(StaleWriter, match="attempt 1 of trial t000 has been used by another writer"):
            wait(second, step)
    close([*first, *second])
    assert list_manifests(store, "t000") == [200]
    assert same(restored(store, State())[0], State(seed=1))


@pytest.mark.parametrize("world_size", [1, 2])
def test_of_two_writers_of_one_step_one_wins_and_the_other_is_told(store, world_size):
    """Both pass the fence, the older is the slower: its own manifest must not replace the newer one's."""
    gate = Gate("MANIFEST", kinds=("put_if_absent",))
    store.before = gate
    old, new = writers(store, world_size, attempt=1), writers(store, world_size, attempt=2)
    save(old, State(seed=1), 200)
    assert gate.reached.wait(30)
    store.before = lambda kind, key: None
    save(new, State(seed=2), 200)
    wait(new)
    gate.open()
    for writer in old:
        with pytest.raises(StaleWriter, match="attempt 2 owns the trial, not attempt 1"):
            writer.wait()
    close([*old, *new])
    assert same(restored(store, State())[0], State(seed=2))


def test_attempts_are_numbered_upwards(store):
    assert next_attempt(store, "t000") == 1
    saved(store, State(), step=1, attempt=7)
    assert next_attempt(store, "t000") == 8
    assert next_attempt(store, "t00") == 1


def test_an_older_attempt_cannot_commit_once_a_newer_one_has_begun(store):
    old, new = writers(store, 1, attempt=1), writers(store, 1, attempt=2)
    save(new, State(), 100)
    wait(new)
    save(old, State(), 300)
    with pytest.raises(StaleWriter, match="attempt 2 owns the trial"):
        wait(old)
    close([*old, *new])
    assert list_manifests(store, "t000") == [100]


def test_a_newer_attempt_replaces_the_manifest_of_a_step_it_trained_again(store):
    saved(store, State(seed=1), step=200, attempt=1, metrics={"who": 1})
    saved(store, State(seed=2), step=200, attempt=2, metrics={"who": 2})
    assert read_manifest(store, "t000", 200).metrics == {"who": 2}
    assert same(restored(store, State())[0], State(seed=2))


def test_a_corrupt_manifest_in_the_way_is_replaced(store):
    saved(store, State())
    store.flip("trials/t000/step-00000200/MANIFEST.json", 300)
    saved(store, State(seed=2))
    assert same(restored(store, State())[0], State(seed=2))


def test_a_repeated_conditional_put_meets_its_own_first_attempt(store):
    lost = []

    def lose_the_answer(kind, key):
        if kind == "put_if_absent" and "MANIFEST" in key and not lost:
            lost.append(key)
            raise StorageUnreachable("the connection broke")

    store.before = lose_the_answer
    reports = saved(store, State(), world_size=1)
    assert reports[0].committed
    assert reports[0].retries == 1


# -- failures ------------------------------------------------------------------------------------------------------------


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


# -- when late -----------------------------------------------------------------------------------------------------------


def late(store, policy, steps, world_size=1, **more):
    """Save `steps` while nothing can be uploaded, then let it go; returns the reports in order of step."""
    gate = Gate("cas/")
    store.before = gate
    ranks = writers(store, world_size, settings=replace(SETTINGS, when_late=policy, **more))
    state = State()
    for step in steps:
        save(ranks, state, step)
        assert gate.reached.wait(30)
        state.change()
    gate.open()
    for writer in ranks:
        writer.close()
    return sorted((report for writer in ranks for report in writer.poll()), key=lambda report: report.step)


def test_skip_drops_the_third_save(store):
    outcomes = {report.step: report.outcome for report in late(store, "skip", [1, 2, 3, 4])}
    assert outcomes == {1: "committed", 2: "committed", 3: "dropped", 4: "dropped"}
    assert list_manifests(store, "t000") == [1, 2]


def test_newest_drops_what_has_not_begun(store):
    outcomes = {report.step: report.outcome for report in late(store, "newest", [1, 2, 3, 4])}
    assert outcomes == {1: "committed", 2: "dropped", 3: "dropped", 4: "committed"}
    assert list_manifests(store, "t000") == [1, 4]
    state = State()
    state.change(3)
    assert same(restored(store, state, step=4)[0], state)


def test_wait_keeps_the_caller_until_there_is_room(store):
    gate = Gate("cas/")
    store.before = gate
    [writer] = writers(store, 1)
    state = State()
    third = threading.Event()

    def train():
        for step in (1, 2, 3):
            writer.save(step, state.pieces(0, 1), state.common())
        third.set()

    thread = threading.Thread(target=train)
    thread.start()
    assert gate.reached.wait(30)
    assert not third.wait(0.1)
    gate.open()
    thread.join(60)
    assert third.is_set()
    assert [report.committed for report in writer.wait()] == [True] * 3
    writer.close()


def test_ranks_that_decide_differently_end_without_a_checkpoint_and_without_waiting(store):
    ranks = writers(store, 2)
    ranks[0].save(1, State().pieces(0, 2), State().common())
    committer = Committer(store, Identity("t000", 1, 2, 1), Patience(1), 60)
    committer.give_up(1, "2 saves were in flight", failed=False)
    [report] = ranks[0].wait()
    assert report.outcome == "dropped"
    close(ranks)
    assert list_manifests(store, "t000") == []


def test_a_save_dropped_by_rank_0_ends_on_the_others(store):
    ranks = writers(store, 2)
    ranks[1].save(1, State().pieces(1, 2))
    Committer(store, Identity("t000", 0, 2, 1), Patience(1), 60).give_up(1, "a newer save took its place", failed=False)
    [report] = ranks[1].wait()
    assert report.outcome == "dropped"
    close(ranks)


def test_a_step_saved_twice_is_saved_once(store):
    [writer] = writers(store, 1)
    for _ in range(2):
        writer.save(1, State().pieces(0, 1), State().common())
    assert [report.step for report in writer.wait()] == [1]
    writer.close()


# -- memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_memory_stays_within_its_bound_when_it_holds_no_snapshot(store, chunks):
    state = State(shapes={"w": (400, 64)}, frozen_elements=0)
    [writer] = writers(store, 1, settings=replace(SETTINGS, memory_bytes=chunks * CHUNK, connections=8))
    for step in (1, 2, 3):
        writer.save(step, state.pieces(0, 1), state.common())
        writer.wait(step)
        state.change()
    writer.close()
    assert writer._slots.made == chunks
    state.change(-3)
    assert same(restored(store, state, step=1)[0], state)


def test_with_memory_for_one_snapshot_one_save_is_in_flight(store):
    state = State()
    need = sum(not chunk.immutable for chunk in writers(store, 1)[0]._plan(state.pieces(0, 1)))
    outcomes = [report.outcome for report in late(store, "newest", [1, 2], memory_bytes=(need + 1) * CHUNK)]
    assert outcomes == ["committed", "dropped"]


def test_prepared_memory_is_what_the_saves_use(store):
    [writer] = writers(store, 1)
    state = State()
    writer.prepare(state.pieces(0, 1))
    writer._background.submit(bool).result()
    save([writer], state, 1)
    writer.wait()
    made = writer._slots.made
    save([writer], state, 2)
    writer.close()
    assert made == writer._slots.made == sum(not chunk.immutable for chunk in writer._plan(state.pieces(0, 1)))


def test_buffers_are_used_again(store):
    [writer] = writers(store, 1)
    state = State()
    need = sum(not chunk.immutable for chunk in writer._plan(state.pieces(0, 1)))
    for step in range(5):
        writer.save(step, state.pieces(0, 1), state.common())
        state.change()
    writer.close()
    assert need <= writer._slots.made <= 2 * need


@pytest.mark.parametrize("part", ["cas/", "writers/"])
@pytest.mark.parametrize("chunks", [1, 100])
def test_a_failing_store_leaves_memory_for_the_next_save(store, part, chunks):
    state = State(shapes={"w": (400, 64)}, frozen_elements=0)
    store.before = fail(("put", "put_if_absent"), part, StorageFull("no space left"))
    [writer] = writers(store, 1, settings=replace(SETTINGS, memory_bytes=chunks * CHUNK))

    def train():
        for step in range(1, 5):
            writer.save(step, state.pieces(0, 1), state.common())

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(30)
    assert not training.is_alive()
    for step in range(1, 5):
        with pytest.raises(CheckpointError, match="no space left"):
            writer.wait(step)
    writer.close()
    assert writer._slots.free == writer._slots.made <= 2 * 20


def test_a_snapshot_that_breaks_off_fails_its_save_only(store):
    [writer] = writers(store, 1)
    state = State()
    pieces = state.pieces(0, 1)
    broken = Piece(Row("norm", "fp32", 0, 7, "float32"), np.zeros(28, np.uint8))
    object.__setattr__(broken, "data", np.zeros(3, np.uint8))
    at = next(i for i, piece in enumerate(pieces) if piece.row == broken.row)
    with pytest.raises(ValueError, match="broadcast"):
        writer.save(1, [*pieces[:at], broken, *pieces[at + 1 :]], state.common())
    with pytest.raises(CheckpointError, match="snapshot was not completed"):
        writer.wait()
    writer.save(2, pieces, state.common())
    assert writer.wait()[0].committed
    writer.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"when_late": "never"}, "none of wait, skip, newest"), ({"memory_bytes": 5}, "hold no chunk")],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(CheckpointError, match=message):
        WriterSettings(**fields)
