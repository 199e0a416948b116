"""A sweep whose driver is interrupted, then killed, and each time taken up by another one from the store alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import sweep_bench
from ray_fixtures import CPUS
from sweep_bench import Notes, hold_trial, leftovers, make_recipe, options, read_trace

from tlcore.errors import RequestError
from tlcore.storage import list_runs
from tlcore.storage.journal import read_journal
from tlcore.sweep import run_sweep, run_train

pytestmark = pytest.mark.integration

RATES = [5e-4, 6e-4, 7e-4, 1e-5]


def run_driver(directory, action, trial, fraction):
    """A driver in a process of its own, on the session's Ray; it does `action` to itself when `trial` reports `fraction`."""
    here = Path(sweep_bench.__file__)
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2])]),
    }
    command = [sys.executable, str(here), str(directory), action, trial, str(fraction)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def starts(directory, trial):
    """The step from which each life of a trial began, as rank 0 saw it."""
    lines = [
        line for line in read_trace(directory) if (line["trial"], line["event"], line["rank"]) == (trial, "start", 0)
    ]
    return [line["resume_step"] for line in lines]


def test_interrupted_then_killed_then_finished_by_a_third_driver(ray_session, tmp_path):
    (tmp_path / "rates.json").write_text(json.dumps(RATES))
    hold_trial(tmp_path, "t001", step=7)

    first = run_driver(tmp_path, "SIGINT", "t001", 0.25)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == {"interrupted": True, "complete": False}
    assert first.stderr == ""
    assert leftovers(read_trace(tmp_path), CPUS) == []

    second = run_driver(tmp_path, "SIGKILL", "t002", 0.5)
    assert second.returncode == -signal.SIGKILL
    assert leftovers(read_trace(tmp_path), CPUS) == []

    notes = Notes()
    outcome = run_sweep(make_recipe(tmp_path, RATES), options(tmp_path, notes, resume=True))
    assert outcome.complete
    assert {trial.trial: trial.status for trial in outcome.trials} == {
        "t000": "completed",
        "t001": "completed",
        "t002": "completed",
        "t003": "stopped",
    }
    assert outcome.state.resumes == 2
    assert len(list_runs(str(tmp_path / "store"))) == 1

    entries = read_journal(outcome.run.open())
    assert [entry["trial"] for entry in entries if entry["kind"] == "suggested"] == ["t000", "t001", "t002", "t003"]
    reported = [(entry["trial"], entry["fraction"]) for entry in entries if entry["kind"] == "result"]
    whole = [(trial, fraction) for trial in ("t000", "t001", "t002") for fraction in (0.25, 0.5, 1.0)]
    assert reported == [*whole, ("t003", 0.25)]
    assert starts(tmp_path, "t000") == [None]
    (left,) = [entry for entry in entries if entry["kind"] == "left"]
    assert (left["trial"], left["step"]) == ("t001", 7)
    assert starts(tmp_path, "t001") == [None, 7]
    assert starts(tmp_path, "t002") == [None, 10]


def test_an_interrupt_before_the_first_trial_leaves_no_run_that_a_resume_would_take(ray_session, tmp_path):
    def interrupting(recipe, on_gpu):
        os.kill(os.getpid(), signal.SIGINT)
        return {"unknown": "not asked"}

    recipe = make_recipe(tmp_path, RATES)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(recipe, options(tmp_path, Notes(), estimate=interrupting))
    assert list_runs(recipe.storage) == []


def test_one_training_run_is_the_recipe_as_it_stands_and_resumes_with_that_recipe_only(ray_session, tmp_path):
    recipe = make_recipe(tmp_path, [1e-4, 2e-4], train={"global_batch_size": 8, "learning_rate": 9e-4})
    outcome = run_train(recipe, options(tmp_path, Notes()))
    (trial,) = outcome.trials
    assert (trial.point, trial.status, trial.checkpoint_step) == ({}, "completed", 20)
    assert trial.final("eval_accuracy") == pytest.approx(0.9)

    other = make_recipe(tmp_path, [1e-4, 2e-4], train={"global_batch_size": 16, "learning_rate": 9e-4})
    with pytest.raises(RequestError, match=r"train\.global_batch_size was 8, is 16"):
        run_train(other, options(tmp_path, Notes(), resume=True))

    notes = Notes()
    again = run_train(recipe, options(tmp_path, notes, resume=True))
    assert [event["kind"] for event in notes.events] == ["resumed", "finished"]
    assert again.best.trial == "t000"
