"""A sweep on real Ray with real collectives: warm slots, a killed rank, a failing rank, early stops, nothing left behind."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from ray_fixtures import CPUS
from sweep_bench import Notes, break_trial, kill_slot, leftovers, make_recipe, options, read_trace

from tlcore.errors import CannotPlace, DataError
from tlcore.storage import list_runs
from tlcore.storage.journal import read_journal
from tlcore.sweep import run_sweep
from tlcore.sweep.slots.places import made_by_actors

pytestmark = pytest.mark.integration

RATES = [5e-4, 6e-4, 1e-5, 4e-4, 7e-4, 2e-5]


@pytest.fixture(scope="module")
def eventful(ray_session, tmp_path_factory):
    """Six trials one after another: t001 loses rank 1 between two rungs, t003 fails on rank 1 while rank 0 waits for it, and the
    slot of t004 is killed after the first rung."""
    directory = tmp_path_factory.mktemp("eventful")
    break_trial(directory, "t001", "kill", rank=1, step=7)
    break_trial(directory, "t003", "raise", rank=1, step=3)

    def act(event):
        if (event["kind"], event["trial"], event.get("fraction")) == ("result", "t004", 0.25):
            kill_slot()

    notes = Notes(act)
    outcome = run_sweep(make_recipe(directory, RATES), options(directory, notes))
    return SimpleNamespace(directory=directory, notes=notes, outcome=outcome, trace=read_trace(directory))


def pids(sweep, trial, event="report"):
    return {line["pid"] for line in sweep.trace if (line["trial"], line["event"]) == (trial, event)}


def resumed_from(sweep, trial):
    """The step at which each rank of each life of a trial began."""
    return [line["resume_step"] for line in sweep.trace if (line["trial"], line["event"]) == (trial, "start")]


def reports(sweep, trial):
    return [(event["fraction"], event["step"]) for event in sweep.notes.of("result") if event["trial"] == trial]


def test_trials_end_as_asha_and_the_failure_say(eventful):
    status = {trial.trial: (trial.status, trial.fraction) for trial in eventful.outcome.trials}
    assert status == {
        "t000": ("completed", 1.0),
        "t001": ("completed", 1.0),
        "t002": ("stopped", 0.25),
        "t003": ("failed", 0.0),
        "t004": ("completed", 1.0),
        "t005": ("stopped", 0.25),
    }
    assert eventful.outcome.best.trial == "t004"
    assert eventful.outcome.complete
    assert eventful.outcome.metrics["t004"]["eval_accuracy"] == pytest.approx(0.7)


def test_one_worker_group_serves_all_trials_until_one_fails(eventful):
    groups = {}
    for event in eventful.notes.of("result"):
        groups.setdefault(event["group"], set()).add(event["trial"])
    assert list(groups.values()) == [{"t000", "t001", "t002"}, {"t004"}, {"t004", "t005"}]
    assert pids(eventful, "t005") < pids(eventful, "t004")
    assert pids(eventful, "t002") <= pids(eventful, "t001")
    assert pids(eventful, "t003", "start") == pids(eventful, "t002")
    assert not pids(eventful, "t004") & pids(eventful, "t002")


def test_a_killed_rank_costs_what_was_trained_since_the_last_checkpoint_and_no_more(eventful):
    (lost,) = [event for event in eventful.notes.of("lost") if event["trial"] == "t001"]
    assert (lost["rank"], lost["step"]) == (1, 5)
    assert resumed_from(eventful, "t001") == [None, None, 5, 5]
    assert reports(eventful, "t001") == [(0.25, 5), (0.5, 10), (1.0, 20)]


def test_a_killed_slot_is_replaced_and_its_trial_goes_on_after_its_last_report(eventful):
    (lost,) = [event for event in eventful.notes.of("lost") if event["trial"] == "t004"]
    assert lost["cause"] == "the slot's process died"
    assert resumed_from(eventful, "t004") == [None, None, 5, 5]
    assert reports(eventful, "t004") == [(0.25, 5), (0.5, 10), (1.0, 20)]


def test_an_error_on_one_rank_names_rank_and_message_while_the_other_rank_hangs(eventful):
    error = eventful.outcome.errors["t003"]
    assert (error["error"], error["rank"]) == ("TrainError", 1)
    assert error["message"].startswith("rank 1: ValueError: the answer is 42 (standin_session.py:")


def test_every_trial_that_ended_well_was_closed_on_every_rank(eventful):
    for trial in ("t000", "t001", "t002", "t004", "t005"):
        closed = [line["rank"] for line in eventful.trace if (line["trial"], line["event"]) == (trial, "close")]
        assert sorted(closed) == [0, 1], trial


def test_ranks_have_the_threads_of_their_cpus(eventful):
    assert {line["threads"] for line in eventful.trace if line["event"] == "start"} == {"2"}


def test_progress_reached_the_display_while_trials_ran(eventful):
    seen = [facts for snapshot in eventful.notes.snapshots for facts in snapshot.values()]
    assert any(facts["total_steps"] == 20 and facts["step"] > 0 for facts in seen)


def test_the_journal_in_the_store_is_what_was_shown(eventful):
    assert read_journal(eventful.outcome.run.open()) == eventful.notes.events
    kinds = [event["kind"] for event in eventful.notes.events if event["trial"] == "t000"]
    assert kinds == ["suggested", "started", "result", "result", "result", "completed"]


def test_nothing_is_left_behind(eventful):
    assert leftovers(eventful.trace, CPUS) == []


def test_what_can_never_be_placed_is_refused_before_a_run_exists(ray_session, tmp_path):
    recipe = make_recipe(tmp_path, [1e-4], resources={"workers": 8, "gpus_per_worker": 0})
    with pytest.raises(CannotPlace, match="8 workers with 1 CPU each") as refusal:
        run_sweep(recipe, options(tmp_path, Notes()))
    assert refusal.value.hint.startswith(f"set resources.workers to {CPUS} or less")
    assert list_runs(recipe.storage) == []


def test_an_error_in_the_request_stops_the_sweep_at_its_first_trial(ray_session, tmp_path):
    break_trial(tmp_path, "t000", "data", rank=0, step=0)
    notes = Notes()
    with pytest.raises(DataError, match="column 'text' is not there") as error:
        run_sweep(make_recipe(tmp_path, [1e-4, 2e-4, 3e-4]), options(tmp_path, notes))
    assert (error.value.exit_code, error.value.hint) == (2, "set data.text")
    assert len(notes.of("suggested")) == len(notes.of("failed")) == 1
    assert leftovers(read_trace(tmp_path), CPUS) == []


def kill_a_slot_when(groups):
    """From the first trial's start, wait until so many worker groups have asked for room, and kill a slot.

    Returns what `Notes` calls with every event.
    """
    threads = []

    def kill():
        while len(made_by_actors()) < groups:
            time.sleep(0.005)
        kill_slot()

    def act(event):
        if event["kind"] == "started" and not threads:
            threads.append(threading.Thread(target=kill))
            threads[0].start()

    return act


def test_room_of_workers_whose_slot_died_before_they_joined_is_free_again(ray_session, tmp_path):
    """There is room for one group of workers: where one is left behind, no other ever starts."""
    recipe = make_recipe(tmp_path, RATES[:1], budget={"hours": 0.3})
    outcome = run_sweep(recipe, options(tmp_path, notes := Notes(kill_a_slot_when(groups=1))))
    assert [trial.status for trial in outcome.trials] == ["completed"]
    assert [(event["trial"], event["cause"]) for event in notes.of("lost")] == [("t000", "the slot's process died")]
    assert leftovers(read_trace(tmp_path), CPUS) == []


@pytest.mark.long
def test_workers_that_start_beside_a_slot_that_dies_are_left_alone(ray_session, tmp_path):
    """The ranks of neither slot have joined: which group belongs to which slot, only Ray knows."""
    resources = {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": CPUS // 4}
    recipe = make_recipe(tmp_path, RATES[:2], budget={"hours": 0.3}, resources=resources)
    outcome = run_sweep(recipe, options(tmp_path, notes := Notes(kill_a_slot_when(groups=2))))
    assert {trial.status for trial in outcome.trials} <= {"completed", "stopped"}  # ASHA's word depends on who is first
    (lost,) = notes.of("lost")
    (kept,) = {"t000", "t001"} - {lost["trial"]}
    trace = read_trace(tmp_path)
    assert sorted(line["rank"] for line in trace if (line["trial"], line["event"]) == (kept, "start")) == [0, 1]
    assert leftovers(trace, CPUS) == []
