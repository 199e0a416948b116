"""A restore that fell back, on its way from a trial's report to the journal and whoever watches."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from memory_store import MemoryStore

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
    recorder.result("t000", {**report.to_dict(), "lost": []})
    entries = read_journal(store)
    assert [entry["kind"] for entry in entries] == watcher.seen == ["suggested", "fell_back", "result"]
    assert {key: entries[1][key] for key in passed_over[0]} == passed_over[0]
    assert recorder.state.trials["t000"].status == "waiting"
