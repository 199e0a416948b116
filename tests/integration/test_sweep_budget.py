"""A sweep whose budget runs out, before and after its first report, and what resumes make of it; the clock is moved by hand."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from ray_fixtures import CPUS
from sweep_bench import Notes, hold_trial, leftovers, make_recipe, options, read_trace

from tlcore.errors import SweepError
from tlcore.report.runs import find_run, read_run, show_json
from tlcore.storage.journal import read_journal
from tlcore.sweep import run_sweep

pytestmark = pytest.mark.integration

RATES = [5e-4, 6e-4]
ONE = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": CPUS}  # one trial at a time


class Clock:
    """Stands still, but jumps ahead by `jump_h` once a trial holds still."""

    def __init__(self, directory):
        self.directory, self.now, self.jumps = directory, datetime(2026, 11, 26, tzinfo=UTC), {}
        self.lock = threading.Lock()

    def __call__(self):
        with self.lock:  # the driver has two threads
            for trial in {line["trial"] for line in read_trace(self.directory) if line["event"] == "holds"}:
                self.now += timedelta(hours=self.jumps.pop(trial, 0))
            return self.now


def run(directory, clock, budget, resume=True):
    notes = Notes()
    recipe = make_recipe(directory, RATES, budget={"price_per_worker_hour": 0.5, **budget}, resources=ONE)
    return run_sweep(recipe, options(directory, notes, resume, clock=clock)), notes


def starts(directory, trial):
    lines = [
        line for line in read_trace(directory) if (line["trial"], line["event"], line["rank"]) == (trial, "start", 0)
    ]
    return [line["resume_step"] for line in lines]


def test_a_budget_ends_a_sweep_where_it_stands_and_a_higher_one_goes_on(ray_session, tmp_path):
    clock = Clock(tmp_path)
    clock.jumps = {"t000": 10, "t001": 15}
    hold_trial(tmp_path, "t000", step=3)
    with pytest.raises(SweepError, match=r"before any trial reported: budget\.hours=5 is used up \(10 used\)") as early:
        run(tmp_path, clock, {"hours": 5}, resume=False)
    assert "--resume with --set budget.hours=<more than 10>" in early.value.hint
    assert leftovers(read_trace(tmp_path), CPUS) == []

    hold_trial(tmp_path, "t001", step=7)
    outcome, notes = run(tmp_path, clock, {"worker_hours": 22})
    assert (outcome.exhausted.setting, outcome.exhausted.used) == ("budget.worker_hours", 25)
    assert not outcome.interrupted
    assert not outcome.complete
    assert outcome.best.trial == "t000"
    assert {trial.trial: trial.status for trial in outcome.trials} == {"t000": "completed", "t001": "waiting"}
    (left,) = notes.of("left")
    assert (left["trial"], left["step"]) == ("t001", 7)
    (finished,) = notes.of("finished")
    assert (finished["reason"], finished["limit"], finished["best"]) == ("budget", "budget.worker_hours", "t000")

    outcome, notes = run(tmp_path, clock, {"worker_hours": 22})
    assert [event["kind"] for event in notes.events] == ["resumed", "finished"]
    assert outcome.exhausted.setting == "budget.worker_hours"
    assert notes.of("finished")[0]["reason"] == "budget"

    # a third group of workers would show no more than this: t000 went on from where the first budget had ended it
    assert (starts(tmp_path, "t000"), starts(tmp_path, "t001")) == ([None, 3], [None])
    reported = [
        (entry["trial"], entry["step"]) for entry in read_journal(outcome.run.open()) if entry["kind"] == "result"
    ]
    assert reported == [("t000", 5), ("t000", 10), ("t000", 20), ("t001", 5)]

    shown = show_json(read_run(find_run("standin", str(tmp_path / "store"))))
    assert shown["used"] == {"hours": 25, "worker_hours": 25, "cost": 12.5}
    assert (shown["state"], shown["ended_by"]) == ("finished", "budget")
