"""A collection beside everything else that a run does, played move by move on a store with its own clock."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from checkpoint_state import State, close, restored, same, save, saved, wait, writers
from memory_store import MemoryStore

from tlcore.checkpoint import (
    Retention,
    clone_checkpoint,
    delete_checkpoint,
    gc,
    list_manifests,
    newest_intact,
    read_manifest,
    verify,
)
from tlcore.checkpoint import notices as notices_module
from tlcore.checkpoint.notices import KEEP_S, RENEW_S, Noticeboard, Posted
from tlcore.errors import CheckpointError, RequestError, StorageUnreachable
from tlcore.storage import clock as clock_module
from tlcore.storage import open_store
from tlcore.storage.clock import listing_lag_s, store_now

pytestmark = pytest.mark.unit
HOUR = 3600
DAY = 24 * HOUR


def garbage(state, steps=(1,)):
    """A store whose chunks nobody needs and nobody has touched for two days."""
    store = MemoryStore()
    for step in steps:
        saved(store, state, step=step, world_size=1)
        delete_checkpoint(store, "t000", step)
    store.later(2 * DAY)
    return store


def at(store, kind, part, act):
    """Do `act` once, just before the first request of this kind whose key contains `part`."""
    done = []

    def before(what, key):
        if not done and what == kind and part in key:
            done.append(key)
            act()

    store.before = before
    return done


def chunks(store):
    return store.keys("cas/")


# -- a chunk that nobody needs is sent again while it is being deleted ----------------------------------------------------


def test_a_save_complete_before_the_second_marking_keeps_its_chunks():
    state = State()
    store = garbage(state)
    done = at(store, "put", "gc/", lambda: saved(store, state, step=2, world_size=1))
    assert gc(store, now=store.now).deleted == 0
    assert done
    assert same(restored(store, state, step=2)[0], state)
    assert all(not named_in(store, notice) for notice in store.keys("gc/"))


def test_a_save_that_the_second_marking_cannot_see_is_given_up_and_the_next_one_is_whole():
    state = State()
    store = garbage(state)
    ranks = writers(store, 1)

    def send_first(kind, key):  # the chunks are sent anew just before they are deleted, the index and the rest after
        if kind == "delete" and key.startswith("cas/") and not sent:
            sent.append(key)
            save(ranks, state, 2)
            assert held.wait(20)
        if kind == "put" and "rank-0000" in key:
            held.set()
            assert deleted.wait(20)

    sent, held, deleted = [], threading.Event(), threading.Event()
    store.before = send_first
    report = gc(store, now=store.now)
    deleted.set()
    assert report.deleted > 0
    with pytest.raises(CheckpointError, match=r"step 2: \d+ of its objects were garbage-collected .* cas/"):
        wait(ranks, 2)
    assert list_manifests(store, "t000") == []
    save(ranks, state, 3)
    assert wait(ranks, 3)[0].committed
    close(ranks)
    assert same(restored(store, state, step=3)[0], state)


def test_what_was_collected_is_not_counted_on_by_a_writer_that_sent_it_within_the_hour():
    state = State()
    store = MemoryStore()
    [writer] = ranks = writers(store, 1)
    save(ranks, state, 1)
    wait(ranks)
    # Somebody takes the checkpoint and its chunks away at once, by a clock far ahead.
    delete_checkpoint(store, "t000", 1)
    assert gc(store, now=store.now + timedelta(days=2)).deleted > 0
    save(ranks, state, 2)
    [report] = wait(ranks, 2)
    writer.close()
    assert report.bytes_reused == 0
    assert same(restored(store, state, step=2)[0], state)


def test_a_commit_waits_for_a_collection_at_work_but_not_for_a_dead_one(monkeypatch):
    state = State()
    store = garbage(state)

    def break_off():
        raise StorageUnreachable("the collection's machine lost its network")

    at(store, "delete", "cas/", break_off)
    with pytest.raises(StorageUnreachable):
        gc(store, now=store.now)
    store.before = lambda kind, key: None
    assert len(store.keys("gc/")) == 1
    ranks = writers(store, 1)
    save(ranks, state, 2)
    with pytest.raises(TimeoutError):
        ranks[0]._saves[2].future.result(timeout=0.5)
    monkeypatch.setattr(notices_module, "DEAD_S", 0.6)
    assert wait(ranks, 2)[0].committed
    save(ranks, state, 3)
    assert wait(ranks, 3)[0].committed
    close(ranks)
    assert same(restored(store, state, step=3)[0], state)


def test_a_notice_that_cannot_be_read_makes_a_commit_look_and_stops_nobody():
    store, state = MemoryStore(), State()
    store.put("gc/20261121T000000-ab-0.json", b"junk")
    assert saved(store, state, step=1)[0].committed
    assert same(restored(store, state, step=1)[0], state)


def test_notices_stay_for_a_week_and_the_empty_ones_go_at_once():
    state = State()
    store = garbage(state)
    gc(store, now=store.now)
    [notice] = store.keys("gc/")
    assert Noticeboard(store).fresh() == {key.rpartition("/")[2] for key in named_in(store, notice)}
    store.later(KEEP_S - 1)
    gc(store, now=store.now)
    assert store.keys("gc/") == [notice]
    store.later(2)
    gc(store, now=store.now)
    assert store.keys("gc/") == []


def named_in(store, notice):
    return {
        each for each in notices_module.read_notice(store, next(store.list(notice))).keys if each.startswith("cas/")
    }


def test_a_key_stays_in_its_part_of_a_long_notice(monkeypatch):
    monkeypatch.setattr(notices_module, "KEYS_PER_NOTICE", 2)
    store = MemoryStore()
    posted = Posted(store, store.now, ["a", "b", "c", "d", "e"])
    posted.renew()
    before = {key: named(store, key) for key in store.keys("gc/")}
    posted.done({"b", "e"})
    after = {key: named(store, key) for key in store.keys("gc/")}
    assert sorted(before.values()) == [["a", "b"], ["c", "d"], ["e"]]
    assert {key: before[key] for key in after} == {k: before[k] for k in before if set(before[k]) & {"b", "e"}}
    assert sorted(after.values()) == [["b"], ["e"]]


def named(store, key):
    return sorted(notices_module.read_notice(store, next(store.list(key))).keys)


# -- retention and clones between the markings ---------------------------------------------------------------------------


@pytest.mark.parametrize("when", [("list", "trials/"), ("get", "t000/step-00000001/MANIFEST"), ("put", "gc/")])
def test_a_donor_deleted_beside_a_collection_leaves_a_whole_clone(when):
    """The clone's trial comes before the donor's in every listing, so the first one misses it."""
    store, state, other = MemoryStore(), State(), State(seed=5)
    saved(store, state, step=1)
    for step in (1, 2):
        saved_in(store, "u000", other, step)
    delete_checkpoint(store, "u000", 2)
    store.later(2 * DAY)

    def exploit():
        clone_checkpoint(store, read_manifest(store, "t000", 1), "a000")
        delete_checkpoint(store, "t000", 1)
        # The copy beside the donor has gone, too, by the time of the next marking.

    done = at(store, *when, exploit)
    gc(store, now=store.now)
    assert done
    assert list_manifests(store, "a000") == [1]
    assert same(restored(store, state, step=1, trial="a000")[0], state)
    store.before = lambda kind, key: None
    store.later(2 * DAY)
    gc(store, now=store.now)
    assert same(restored(store, state, step=1, trial="a000")[0], state)


def saved_in(store, trial, state, step):
    ranks = writers(store, 2, trial=trial)
    save(ranks, state, step)
    wait(ranks)
    close(ranks)


def test_a_clone_of_a_clone_outlives_both_donors():
    store, state = MemoryStore(), State()
    saved(store, state, step=1)
    clone_checkpoint(store, read_manifest(store, "t000", 1), "t001")
    clone_checkpoint(store, read_manifest(store, "t001", 1), "t002")
    for trial in ("t000", "t001"):
        delete_checkpoint(store, trial, 1)
    for _ in range(3):
        store.later(2 * DAY)
        gc(store, now=store.now)
    assert same(restored(store, state, step=1, trial="t002")[0], state)
    assert store.keys("trials/t001/step-") == []
    delete_checkpoint(store, "t002", 1)
    store.later(2 * DAY)
    gc(store, now=store.now)
    assert chunks(store) == []
    assert store.keys("trials/t000/step-") == []


def test_a_restored_runs_first_save_may_reuse_what_was_deleted_meanwhile():
    store, state = MemoryStore(), State(frozen_elements=60_000)
    saved(store, state, step=1)
    store.later(2 * DAY)
    parent = read_manifest(store, "t000", 1)
    delete_checkpoint(store, "t000", 1)  # by a stale writer, just after the restore
    ranks = writers(store, 2, parent=parent)
    state.change()
    at(store, "put", "rank-0001", lambda: gc(store, now=store.now))
    save(ranks, state, 2)
    reports = wait(ranks, 2)
    close(ranks)
    assert sum(report.bytes_reused for report in reports) > 0
    assert same(restored(store, state, step=2)[0], state)


# -- leftovers, reports, progress -----------------------------------------------------------------------------------------


def test_leftovers_of_every_kind_go_and_the_newest_claim_stays():
    store = MemoryStore()
    saved(store, State(), step=1, attempt=1)
    saved(store, State(seed=2), step=1, attempt=3)  # trained again: the first manifest was replaced
    ranks = writers(store, 2, attempt=4)
    ranks[1].save(7, State(seed=9).pieces(1, 2))
    close(ranks)
    store.put("trials/t000/step-00000009/rank-0001-0004.json.failed", b"why")
    store.put("trials/t000/history/00000000.json", b"{}")
    store.put("trials/t000/notes.txt", b"of a person")
    store.later(DAY + 1)
    report = gc(store, now=store.now)
    assert store.keys("trials/") == [
        "trials/t000/history/00000000.json",
        "trials/t000/notes.txt",
        "trials/t000/step-00000001/MANIFEST.json",
        "trials/t000/step-00000001/rank-0000-0003.json",
        "trials/t000/step-00000001/rank-0001-0003.json",
        "trials/t000/writers/0003",
    ]
    share = report.trials["t000"]
    assert share.steps == {1, 7, 9}
    assert (share.chunks, share.chunk_bytes) == (report.deleted, report.deleted_bytes)
    assert verify(store, read_manifest(store, "t000", 1)) == []


def test_a_dry_run_says_by_trial_what_would_go_and_changes_nothing():
    store = MemoryStore()
    for trial, seed in (("t000", 1), ("t001", 2)):
        for step in (1, 2):
            saved_in(store, trial, State(seed=10 * seed + step), step)
    delete_checkpoint(store, "t000", 1)
    store.later(DAY + 1)
    before = dict(store.objects)
    said = []
    dry = gc(store, now=store.now, dry_run=True, progress=lambda *told: said.append(told))
    assert store.objects == before
    assert {trial: (share.steps, share.chunks > 0) for trial, share in dry.trials.items()} == {
        "t000": ({1}, True),
        "t001": (set(), False),  # an old claim of its writers
    }
    wet = gc(store, now=store.now, progress=lambda *told: said.append(told))
    assert (wet.deleted, wet.trials) == (dry.deleted, dry.trials)
    assert said[-1] == ("deleting", wet.deleted + wet.deleted_leftovers, wet.deleted + wet.deleted_leftovers)


def test_chunks_that_nothing_names_are_told_apart():
    store = garbage(State())
    store.objects = {key: held for key, held in store.objects.items() if key.startswith("cas/")}
    report = gc(store, now=store.now)
    assert list(report.trials) == [""]
    assert report.trials[""].chunks == report.deleted > 0


def test_a_collection_that_was_suspended_marks_again(monkeypatch):
    monkeypatch.setattr(sys.modules["tlcore.checkpoint.gc"], "DELETE_AT_ONCE", 1)
    state = State()
    store = garbage(state)
    now = [0.0]
    ranks = writers(store, 1)
    asleep, indexed, there = [], [], threading.Event()

    def before(kind, key):
        if kind == "delete" and key.startswith("cas/") and not asleep:
            asleep.append(key)
            now[0] = RENEW_S + 1
        elif kind == "put" and key.startswith("gc/") and asleep and not there.is_set():
            save(ranks, state, 5)
            assert there.wait(20)
        elif kind == "put" and "step-00000005/rank-0000" in key:
            indexed.append(key)
        elif kind == "list" and key == "gc/" and indexed:
            there.set()  # the index is in the store, and the commit looks at the notices

    store.before = before
    report = gc(store, now=store.now, clock=lambda: now[0])
    assert there.is_set()
    assert wait(ranks, 5)[0].committed
    close(ranks)
    assert report.deleted == 1  # what went before it fell asleep, and was sent again
    assert same(restored(store, state, step=5)[0], state)


# -- the clock ------------------------------------------------------------------------------------------------------------


def test_ages_are_by_the_stores_clock():
    store = garbage(State())
    store.now -= timedelta(days=2)  # a store that lives in the past
    count = len(chunks(store))
    assert gc(store).deleted == 0
    store.later(2 * DAY)
    assert gc(store).deleted == count
    assert store.keys(".tlcore-clock/") == []


def test_the_time_of_a_directory_and_what_its_listings_may_miss(tmp_path, monkeypatch):
    store = open_store(f"file://{tmp_path}/run")
    store.put("a", b"1")
    [info] = store.list()
    assert abs((store_now(store) - info.modified).total_seconds()) < 60
    assert [each.key for each in store.list()] == ["a"]
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(clock_module, "_MOUNTS", mounts)
    for kind, lag in (("ext4", 0.0), ("nfs4", clock_module.NETWORK_LAG_S)):
        mounts.write_text(f"/dev/x / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
        assert listing_lag_s(store) == lag


def test_on_a_network_file_system_a_collection_waits_until_its_notice_is_seen(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(clock_module, "_MOUNTS", mounts)
    store = open_store(f"file://{tmp_path}/run")
    saved(store, State(), step=1)
    delete_checkpoint(store, "t000", 1)
    waited = []

    def sleep(seconds):
        waited.append((seconds, len(list(store.list("gc/"))), len(list(store.list("cas/")))))

    count = len(list(store.list("cas/")))
    assert gc(store, now=store_now(store) + timedelta(days=2), sleep=sleep).deleted == count
    assert waited == [(2 * clock_module.NETWORK_LAG_S, 1, count)]


@pytest.mark.parametrize("grace_s", [60, -1, float("nan"), float("inf"), 1e15])
def test_a_grace_period_that_running_saves_would_not_survive_or_no_calendar_holds_is_refused(grace_s):
    with pytest.raises(RequestError, match="at least 7200 s"):
        gc(MemoryStore(), grace_s=grace_s)


# -- everything at once ---------------------------------------------------------------------------------------------------


class AgingStore(MemoryStore):
    """Chunks are old as soon as they are there, and so is a checkpoint that was deleted: only notices protect anything."""

    def put(self, key, data):
        super().put(key, data)
        if key.startswith("cas/"):
            self.age(key)

    def age(self, prefix):
        with self._lock:
            for key in [key for key in self.objects if key.startswith(prefix)]:
                data, when = self.objects[key]
                self.objects[key] = (data, when - timedelta(days=2))


TRIALS = ("t000", "t001", "t002")
CLONES = ("c000", "c001", "c002")


@pytest.mark.parametrize("seed", range(3))
def test_saves_clones_retention_and_collections_in_threads_never_tear_a_checkpoint(seed):
    """Three trials go round the same few states, so that what is garbage now is sent again a moment later."""
    store = AgingStore()
    over = threading.Event()
    given_up, torn, cloned = [], [], []

    def train(number):
        trial, state = TRIALS[number], State(seed=seed, frozen_elements=2000)
        ranks = writers(store, 1, trial=trial)
        retention = Retention(store, trial, 1, 0, None, "max")
        for step in range(1, 25):
            state.change(1 if (step + number) % 2 else 255)
            save(ranks, state, step)
            try:
                wait(ranks, step)
            except CheckpointError:
                given_up.append((trial, step))
                continue
            if step % 3 == 0:
                for old in retention.after_commit(step):
                    store.age(f"trials/{trial}/step-{old:08d}/")
            if step % 4 == 0:
                clone(TRIALS[(number + 1) % 3], CLONES[number])
        close(ranks)

    def clone(donor, trial):
        with suppress(CheckpointError):  # the donor went, or a chunk of it
            step = max(list_manifests(store, donor), default=0)
            clone_checkpoint(store, read_manifest(store, donor, step), trial)
            cloned.append(trial)

    def collect():
        while not over.is_set():
            gc(store, now=store.now)
            for trial in TRIALS + CLONES:
                for step in list_manifests(store, trial):
                    with suppress(CheckpointError):  # deleted meanwhile
                        look(trial, step)

    def look(trial, step):
        manifest = read_manifest(store, trial, step)
        problems = verify(store, manifest)
        with suppress(CheckpointError):
            if problems and read_manifest(store, trial, step) == manifest:
                torn.append((trial, step, problems))

    with ThreadPoolExecutor(5) as threads:
        collectors = [threads.submit(collect) for _ in range(2)]
        try:
            for each in [threads.submit(train, number) for number in range(3)]:
                each.result()
        finally:
            over.set()
        for each in collectors:
            each.result()
    assert torn == []
    for trial in TRIALS + CLONES:
        assert newest_intact(store, trial, every_byte=True).problems == ()
    assert all(list_manifests(store, trial) for trial in TRIALS)
    assert cloned
    assert len(given_up) < 72
