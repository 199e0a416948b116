"""What befell a trial, on its way from its report and its slot to the journal and whoever watches."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from memory_store import MemoryStore

from tlcore.errors import StorageUnreachable
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep.recorder import Recorder
from tlcore.train.progress import Report

pytestmark = pytest.mark.unit


class Watcher:
    def __init__(self):
        self.seen = []

    def on_event(self, entry):
        self.seen.append(entry["kind"])


def test_what_a_report_says_it_fell_back_from_is_journalled_before_the_result():
    store, watcher = MemoryStore(), Watcher()
    recorder = Recorder(Journal(store, lambda: datetime(2026, 11, 21, tzinfo=UTC)), SweepState(), watcher)
    recorder.record("suggested", "t000", point={})
    passed_over = [{"instead": 300, "step": 200, "reason": "a chunk is missing"}]
    report = Report(210, 400, 0.5, 0.7, 30.0, 210, {"eval_loss": 0.7}, passed_over)
    recorder.result("t000", report.to_dict())
    entries = read_journal(store)
    assert [entry["kind"] for entry in entries] == watcher.seen == ["suggested", "fell_back", "result"]
    assert {key: entries[1][key] for key in passed_over[0]} == passed_over[0]
    assert recorder.state.trials["t000"].status == "waiting"


def recording():
    store, watcher = MemoryStore(), Watcher()
    recorder = Recorder(Journal(store, lambda: datetime(2026, 11, 21, tzinfo=UTC)), SweepState(), watcher)
    recorder.record("suggested", "t000", point={})
    return store, watcher, recorder


def test_what_the_slots_told_is_written_before_the_report_that_follows_it():
    _, watcher, recorder = recording()
    told = [{"kind": "lost", "trial": "t000", "rank": 1, "cause": "died", "step": 5, "loss": "worker"}]
    recorder.notes = lambda: [told.pop()] if told else []
    recorder.result("t000", Report(210, 400, 0.5, 0.7, 30.0, 210, {"eval_loss": 0.7}).to_dict())
    assert watcher.seen == ["suggested", "lost", "result"]
    assert recorder.state.trials["t000"].losses == {"worker": 1}


def test_what_could_not_be_written_is_written_the_next_time():
    store, watcher, recorder = recording()
    told = [{"kind": "lost", "trial": "t000", "rank": rank, "loss": "worker"} for rank in (0, 1)]
    recorder.notes = lambda: [told.pop(0) for _ in range(len(told))]
    put, store.put_if_absent = store.put_if_absent, failing
    with pytest.raises(StorageUnreachable):
        recorder.take_notes()
    store.put_if_absent = put
    recorder.take_notes()
    assert watcher.seen == ["suggested", "lost", "lost"]
    assert [entry["rank"] for entry in read_journal(store)[1:]] == [0, 1]


def failing(key, data):
    raise StorageUnreachable("no answer")
