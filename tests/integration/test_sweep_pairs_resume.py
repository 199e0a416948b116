"""A driver killed right after a pause or a takeover was written: the next one goes on as the journal says, and no trial is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from sweep_bench import Notes
from test_sweep_pairs import LONG, SHORT, make_recipe, options

from tlcore.storage import list_runs
from tlcore.storage.journal import read_journal
from tlcore.sweep import run_sweep
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay

pytestmark = [pytest.mark.integration, pytest.mark.long]
HERE = Path(__file__).parent


def kill_driver(directory, pair, kind, count):
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    }
    command = [sys.executable, str(HERE / "pair_driver.py"), str(directory), pair, kind, str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("pair", "kind", "count"),
    [
        ("hyperband-tpe", "paused", 1),
        ("bohb-bohb", "stopped", 1),
        ("pbt-random", "took_over", 1),
        ("pb2-random", "result", 4),
    ],
)
def test_a_second_driver_goes_on_with_the_same_brackets_and_population(ray_session, tmp_path, pair, kind, count):
    kill_driver(tmp_path, pair, kind, count)
    recipe = make_recipe(tmp_path, *(SHORT | LONG)[pair])
    (run,) = list_runs(recipe.storage)
    before = read_journal(run.open())
    notes = Notes()
    outcome = run_sweep(recipe, options(tmp_path, notes, resume=True))
    assert outcome.complete
    assert len(outcome.trials) == recipe.search.trials
    assert all(trial.status in {"completed", "stopped"} for trial in outcome.trials)
    journal = read_journal(run.open())
    assert journal[: len(before)] == before
    assert [entry["kind"] for entry in journal].count("suggested") == recipe.search.trials
    seats = make_seats(recipe, None)
    replayed = Replay(seats, journal)
    assert (replayed.stopped, replayed.pending, seats.get_live_trials()) == (set(), [], set())
