"""PUTs in flight: how many, and a late one sent again without anything being lost, freed early, or counted twice."""

from __future__ import annotations

import threading

import pytest
from checkpoint_state import State, restored, same, save, writers
from memory_store import MemoryStore

from tlcore.checkpoint import puts
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.puts import PutPool, is_late
from tlcore.errors import StorageDenied

pytestmark = pytest.mark.unit


class Stalling(MemoryStore):
    """The first PUT of each key in `stuck` waits until let go; notes how many run at once."""

    def __init__(self, *stuck: str) -> None:
        super().__init__()
        self.stuck, self.go, self.fails = set(stuck), threading.Event(), False
        self.running, self.most = 0, 0
        self.reached = threading.Event()

    def put(self, key, data) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            stuck = key in self.stuck
            self.stuck.discard(key)
        try:
            if stuck:
                self.reached.set()
                assert self.go.wait(30)
            elif self.fails:
                raise StorageDenied("no longer allowed")
            super().put(key, data)
        finally:
            with self._lock:
                self.running -= 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pool_of(store, clock, connections=4, monkeypatch=None):
    """A pool that looks for late PUTs only when the test says so."""
    pool = PutPool(store, connections, Patience(1), clock)
    if monkeypatch is not None:
        monkeypatch.setattr(pool, "_look", lambda: None)
    return pool


def put_all(pool, keys, released):
    return [pool.submit(key, key.encode(), lambda key=key: released.append(key)) for key in keys]


def test_no_more_puts_at_once_than_connections(monkeypatch):
    store, released = Stalling(), []
    pool = pool_of(store, Clock(), 3, monkeypatch)
    for future in put_all(pool, [f"k{n}" for n in range(50)], released):
        future.result(30)
    pool.shutdown()
    assert store.most <= 3
    assert sorted(released) == sorted(f"k{n}" for n in range(50))


def stalled(monkeypatch):
    """A pool in which `stuck` stands still and ten others have ended in about a second each."""
    store, clock, released = Stalling("stuck"), Clock(), []
    pool = pool_of(store, clock, 4, monkeypatch)
    [stuck] = put_all(pool, ["stuck"], released)
    assert store.reached.wait(30)
    for future in put_all(pool, [f"k{n}" for n in range(10)], released):
        future.result(30)
    pool._recent_s.extend([1.0] * 50)
    return store, clock, pool, stuck, released


def test_a_late_put_is_sent_again_and_its_body_is_kept_until_the_first_try_ends(monkeypatch):
    store, clock, pool, stuck, released = stalled(monkeypatch)
    clock.now = 2.9
    pool.repeat_late()
    assert not stuck.done()
    clock.now = 3.1
    pool.repeat_late()
    stuck.result(30)
    assert store.objects["stuck"][0] == b"stuck"
    assert "stuck" not in released
    assert pool.repeated == 1
    clock.now = 100.0
    pool.repeat_late()
    assert pool.repeated == 1
    store.go.set()
    pool.shutdown()
    assert released.count("stuck") == 1


def test_when_the_second_try_fails_the_first_one_counts(monkeypatch):
    store, clock, pool, stuck, released = stalled(monkeypatch)
    store.fails = True
    clock.now = 5.0
    pool.repeat_late()
    pool._spare.submit(bool).result(30)
    store.go.set()
    stuck.result(30)
    pool.shutdown()
    assert store.objects["stuck"][0] == b"stuck"
    assert released.count("stuck") == 1


def test_a_store_that_pauses_as_a_whole_makes_nothing_late(monkeypatch):
    keys = [f"k{n}" for n in range(4)]
    store, clock, released = Stalling(*keys), Clock(), []
    pool = pool_of(store, clock, 4, monkeypatch)
    pool._recent_s.extend([0.1] * 50)
    futures = put_all(pool, keys, released)
    while store.running < 4:
        pass
    assert sorted(put.beside for put in pool._flying) == [0, 1, 2, 3]
    clock.now = 60.0
    pool.repeat_late()
    assert pool.repeated == 0
    store.go.set()
    for future in futures:
        future.result(30)
    pool.shutdown()


def test_few_are_repeated_when_many_are_late(monkeypatch):
    keys = [f"k{n}" for n in range(8)]
    store, clock, released = Stalling(*keys), Clock(), []
    pool = pool_of(store, clock, 8, monkeypatch)
    pool._recent_s.extend([0.1] * 50)
    futures = put_all(pool, keys, released)
    while store.running < 8:
        pass
    pool._ended = 8  # others have overtaken all of them
    clock.now = 60.0
    pool.repeat_late()
    assert pool.repeated == puts.REPEATED_ANYWAY
    store.go.set()
    for future in futures:
        future.result(30)
    pool.shutdown()
    assert sorted(released) == keys


def test_a_put_that_fails_says_so_and_lets_go_of_its_body():
    store, released = Stalling(), []
    store.fails = True
    pool = PutPool(store, 2, Patience(1))
    [future] = put_all(pool, ["a"], released)
    with pytest.raises(StorageDenied):
        future.result(30)
    pool.shutdown()
    assert released == ["a"]


@pytest.mark.parametrize(
    ("running_s", "recent_s", "late"),
    [
        (0.9, [0.01] * 9, False),
        (1.1, [0.01] * 9, True),
        (5, [2.0] * 9, False),
        (6.1, [2.0] * 9, True),
        (99, [1.0] * 3, False),
    ],
)
def test_late_is_told_by_the_median_of_the_last_ones(running_s, recent_s, late):
    assert is_late(running_s, recent_s) is late


def test_a_save_ends_although_one_of_its_requests_stands_still(monkeypatch):
    """Really late: the watch finds it, and the checkpoint is committed while the first try still stands."""
    monkeypatch.setattr(puts, "LATE_FLOOR_S", 0.05)
    store = MemoryStore()
    go, stood = threading.Event(), []

    def stand_still(kind, key):
        if kind == "put" and "cas/" in key and len(store.keys("cas/")) == 6 and not stood:
            stood.append(key)
            assert go.wait(30)

    store.before = stand_still
    [writer] = writers(store, 1)
    state = State()
    save([writer], state, 200)
    [report] = writer.wait()
    assert stood
    assert report.committed
    assert report.repeated >= 1
    go.set()
    writer.close()
    assert writer._slots.free == writer._slots.made
    assert same(restored(store, state)[0], state)
