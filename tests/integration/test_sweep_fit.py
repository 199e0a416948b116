"""Points that cannot fit, in real sweeps: refused, dropped, repaired. The session is a stand-in, the memory it needs is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sweep_bench import Notes, make_recipe, options, read_trace

from tlcore.errors import CannotFit
from tlcore.recipe import plan_batch
from tlcore.storage import list_runs
from tlcore.storage.journal import SweepState, read_journal
from tlcore.sweep import run_sweep

pytestmark = pytest.mark.integration

RATES = [1e-4, 2e-4, 3e-4]
SEARCH = {
    "space": {
        "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
        "train.global_batch_size": {"choice": [8, 32]},
    },
    "first": [
        {"train.learning_rate": 1e-4, "train.global_batch_size": 8},
        {"train.learning_rate": 2e-4, "train.global_batch_size": 32},
        {"train.learning_rate": 3e-4, "train.global_batch_size": 8},
    ],
    "trials": 3,
}


def needs(recipe, on_gpu):
    """A terabyte for more than four samples at a time."""
    many = plan_batch(recipe, recipe.resources.workers).micro_batch_size > 4
    return {"device_bytes": 0, "host_bytes": 10**12 if many else 10**6}


def sweep(directory, policy):
    recipe = make_recipe(directory, RATES, search=SEARCH, failures={"on_infeasible": policy})
    notes = Notes()
    return recipe, notes, lambda: run_sweep(recipe, replace(options(directory, notes), estimate=needs))


def test_refused_before_a_run_exists(ray_session, tmp_path):
    recipe, _, run = sweep(tmp_path, "refuse")
    with pytest.raises(CannotFit, match="1 of 3 points") as refusal:
        run()
    assert "train.global_batch_size=32: a worker needs 1000.00 GB" in refusal.value.message
    assert "train.micro_batch_size=" in refusal.value.message
    assert refusal.value.exit_code == 2
    assert list_runs(recipe.storage) == []


def test_dropped_points_do_not_run_and_say_why(ray_session, tmp_path):
    _, notes, run = sweep(tmp_path, "drop")
    outcome = run()
    assert {trial.trial: trial.status for trial in outcome.trials} == {
        "t000": "completed",
        "t001": "failed",
        "t002": "completed",
    }
    assert "not run: a worker needs 1000.00 GB" in outcome.errors["t001"]["message"]
    assert {line["trial"] for line in read_trace(tmp_path)} == {"t000", "t002"}
    assert outcome.complete
    assert SweepState.from_entries(read_journal(outcome.run.open())).unfinished() == []
    assert [event["trial"] for event in notes.of("dropped")] == ["t001"]


@pytest.mark.long
def test_repaired_points_run_with_what_fits(ray_session, tmp_path):
    _, notes, run = sweep(tmp_path, "repair")
    outcome = run()
    assert {trial.status for trial in outcome.trials} <= {"completed", "stopped"}
    [entry] = [event for event in notes.of("suggested") if event["trial"] == "t001"]
    assert entry["repaired"] == {"train.micro_batch_size": ["auto", 4]}
    assert outcome.state.trials["t001"].point["train.micro_batch_size"] == 4
    assert "t001" in {line["trial"] for line in read_trace(tmp_path)}
