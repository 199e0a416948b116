"""The kill bench's judgement: what it must call torn or lost, and what it must not."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.bench.kill import state as kill_state
from jobs.bench.kill.__main__ import plan, summarize
from jobs.bench.kill.checks import Ledger, prove_content
from tlcore.checkpoint import CheckpointWriter, Piece, WriterSettings, delete_checkpoint
from tlcore.storage import ObjectStore, open_store

pytestmark = pytest.mark.unit

TRIAL = "t000"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}")


def ledger_of(store: ObjectStore, keep_last: int = 0) -> Ledger:
    return Ledger(store, TRIAL, keep_last, lambda step: kill_state.score(TRIAL, step), prove_content)


def save(store: ObjectStore, step: int, lives: Sequence[int], attempt: int = 1) -> None:
    """Commit `step` from one rank per life; different lives make the mixture that no checkpoint may be."""

    def one(rank: int) -> None:
        settings = WriterSettings(chunk_bytes=kill_state.CHUNK_BYTES, commit_deadline_s=60)
        rows = kill_state.rows_of(rank, len(lives))
        pieces = [Piece(row, kill_state.content(row, TRIAL, lives[rank], step).copy()) for row in rows]
        with CheckpointWriter(store, TRIAL, rank, len(lives), attempt, settings) as writer:
            writer.save(step, pieces, kill_state.common(TRIAL, lives[0], step) if rank == 0 else None)
            writer.wait(step)

    with ThreadPoolExecutor(len(lives)) as threads:
        list(threads.map(one, range(len(lives))))


def test_whole_checkpoints_are_neither_torn_nor_lost(store: ObjectStore) -> None:
    ledger = ledger_of(store)
    for step in (1, 2):
        save(store, step, [5, 5], attempt=step)
        ledger.committed(step, step)
    verdict = ledger.check()
    assert (verdict.torn, verdict.lost, verdict.newest, verdict.proved) == ([], [], 2, 2)


def test_ranks_of_two_lives_make_a_torn_checkpoint(store: ObjectStore) -> None:
    """Every digest fits: only the content tells."""
    save(store, 1, [5, 6])
    ledger = ledger_of(store)
    [fault] = ledger.check().torn
    assert "differ from step 1 of life 5" in fault
    assert ledger.check().torn == [], "one torn checkpoint counts once"


def test_a_flipped_byte_is_torn_and_what_was_committed_is_lost(store: ObjectStore) -> None:
    save(store, 1, [5])
    ledger = ledger_of(store)
    ledger.committed(1, 1)
    key = next(each.key for each in store.list("cas/"))
    data = store.get(key)
    store.put(key, bytes([data[0] ^ 1]) + data[1:])
    verdict = ledger.check()
    assert len(verdict.torn) == 1
    assert verdict.lost == ["t000 step 1 was committed and does not restore"]


def test_a_committed_checkpoint_that_is_gone_is_lost_unless_retention_took_it(store: ObjectStore) -> None:
    best = max((1, 2, 3, 4), key=lambda step: kill_state.score(TRIAL, step))
    keeps, all_of_them = ledger_of(store, keep_last=1), ledger_of(store)
    for step in (1, 2, 3, 4):
        save(store, step, [5], attempt=step)
        keeps.committed(step, step)
        all_of_them.committed(step, step)
    others = [step for step in (1, 2, 3) if step != best]
    for step in others:
        delete_checkpoint(store, TRIAL, step)
    assert keeps.check().lost == []
    assert all_of_them.check().lost == [f"t000 step {step} was committed and is gone" for step in others]
    delete_checkpoint(store, TRIAL, 4)
    assert "t000 step 4 was committed and is gone" in keeps.check().lost
    assert keeps.check().lost == [], "one lost checkpoint counts once"


def test_an_older_attempt_may_not_stand_where_a_newer_one_committed(store: ObjectStore) -> None:
    save(store, 1, [5], attempt=1)
    ledger = ledger_of(store)
    ledger.committed(1, 2)
    assert "attempt 1 stands where attempt 2 had committed" in ledger.check().torn[0]


def test_the_bytes_of_a_rank_are_its_part_of_the_whole() -> None:
    whole = {(row.parameter, row.state): kill_state.content(row, TRIAL, 3, 9) for row in kill_state.all_rows()}
    for world_size in (1, 2, 3):
        held = 0
        for rank in range(world_size):
            for row in kill_state.rows_of(rank, world_size):
                part = kill_state.content(row, TRIAL, 3, 9)
                start = row.start * row.item_bytes
                assert (part == whole[row.parameter, row.state][start : start + part.size]).all()
                held += part.size
        assert held == sum(data.size for data in whole.values())


def test_the_plan_spreads_the_lanes_and_leaves_out_what_the_log_has() -> None:
    log = [{"lane": "saves", "index": 0}, {"lane": "stores", "index": 0}]
    todo = list(plan({"saves": 4, "groups": 2, "stores": 1}, log))
    assert todo == [("groups", 0), ("saves", 1), ("saves", 2), ("groups", 1), ("saves", 3)]


def test_totals_are_those_of_the_log() -> None:
    record = {
        "lane": "saves", "index": 0, "kind": "rank", "stages": ["put", "commit"], "acknowledged": 3, "proved": 2, "repeated": 0,
        "torn": ["a"], "lost": ["b", "c"], "errors": [], "seconds": 1.0,
    }  # fmt: skip
    figures = summarize([record, {**record, "index": 1, "kind": "rank0", "torn": [], "lost": [], "seconds": 3.0}])
    assert (figures["kills"], figures["torn"], figures["lost"], figures["errors"]) == (2, 1, 2, 0)
    assert figures["kinds"]["saves.rank0"] == {"kills": 1, "torn": 0, "lost": 0, "errors": 0}
    assert figures["stages"] == {"put": 2, "commit": 2}
    assert figures["seconds_per_kill"] == {"saves": 2.0}
