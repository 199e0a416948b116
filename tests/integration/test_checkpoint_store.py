"""Checkpoints on real stores, SeaweedFS over S3 and a directory: what the unit tests prove on a model, proved on them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from checkpoint_state import SETTINGS, State, close, restored, same, save, saved, wait, writers

from tlcore.checkpoint import (
    CheckpointReader,
    CheckpointRef,
    Piece,
    Row,
    WriterSettings,
    delete_checkpoint,
    gc,
    list_manifests,
    newest_intact,
    read_manifest,
    verify,
)
from tlcore.errors import CheckpointCorrupt, StaleWriter
from tlcore.storage import open_store

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("wrote", "reads"), [(1, 1), (2, 2), (2, 3), (4, 1), (1, 4), (3, 2)])
def test_saved_by_some_ranks_restored_by_others(store, wrote, reads):
    state = State(seed=3)
    reports = saved(store, state, world_size=wrote, layout="flat")
    assert [report.outcome for report in reports] == ["committed"] * wrote
    back, _ = restored(store, state, world_size=reads, layout="each")
    assert same(back, state)
    assert verify(store, read_manifest(store, "t000", 200)) == []


def chunk_of(store, at=0):
    return sorted(store.list("cas/"), key=lambda each: -each.size_bytes)[at]


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing", "empty"])
def test_damaged_chunks_are_found_and_the_older_checkpoint_is_used(store, fault):
    state = State(frozen_elements=0)
    saved(store, state, step=100)
    old = {each.key for each in store.list("cas/")}
    state.change()
    saved(store, state, step=200)
    key = next(each.key for each in store.list("cas/") if each.key not in old and each.size_bytes > 1000)
    data = store.get(key)
    if fault == "missing":
        store.delete([key])
    else:
        damaged = {"flipped": bytes([data[0] ^ 1]) + data[1:], "truncated": data[:-1], "empty": b""}[fault]
        store.put(key, damaged)
    with pytest.raises(CheckpointCorrupt, match=key):
        restored(store, state, step=200)
    found = newest_intact(store, "t000", every_byte=True)
    assert found.manifest is not None
    assert found.manifest.step == 100
    assert [problem.key for problem in found.problems] == [key]


@pytest.mark.parametrize("name", ["MANIFEST.json", "rank-0000-0001.json"])
def test_damaged_documents_are_found(store, name):
    state = State()
    saved(store, state, step=100)
    key = f"trials/t000/step-00000100/{name}"
    data = store.get(key)
    store.put(key, data[:300] + bytes([data[300] ^ 4]) + data[301:])
    with pytest.raises(CheckpointCorrupt, match=name):
        restored(store, state, step=100)
    assert newest_intact(store, "t000").manifest is None


def test_one_of_two_writers_commits(store):
    first, second = writers(store, 1, attempt=1), writers(store, 1, attempt=2)
    save(second, State(seed=2), 200)
    wait(second)
    save(first, State(seed=1), 200)
    with pytest.raises(StaleWriter):
        wait(first)
    close([*first, *second])
    assert same(restored(store, State())[0], State(seed=2))


def test_only_what_changed_is_sent_and_old_checkpoints_go(store):
    state = State(frozen_elements=60_000)
    ranks = writers(store, 2)
    sizes = []
    for step in (1, 2, 3):
        save(ranks, state, step)
        sizes.append(sum(report.bytes_new for report in wait(ranks, step)))
        state.change()
    close(ranks)
    frozen = sum(2 * n for n in state.frozen.values())
    assert sizes == [sizes[0], sizes[0] - frozen, sizes[0] - frozen]
    delete_checkpoint(store, "t000", 1)
    now = max(each.modified for each in store.list("cas/"))
    from datetime import timedelta

    report = gc(store, now=now + timedelta(days=2))
    assert report.deleted > 0
    assert list_manifests(store, "t000") == [2, 3]
    for step in (2, 3):
        assert verify(store, read_manifest(store, "t000", step)) == []


def test_full_sized_chunks_and_a_part_of_one(s3_store):
    random = np.random.default_rng(0)
    data = random.integers(0, 256, 40 << 20, dtype=np.uint8)
    elements = data.nbytes // 4
    common = {"parameters": {"w": {"shape": [elements], "dtype": "float32", "trained": True, "tied_to": None}}}
    [writer] = writers(s3_store, 1, settings=WriterSettings())
    writer.save(1, [Piece(Row("w", "fp32", 0, elements, "float32"), data)], common)
    [report] = writer.wait()
    writer.close()
    assert report.bytes_new == data.nbytes
    assert max(each.size_bytes for each in s3_store.list("cas/")) == 16 << 20
    reader = CheckpointReader(s3_store, CheckpointRef(s3_store.url, "t000", 1).open()[1])
    part = np.zeros(4 << 20, np.uint8)
    read = reader.read_into([Piece(Row("w", "fp32", 3_700_001, 3_700_001 + (1 << 20), "float32"), part)])
    assert np.array_equal(part, data[4 * 3_700_001 :][: part.nbytes])
    assert read.bytes_read <= part.nbytes + 4 * (256 << 10)


def _train_for_ever(url: str, attempt: int) -> None:
    """A process that saves step after step; killed by the test."""
    store = open_store(url)
    state = State(seed=attempt)
    steps = list_manifests(store, "t000")
    ranks = writers(store, 2, attempt=attempt, settings=SETTINGS)
    for step in range(max(steps, default=0) + 1, 1_000_000):
        state.change()
        save(ranks, state, step, metrics={"sum": float(state.data["embed", "fp32", "float32"].astype(np.int64).sum())})


@pytest.mark.parametrize("delays_ms", [(5, 120, 40, 260)])
def test_killed_at_any_moment_only_whole_checkpoints_are_visible(s3_store, delays_ms):
    """kill -9 some time after the first commit of each attempt: the newest manifest restores to what its metrics say."""
    spawn = multiprocessing.get_context("spawn")
    for attempt, delay_ms in enumerate(delays_ms, start=1):
        before = len(list_manifests(s3_store, "t000"))
        process = spawn.Process(target=_train_for_ever, args=(s3_store.url, attempt))
        process.start()
        try:
            deadline = time.monotonic() + 600
            while len(list_manifests(s3_store, "t000")) == before:
                assert process.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(delay_ms / 1000)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        newest = newest_intact(s3_store, "t000", every_byte=True)
        assert newest.problems == ()
        assert newest.manifest is not None
        assert newest.manifest.step == list_manifests(s3_store, "t000")[-1]
        back, _ = restored(s3_store, State(), step=newest.manifest.step, world_size=3)
        assert float(back.data["embed", "fp32", "float32"].astype(np.int64).sum()) == newest.manifest.metrics["sum"]
