"""Takeovers, the Pareto table and a warm start, in words and as JSON."""

from __future__ import annotations

import pytest
from rich.console import Console

from tlcore.report.findings import front_table, lineage_json, lineage_lines, loss_lines, warmed_line
from tlcore.storage.journal import SweepState

pytestmark = pytest.mark.unit

LR = "train.learning_rate"
CHANGED = {LR: [0.001, 0.0008], "transfer.n": [1, 2]}


def result(trial, accuracy, loss, fraction=1.0):
    metrics = {"eval_accuracy": accuracy, "eval_loss": loss}
    return {
        "kind": "result",
        "trial": trial,
        "fraction": fraction,
        "step": 10,
        "checkpoint_step": 10,
        "metrics": metrics,
    }


@pytest.fixture
def state():
    entries = [
        {"kind": "suggested", "trial": name, "point": {LR: rate}} for name, rate in (("t000", 0.001), ("t001", 0.1))
    ]
    entries += [result("t000", 0.8, 0.4, 0.5), result("t001", 0.4, 0.9, 0.5)]
    taken = {"parent": "t000", "step": 10, "fraction": 0.5, "point": {LR: 0.0008, "transfer.n": 2}, "changed": CHANGED}
    entries.append({"kind": "took_over", "trial": "t001", **taken, "metrics": {"eval_accuracy": 0.8, "eval_loss": 0.4}})
    return SweepState.from_entries(entries)


def test_a_takeover_is_told_and_kept(state):
    assert lineage_lines(state) == [
        "t001 took over t000 at step 10 (50%), train.learning_rate 1e-3 -> 8e-4, transfer.n 1 -> 2"
    ]
    assert lineage_json(state.trials["t001"]) == [{"parent": "t000", "step": 10, "fraction": 0.5, "changed": CHANGED}]
    assert lineage_json(state.trials["t000"]) == []


def test_after_a_takeover_a_trial_stands_where_its_parent_stood(state):
    trial = state.trials["t001"]
    assert (trial.point, trial.fraction, trial.checkpoint_step) == ({LR: 0.0008, "transfer.n": 2}, 0.5, 10)
    assert trial.final("eval_accuracy") == 0.8
    assert trial.just_took_over.parent == "t000"
    state.apply(result("t001", 0.9, 0.3))
    assert trial.just_took_over is None
    assert trial.fraction == 1.0


def test_a_takeover_that_goes_back_counts_from_there():
    entries = [{"kind": "suggested", "trial": "t000", "point": {}}, result("t000", 0.5, 0.5, 0.75)]
    taken = {
        "parent": "t001",
        "step": 5,
        "fraction": 0.25,
        "point": {},
        "changed": {},
        "metrics": {"eval_accuracy": 0.9},
    }
    state = SweepState.from_entries([*entries, {"kind": "took_over", "trial": "t000", **taken}])
    assert (state.trials["t000"].fraction, state.trials["t000"].checkpoint_step) == (0.25, 5)


def test_the_front_table_has_only_what_is_not_beaten(state):
    state.apply(result("t000", 0.9, 0.5))
    state.apply(result("t001", 0.8, 0.6))
    console = Console(width=100, record=True)
    console.print(front_table(state, ("eval_accuracy", "eval_loss"), ("max", "min")))
    shown = console.export_text()
    assert "t000" in shown
    assert "t001" not in shown


def test_a_warm_start_says_what_was_used_and_what_did_not_fit():
    entry = {"kind": "warmed", "trial": None, "source": "file:///old/run", "used": [{}, {}], "unused": 3}
    assert warmed_line([entry]) == ["began with 2 results of file:///old/run; 3 did not fit"]
    assert warmed_line([{**entry, "unused": 0}]) == ["began with 2 results of file:///old/run"]


def test_what_was_lost_is_told_by_trial_and_kind_and_nodes_by_name():
    entries = [
        {"kind": "suggested", "trial": "t000", "point": {}},
        {"kind": "suggested", "trial": "t001", "point": {}},
        *({"kind": "lost", "trial": "t001", "loss": loss} for loss in ("worker", "worker", "hang", "storage")),
        {"kind": "avoided", "trial": None, "node": "ab12", "losses": 3, "trials": ["t001"]},
    ]
    assert loss_lines(SweepState.from_entries(entries), entries) == [
        "t001 had 2 lost workers, 1 hang, 1 time without its store",
        "node ab12 was avoided after 3 losses of t001",
    ]
