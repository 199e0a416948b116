"""Every kind of failure on real Ray with real collectives: its own message, count and retry."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ray_fixtures import CPUS
from sweep_bench import Notes, leftovers, make_recipe, read_trace

from tlcore.errors import DataError
from tlcore.storage.journal import read_journal
from tlcore.sweep import SweepOptions, run_sweep

pytestmark = pytest.mark.integration

RATES = [5e-4, 6e-4, 7e-4, 8e-4]
FAILURES = {"on_oom": "adapt", "hang_minutes": 0.1, "max_hangs": 1, "max_lost_workers": 1}
SEARCH = {
    "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
    "first": [{"train.learning_rate": rate} for rate in RATES],
    "trials": len(RATES),
}


def fault(directory, trial, kind, rank=1, step=7, **more):
    (directory / f"{trial}.fault").write_text(json.dumps({"kind": kind, "rank": rank, "step": step, **more}))


def sweep(directory, rates, failures, notes, **changes):
    recipe = make_recipe(directory, rates, failures=failures, **changes)
    logs = directory / "logs"
    return run_sweep(recipe, SweepOptions(display=notes, logs=logs, session="faulty_session:FaultySession"))


@pytest.fixture(scope="module")
def eventful(ray_session, tmp_path_factory):
    """Four trials, one after another: t000's loss is not finite; t001 runs out of memory until its micro-batch is 2; t002 meets a
    store that is away and then loses a worker; a rank of t003 is stopped, and then the other one hangs, which is once too often."""
    directory = tmp_path_factory.mktemp("eventful")
    fault(directory, "t000", "nan", rank=0)
    fault(directory, "t001", "oom", fits=2)
    fault(directory, "t002", "storage", rank=0)
    fault(directory, "t003", "stop")

    def act(event):
        if (event["kind"], event["trial"], event.get("loss")) == ("lost", "t002", "storage"):
            fault(directory, "t002", "kill", rank=0)
        if (event["kind"], event["trial"]) == ("lost", "t003"):
            fault(directory, "t003", "hang", rank=0)

    notes = Notes(act)
    outcome = sweep(directory, RATES, FAILURES, notes, search=SEARCH)
    return SimpleNamespace(directory=directory, notes=notes, outcome=outcome, trace=read_trace(directory))


def lost(sweep, trial):
    return [event for event in sweep.notes.of("lost") if event["trial"] == trial]


def resumed_from(sweep, trial):
    starts = [line for line in sweep.trace if (line["trial"], line["event"]) == (trial, "start")]
    return [line["resume_step"] for line in starts if line["rank"] == 0]


def micro_batches(sweep, trial):
    return [line["micro"] for line in sweep.trace if (line["trial"], line["event"]) == (trial, "settings")]


def test_out_of_memory_is_adapted_until_it_fits_and_the_trial_goes_on(eventful):
    (entry,) = eventful.notes.of("adapted")
    assert (entry["trial"], entry["changed"]) == ("t001", {"train.micro_batch_size": [4, 2]})
    assert entry["reason"].startswith("rank 1 ran out of device memory at step 7, asking for 2.50 GiB")
    assert (entry["rank"], entry["asked_bytes"], entry["step"]) == (1, 5 * 2**29, None)
    trial = eventful.outcome.state.trials["t001"]
    assert (trial.status, trial.adapted) == ("completed", {"train.micro_batch_size": 2})
    assert trial.point == {"train.learning_rate": 6e-4}
    assert micro_batches(eventful, "t001") == [4, 4, 2, 2]
    assert not lost(eventful, "t001")


def test_an_adaptation_is_of_its_trial_alone(eventful):
    assert set(micro_batches(eventful, "t002")) == {4}


def test_a_stopped_rank_is_said_not_to_answer_and_its_trial_is_started_again(eventful):
    entry = lost(eventful, "t003")[0]
    assert (entry["loss"], entry["rank"], entry["step"]) == ("hang", 1, None)
    assert "rank 1 (pid" in entry["cause"]
    assert "does not answer, last seen" in entry["cause"]
    assert len(resumed_from(eventful, "t003")) == 2


def test_a_rank_that_hangs_is_named_with_its_step_and_stack_once_hangs_are_too_many(eventful):
    assert [(entry["loss"], entry["rank"]) for entry in lost(eventful, "t003")] == [("hang", 1), ("hang", 0)]
    error = eventful.outcome.errors["t003"]
    assert (error["error"], error["rank"]) == ("TrialHung", 0)
    assert "trial t003 hung 2 times, more than failures.max_hangs=1" in error["message"]
    assert "rank 0 (pid" in error["message"]
    assert "is at step 7 (advance)" in error["message"]
    assert "lose_itself: time.sleep(3600)" in error["message"]
    assert "rank 1 waits in a collective at step 7" in error["message"]


def test_a_diverged_trial_is_not_tried_again_and_the_sweep_goes_on(eventful):
    error = eventful.outcome.errors["t000"]
    assert error["error"] == "Diverged"
    assert "the loss is nan" in error["message"]
    assert len(resumed_from(eventful, "t000")) == 1
    assert not lost(eventful, "t000")


def test_storage_trouble_and_a_lost_worker_are_counted_apart(eventful):
    assert [(entry["loss"], entry["rank"]) for entry in lost(eventful, "t002")] == [("storage", 0), ("worker", 0)]
    assert eventful.outcome.state.trials["t002"].status == "completed"


def test_what_befell_a_trial_is_journalled_when_it_happens(eventful):
    entries = read_journal(eventful.outcome.run.open())
    assert entries == eventful.notes.events
    kinds = [entry["kind"] for entry in entries if entry["trial"] == "t001"]
    assert kinds == ["suggested", "started", "adapted", "result", "completed"]


def test_nothing_is_left_behind(eventful):
    assert leftovers(eventful.trace, CPUS) == []


def test_the_same_user_error_of_every_trial_stops_the_sweep_at_once(ray_session, tmp_path):
    for trial in ("t000", "t001", "t002"):
        fault(tmp_path, trial, "data", rank=0, step=0)
    notes = Notes()
    with pytest.raises(DataError, match="column 'text' is not there"):
        sweep(tmp_path, RATES[:3], {}, notes)
    assert len(notes.of("suggested")) == len(notes.of("failed")) == 1
    assert notes.of("lost") == []
