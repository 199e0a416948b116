"""Several at once on real stores: writers of one trial in two processes, collections beside saves, deletion beside readers."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from typing_extensions import Buffer

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from checkpoint_state import SETTINGS, State, blank, close, restored, same, save, saved, wait, writers

from tlcore.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    Retention,
    claim_attempt,
    clone_checkpoint,
    delete_checkpoint,
    gc,
    list_manifests,
    newest_intact,
    read_manifest,
    verify,
)
from tlcore.errors import CheckpointError, StaleWriter
from tlcore.storage import ObjectInfo, open_store
from tlcore.storage.clock import store_now
from tlcore.storage.keys import CHUNKS_PREFIX, parse_manifest_key, parse_step_key

pytestmark = pytest.mark.integration


def _train(url: str, channel: Connection) -> None:
    """A process that claims the trial and saves each step that it is told to; answers how that ended."""
    store = open_store(url)
    claim = claim_attempt(store, "t000")
    writer = CheckpointWriter(store, "t000", 0, 1, claim.attempt, SETTINGS, claim=claim.text)
    channel.send(claim.attempt)
    while (step := channel.recv()) is not None:
        try:
            save([writer], State(seed=10 * claim.attempt + step, frozen_elements=0), step)
            channel.send(wait([writer], step)[0].outcome)
        except StaleWriter as error:
            channel.send(str(error))
    writer.close()


def test_of_two_processes_on_one_trial_the_older_one_stops(store):
    spawn = multiprocessing.get_context("spawn")
    ends = []
    try:
        for _ in range(2):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_train, args=(store.url, there))
            process.start()
            ends.append((here, process))
            assert here.poll(60)
            assert here.recv() == len(ends)
            if len(ends) == 1:
                assert ask(here, 1) == "committed"
        (old, _), (new, _) = ends
        said = ask(old, 2)
        assert "trial t000 step 2: attempt 2 owns the trial, not attempt 1 (process " in said
        assert "this one, being the older, must stop" in said
        assert ask(new, 2) == "committed"
        assert "attempt 2 owns" in ask(old, 3)
        assert ask(new, 3) == "committed"
    finally:
        for here, process in ends:
            with suppress(OSError):
                here.send(None)
            process.join(300)
            assert process.exitcode == 0
    assert list_manifests(store, "t000") == [1, 2, 3]
    assert [read_manifest(store, "t000", step).attempt for step in (1, 2, 3)] == [1, 2, 2]
    assert same(restored(store, State(frozen_elements=0), step=3)[0], State(seed=23, frozen_elements=0))


def ask(channel, step):
    channel.send(step)
    assert channel.poll(60), f"no answer about step {step}"
    return channel.recv()


class Hurried:
    """The store when time flies: chunks are two days old at once, and so is a checkpoint that was deleted, but not while a clone
    lasts that began before: a clone that takes longer than the grace period is refused, and what it may read stays that long.
    All who use the store share it, so that how slow a machine is decides nothing. What is under way is as young as it is.

    A clone's last step, its manifest, waits until a whole collection has gone by: the worst moment for it."""

    def __init__(self, store):
        self._store = store
        self._lock = threading.Lock()
        self._moments = itertools.count()
        self._deleted: dict[tuple[str, int], int] = {}
        self._cloning: set[int] = set()
        self._collections = 0
        self._collected = threading.Condition()

    def __getattr__(self, name):
        return getattr(self._store, name)

    @contextmanager
    def cloning(self) -> Iterator[None]:
        """A clone is under way inside the block."""
        with self._lock:
            began = next(self._moments)
            self._cloning.add(began)
        try:
            yield
        finally:
            with self._lock:
                self._cloning.remove(began)

    def gc(self) -> int:
        """Collect, and say how many chunks went."""
        deleted = gc(self).deleted
        with self._collected:
            self._collections += 1
            self._collected.notify_all()
        return deleted

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        if key.startswith("trials/clone-") and parse_manifest_key(key) is not None:
            with self._collected:
                following = self._collections + 2  # the one under way may have looked already
                assert self._collected.wait_for(lambda: self._collections >= following, 60)
        done: bool = self._store.put_if_absent(key, data)
        return done

    def delete(self, keys: Sequence[str]) -> None:
        self._store.delete(keys)
        with self._lock:  # afterwards: a clone that still saw the manifest began before
            gone = [tuple(parsed) for key in keys if (parsed := parse_manifest_key(key)) is not None]
            self._deleted.update(dict.fromkeys(gone, next(self._moments)))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            long_ago = min(self._cloning, default=next(self._moments))
            gone = {step for step, moment in self._deleted.items() if moment < long_ago}
        found = list(self._store.list(prefix))
        gone -= {parse_step_key(each.key)[:2] for each in found if each.key.endswith("MANIFEST.json")}
        for each in found:
            step = parse_step_key(each.key)
            old = each.key.startswith(CHUNKS_PREFIX) or (step is not None and step[:2] in gone)
            yield ObjectInfo(each.key, each.size_bytes, each.modified - timedelta(days=2) if old else each.modified)


TRIALS, CLONES, STEPS = ("t000", "t001"), ("clone-0", "clone-1"), 20


def test_collections_beside_saves_clones_and_retention_leave_every_checkpoint_whole(store):
    """Two trials go round the same few states: what a collection is deleting is sent again at that very moment."""
    store = Hurried(store)
    over = threading.Event()
    given_up, torn, collected = [], [], []

    def train(number):
        state = State(seed=7, frozen_elements=2000)
        ranks = writers(store, 1, trial=TRIALS[number])
        retention = Retention(store, TRIALS[number], 1, 0, None, "max")
        for step in range(1, STEPS + 1):
            state.change(1 if (step + 2 * number) % 4 else 253)  # four contents, two of them needed at any moment
            save(ranks, state, step)
            try:
                wait(ranks, step)
            except CheckpointError as error:
                assert "garbage" in str(error)
                given_up.append((TRIALS[number], step))
                continue
            retention.after_commit(step)
            if step % 5 == 2 * number:  # while the donor goes on
                with suppress(CheckpointError):
                    donor = max(list_manifests(store, TRIALS[1 - number]), default=0)
                    manifest = read_manifest(store, TRIALS[1 - number], donor)
                    with store.cloning():
                        clone_checkpoint(store, manifest, CLONES[number])
        close(ranks)

    def collect():
        while not over.is_set():
            collected.append(store.gc())
            for trial in (*TRIALS, *CLONES):
                for step in list_manifests(store, trial):
                    look(trial, step)

    def look(trial, step):
        with suppress(CheckpointError):  # deleted meanwhile
            manifest = read_manifest(store, trial, step)
            problems = verify(store, manifest)
            if problems and read_manifest(store, trial, step) == manifest:
                torn.append((trial, step, problems))

    with ThreadPoolExecutor(3) as threads:
        collector = threads.submit(collect)
        try:
            for each in [threads.submit(train, number) for number in range(2)]:
                each.result()
        finally:
            over.set()
        collector.result()
    assert torn == []
    assert sum(collected) > 0, "nothing was ever deleted: the test proved nothing"
    assert len(given_up) < 2 * STEPS
    for trial in (*TRIALS, *CLONES):
        assert newest_intact(store, trial, every_byte=True).problems == ()


def test_deletion_and_a_collection_beside_a_reader_leave_it_what_it_reads(store):
    state = State(seed=1)
    saved(store, state, step=1)
    saved(store, State(seed=2), step=2)
    reader = CheckpointReader(store, read_manifest(store, "t000", 1))
    delete_checkpoint(store, "t000", 1)
    assert gc(store).deleted == 0
    found = blank(state)
    for rank in range(2):
        reader.read_into(found.pieces(rank, 2))
    assert same(found, state)
    assert list_manifests(store, "t000") == [2]


def test_a_clone_outlives_its_donor(store):
    state = State(seed=1)
    saved(store, state, step=1)
    before = {each.key: each.size_bytes for each in store.list()}
    clone_checkpoint(store, read_manifest(store, "t000", 1), "t001")
    written = sum(each.size_bytes for each in store.list() if each.key not in before)
    assert written < 8192
    delete_checkpoint(store, "t000", 1)
    ahead = max(each.modified for each in store.list()) + timedelta(days=9)
    assert gc(store, now=ahead).deleted == 0
    assert list_manifests(store, "t000") == []
    assert same(restored(store, state, step=1, trial="t001", world_size=3)[0], state)
    delete_checkpoint(store, "t001", 1)
    assert gc(store, now=ahead).kept == 0
    assert [each.key for each in store.list("trials/") if "/writers/" not in each.key] == []


class Ahead:
    """A store whose server's clock is `ahead` of this machine's, or behind it: every time that it tells is moved."""

    def __init__(self, store, ahead):
        self._store, self._ahead = store, ahead

    def __getattr__(self, name):
        return getattr(self._store, name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (replace(each, modified=each.modified + self._ahead) for each in self._store.list(prefix))


@pytest.mark.parametrize("days", [-30, 30])
def test_a_server_whose_clock_is_wrong_loses_nothing_and_keeps_no_garbage(store, days):
    """By this machine's clock all of it were a month old, or still to come."""
    wrong = Ahead(store, timedelta(days=days))
    kept, gone = State(seed=1), State(seed=2)
    saved(wrong, kept, step=1)
    saved(wrong, gone, step=2)
    delete_checkpoint(wrong, "t000", 2)
    before, slow = len(list(wrong.list(CHUNKS_PREFIX))), State(seed=3)
    ranks = writers(wrong, 2, trial="t001")
    ranks[0].save(1, slow.pieces(0, 2), slow.common())  # the other rank is late: chunks are there, and no manifest
    while len(list(wrong.list(CHUNKS_PREFIX))) == before:
        time.sleep(0.01)
    assert gc(wrong).deleted == 0
    ranks[1].save(1, slow.pieces(1, 2))
    wait(ranks, 1)
    close(ranks)
    report = gc(wrong, now=store_now(wrong) + timedelta(days=2))
    assert report.trials["t000"].steps == {2}
    assert report.deleted == report.trials["t000"].chunks > 0
    assert same(restored(wrong, kept, step=1)[0], kept)
    assert same(restored(wrong, slow, step=1, trial="t001")[0], slow)
