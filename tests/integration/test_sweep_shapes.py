"""Trials of several shapes, and sweeps beside each other: real groups, all of which want more than there is. Long: cold starts."""

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
from sweep_bench import Notes, leftovers, make_recipe, options, read_trace

from tlcore.storage.journal import read_journal
from tlcore.sweep import run_sweep
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay

pytestmark = [pytest.mark.integration, pytest.mark.long]
ALIKE = [5e-4, 5e-4, 5e-4]
"""No trial is better than another, so that all pass their rungs in whichever order they come there."""
SMALL = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": CPUS / 2}


def growing(rates):
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    first = [{"train.learning_rate": rate} for rate in rates]
    search = {"space": space, "first": first, "trials": len(rates), "scheduler": {"asha": {"workers": [1, 1, 2]}}}
    return {"resources": SMALL, "search": search}


def start_driver(directory, action, trial, fraction):
    here = Path(sweep_bench.__file__)
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2])]),
    }
    command = [sys.executable, str(here), str(directory), action, trial, str(fraction)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def of(entries, kind, trial):
    return [entry for entry in entries if (entry["kind"], entry["trial"]) == (kind, trial)]


@pytest.mark.parametrize("fraction", [0.5, 0.25], ids=["where it grows", "before it grows"])
def test_after_a_kill_a_trial_goes_on_with_the_workers_of_where_it_stands(ray_session, tmp_path, fraction):
    (tmp_path / "rates.json").write_text(json.dumps({"rates": ALIKE, "changes": growing(ALIKE)}))
    driver = start_driver(tmp_path, "SIGKILL", "t001", fraction)
    _, said = driver.communicate(timeout=1200)
    assert driver.returncode == -signal.SIGKILL, said
    assert leftovers(read_trace(tmp_path), CPUS) == []

    recipe = make_recipe(tmp_path, ALIKE, **growing(ALIKE))
    outcome = run_sweep(recipe, options(tmp_path, Notes(), resume=True))
    assert outcome.complete
    assert [trial.status for trial in outcome.trials] == ["completed"] * 3
    entries = read_journal(outcome.run.open())
    after = entries[[entry["kind"] for entry in entries].index("resumed") :]
    assert [entry["workers"] for entry in of(after, "started", "t001")] == ([2] if fraction == 0.5 else [1, 2])
    for trial in ("t000", "t001", "t002"):
        assert [entry["workers"] for entry in of(entries, "started", trial)][-1] == 2
        ranks = {line["fraction"]: set() for line in read_trace(tmp_path) if line["event"] == "report"}
        for line in read_trace(tmp_path):
            if (line["trial"], line["event"]) == (trial, "report"):
                ranks[line["fraction"]].add(line["rank"])
        assert ranks == {0.25: {0}, 0.5: {0}, 1.0: {0, 1}}
    seats = make_seats(recipe, None)
    replayed = Replay(seats, entries)
    assert (replayed.stopped, replayed.pending, seats.get_live_trials()) == (set(), [], set())


def test_trials_of_different_shapes_share_the_cluster(ray_session, tmp_path):
    workers = [2, 1, 1, 2, 1]
    points = [{"train.learning_rate": 5e-4, "resources.workers": number} for number in workers]
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "resources.workers": {"choice": [1, 2]}}
    search = {"space": space, "first": points, "trials": len(points)}
    notes = Notes()
    outcome = run_sweep(make_recipe(tmp_path, [], resources=SMALL, search=search), options(tmp_path, notes))
    assert [trial.status for trial in outcome.trials] == ["completed"] * len(workers)
    assert [of(notes.events, "started", trial.trial)[0]["workers"] for trial in outcome.trials] == workers
    ranks = {trial.trial: set() for trial in outcome.trials}
    for line in read_trace(tmp_path):
        ranks[line["trial"]].add(line["rank"])
    assert [len(found) for found in ranks.values()] == workers
    assert leftovers(read_trace(tmp_path), CPUS) == []


def test_two_sweeps_at_once_on_one_cluster_come_to_their_ends(ray_session, tmp_path):
    drivers = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rates.json").write_text(json.dumps(ALIKE[:2]))
        drivers.append(start_driver(tmp_path / name, "SIGINT", "nobody", 0))
    for driver in drivers:
        said, errors = driver.communicate(timeout=1200)
        assert driver.returncode == 0, errors
        assert json.loads(said) == {"interrupted": False, "complete": True}
    trace = [line for name in ("one", "other") for line in read_trace(tmp_path / name)]
    assert leftovers(trace, CPUS) == []
