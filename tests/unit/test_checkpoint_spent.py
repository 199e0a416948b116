"""A driver's own collection, without a day of grace, beside running saves and clones."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from functools import partial

import pytest
from checkpoint_state import State, close, restored, same, save, wait, writers
from memory_store import MemoryStore

from tlcore.checkpoint import claim_attempt, clone_checkpoint, delete_checkpoint, list_manifests, read_manifest, verify
from tlcore.checkpoint import spent as spent_module
from tlcore.checkpoint.keeping import KeepPolicy, Kept
from tlcore.checkpoint.prune import Inventory, prune
from tlcore.checkpoint.spent import collect_spent
from tlcore.errors import CheckpointError, StaleWriter
from tlcore.storage.journal import SweepState

pytestmark = pytest.mark.unit
LATER_S = 60


def committed(store, trial, steps, state, change=True):
    ranks = writers(store, 1, trial=trial)
    for step in steps:
        if change:
            state.change(step)
        save(ranks, state, step, metrics={"acc": step / 10})
        assert wait(ranks, step)[0].committed
    close(ranks)


def collect(store, **how):
    return collect_spent(store, **{"reading_s": 0, "now": store.now, **how})


def at_once(store, kind, part, act):
    """Do `act` just before the first such request."""
    done = []

    def before(what, key):
        if not done and what == kind and part in key:
            done.append(key)
            act()

    store.before = before
    return done


def test_what_only_a_deleted_checkpoint_needed_goes_and_the_rest_stays():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    wanted = State()
    wanted.data = {key: data.copy() for key, data in state.data.items()}
    delete_checkpoint(store, "t000", 1)
    store.later(LATER_S)
    before = len(store.keys("cas/"))
    report = collect(store)
    assert 0 < report.deleted == before - len(store.keys("cas/"))
    assert not [key for key in store.keys("trials/") if "step-00000001" in key]
    assert not verify(store, read_manifest(store, "t000", 2))
    assert same(restored(store, state, step=2)[0], wanted)
    assert collect(store).deleted == 0


def test_readers_from_outside_have_their_time_and_without_deletions_nothing_is_read():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    store.requests.clear()
    collect(store)
    assert {kind for kind, _ in store.requests} == {"list"}
    delete_checkpoint(store, "t000", 1)
    store.later(LATER_S)
    assert collect(store, reading_s=900).deleted == 0
    store.later(900)
    assert collect(store, reading_s=900).deleted > 0


def test_what_a_running_save_has_sent_is_no_candidate_before_its_index_is_there():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    delete_checkpoint(store, "t000", 1)
    ranks = writers(store, 1, trial="t001")
    store.later(LATER_S)
    held, go = threading.Event(), threading.Event()

    def hold(kind, key):
        if kind == "put" and "t001" in key and "rank-0000" in key:
            held.set()
            assert go.wait(30)

    other = State(seed=5)
    store.before = hold
    save(ranks, other, 1)
    assert held.wait(30)
    store.later(LATER_S)
    assert collect(store).deleted > 0
    go.set()
    assert wait(ranks, 1)[0].committed
    close(ranks)
    assert same(restored(store, other, step=1, trial="t001")[0], other)


def test_a_clones_donor_that_goes_meanwhile_is_kept_by_its_pin():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    committed(store, "t001", [1], State(seed=3))
    donor, pins = read_manifest(store, "t000", 1), {("t000", 1)}
    delete_checkpoint(store, "t000", 1)  # by its own writer, after the clone has looked
    store.later(LATER_S)
    assert collect(store, pinned=lambda: pins).deleted == 0
    store.put(donor.key, donor.to_bytes())
    clone_checkpoint(store, donor, "t001")
    delete_checkpoint(store, "t000", 1)
    store.later(LATER_S)
    pins.clear()
    collect(store)
    assert not verify(store, read_manifest(store, "t001", 1))


def test_a_deleted_clone_takes_what_it_had_of_a_donor_that_is_long_gone():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1], state)
    clone_checkpoint(store, read_manifest(store, "t000", 1), "t001")
    delete_checkpoint(store, "t000", 1)
    store.later(LATER_S)
    assert collect(store).deleted == 0
    assert not verify(store, read_manifest(store, "t001", 1))
    delete_checkpoint(store, "t001", 1)
    store.later(LATER_S)
    assert collect(store).deleted > 0
    assert store.keys("cas/") == []


def test_a_save_that_is_complete_between_the_markings_keeps_what_it_shares():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1], state, change=False)
    delete_checkpoint(store, "t000", 1)
    store.later(LATER_S)
    done = at_once(store, "put", "gc/", lambda: committed(store, "t001", [1], state, change=False))
    assert collect(store).deleted == 0
    assert done
    assert same(restored(store, state, step=1, trial="t001")[0], state)


def test_a_driver_whose_run_is_another_ones_deletes_nothing():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    delete_checkpoint(store, "t000", 1)
    store.later(LATER_S)
    before = store.keys("cas/")

    def taken():
        raise StaleWriter("another driver")

    with pytest.raises(StaleWriter):
        collect(store, still_mine=taken)
    assert store.keys("cas/") == before


def running(*trials):
    entries = [{"n": 0, "kind": "suggested", "trial": trial, "point": {}} for trial in trials]
    return SweepState.from_entries([*entries, *({"n": 0, "kind": "started", "trial": trial} for trial in trials)])


POLICY = KeepPolicy(["acc"], ["max"], best_overall=0, stopped=0, budget_bytes=1)


def test_nothing_is_deleted_of_a_trial_that_has_just_been_claimed_anew():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2, 3], state)
    inventory = Inventory(store, sizes=True)
    claim_attempt(store, "t000")
    done = prune(inventory, lambda: running("t000"), POLICY)
    assert [each.step for each in done.decision.delete] == [1, 2]
    assert done.deleted == ()
    assert list_manifests(store, "t000") == [1, 2, 3]


def test_a_checkpoint_that_was_replaced_since_it_was_read_stays():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    committed(store, "t001", [1], State(seed=4))
    inventory = Inventory(store, sizes=True)
    stopped = running("t000", "t001")
    stopped.apply({"n": 9, "kind": "stopped", "trial": "t001"})

    def state_now():
        clone_checkpoint(store, read_manifest(store, "t000", 1), "t001")
        return stopped

    done = prune(inventory, state_now, POLICY)
    assert ("t001", 1) in {(each.trial, each.step) for each in done.decision.delete}
    assert ("t001", 1) not in {(each.trial, each.step) for each in done.deleted}
    assert not verify(store, read_manifest(store, "t001", 1))


def test_a_dry_run_changes_nothing_and_chunks_are_read_once():
    store, state = MemoryStore(), State()
    committed(store, "t000", [1, 2], state)
    inventory = Inventory(store, sizes=True)
    before = dict(store.objects)
    assert [each.step for each in prune(inventory, lambda: running("t000"), POLICY, dry_run=True).deleted] == [1]
    assert store.objects == before
    store.requests.clear()
    assert {each.trial for each in inventory.look() if isinstance(each, Kept)} == {"t000"}
    assert not [key for kind, key in store.requests if kind == "get" and "rank-" in key]


@pytest.mark.parametrize("seed", range(4))
def test_beside_saves_retention_and_clones_every_committed_checkpoint_is_whole(seed, monkeypatch):
    """Three trials save and delete, one takes over from them again and again, and a driver prunes and collects without pause."""
    monkeypatch.setattr(spent_module, "SENT_LATELY_S", 0.0)
    store, over, lock, pins, faults, collected = MemoryStore(), threading.Event(), threading.Lock(), set(), [], []

    def guarded(act):
        def loop():
            try:
                act()
            except BaseException as error:  # noqa: BLE001 (a thread of a test)
                faults.append(error)

        return threading.Thread(target=loop)

    def saving(number):
        dice, state = random.Random(seed * 10 + number), State(seed=number % 2)
        ranks = writers(store, 1, trial=f"t{number:03d}")
        for step in range(1, 16):
            if dice.random() < 0.6:
                state.change()
            save(ranks, state, step, metrics={"acc": dice.random()})
            with suppress(CheckpointError):
                wait(ranks, step)
            for old in list_manifests(store, f"t{number:03d}")[:-1]:
                if dice.random() < 0.7:
                    delete_checkpoint(store, f"t{number:03d}", old)
        close(ranks)

    def cloning():
        dice = random.Random(seed)
        for _ in range(15):
            donor = f"t{dice.randrange(3):03d}"
            for step in list_manifests(store, donor)[-1:]:
                with lock:
                    pins.add((donor, step))
                with suppress(CheckpointError):
                    clone_checkpoint(store, read_manifest(store, donor, step), "t003")
                with lock:
                    pins.discard((donor, step))

    def collecting():
        inventory = Inventory(store, sizes=True)
        while not over.is_set():
            prune(
                inventory, lambda: running("t000", "t001", "t002", "t003"), POLICY, pinned=lambda: set(pins), lock=lock
            )

            def pinned():
                with lock:
                    return set(pins)

            collected.append(collect(store, pinned=pinned).deleted)

    busy = [guarded(partial(saving, number)) for number in range(3)] + [guarded(partial(cloning))]
    collector = guarded(partial(collecting))
    for thread in [*busy, collector]:
        thread.start()
    for thread in busy:
        thread.join(120)
    over.set()
    collector.join(120)
    assert not faults
    assert sum(collected) > 0
    whole = [read_manifest(store, f"t{n:03d}", step) for n in range(4) for step in list_manifests(store, f"t{n:03d}")]
    assert {each.trial for each in whole} >= {"t000", "t001", "t002"}
    assert [problem for manifest in whole for problem in verify(store, manifest)] == []
