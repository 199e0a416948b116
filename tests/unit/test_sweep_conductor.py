"""The order of one report: the result first, then each decision, and only then anything is done."""

from __future__ import annotations

import json

import pytest
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from scheduler_bench import recipe

from tlcore.errors import DataError
from tlcore.recipe import sample_point
from tlcore.sweep.conductor import Conductor
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.slots.group import Cancelled
from tlcore.sweep.slots.slot import REPORT

pytestmark = pytest.mark.unit


class TuneTrial:
    """As much of Tune's trial as is looked at."""

    failure = None

    def __init__(self, name):
        self.trial_id, self.status, self.is_saving = name, Trial.RUNNING, False


class World:
    """History, hands, clone and Tune's controller in one, noting what is asked of it in order."""

    def __init__(self, scheduler, trials=2, clonable=True, algorithm="random"):
        self.notes, self.trials, self.room, self.clonable = [], {}, True, clonable
        chosen = recipe(scheduler, trials=trials, algorithm=algorithm)
        self.conductor = Conductor(self, self.clone)
        self.seats = self.conductor.seats = make_seats(chosen, self.conductor)
        self.conductor.hands = self
        for number in range(trials):
            name = f"t00{number}"
            self.seats.add(name, sample_point(chosen, 0, number), trials)
            self.seats.start(name)
            self.trials[name] = TuneTrial(name)

    def record(self, kind, trial=None, **facts):
        self.notes.append((kind, trial))

    def result(self, trial, report):
        self.notes.append(("result", trial))

    def clone(self, decided, check):
        if check:
            return self.clonable
        self.notes.append(("cloned", decided.trial))
        return True

    def trial(self, name):
        return self.trials.get(name)

    def start(self, trials):
        return trials[0] if self.room else None

    def move(self, trial, name):
        self.notes.append(("moved", name))

    def pause_trial(self, trial, should_checkpoint):
        trial.status = Trial.PAUSED
        self.notes.append(("put aside", trial.trial_id))

    def stop_trial(self, trial):
        self.notes.append(("stopping", trial.trial_id))
        self.conductor.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED

    def report(self, name, fraction, value):
        step = round(fraction * 100)
        facts = {"fraction": fraction, "step": step, "checkpoint_step": step, "metrics": {"eval_accuracy": value}}
        self.notes.clear()
        return self.conductor.on_trial_result(self, self.trials[name], {REPORT: json.dumps(facts)})


def test_a_takeover_is_written_before_it_is_cloned_and_cloned_before_the_trial_can_start():
    world = World({"pbt": {"interval": 0.25, "quantile": 0.5}})
    world.report("t000", 0.25, 0.9)
    assert world.report("t001", 0.25, 0.1) == "NOOP"
    order = [kind for kind, trial in world.notes if trial == "t001"]
    assert order == ["result", "put aside", "took_over", "cloned", "moved"]


def test_a_trial_that_saves_on_its_way_to_being_paused_is_left_to_it():
    """Tune would remember the stop of that save, and stop the trial at its next one."""
    world = World({"pbt": {"interval": 0.25, "quantile": 0.5, "synchronous": True}})
    world.report("t001", 0.25, 0.1)
    world.trials["t001"].is_saving = True
    world.report("t000", 0.25, 0.9)
    assert ("took_over", "t001") in world.notes
    assert ("put aside", "t001") not in world.notes


def test_a_donor_whose_checkpoint_is_gone_is_not_taken_over():
    world = World({"pbt": {"interval": 0.25, "quantile": 0.5}}, clonable=False)
    world.report("t000", 0.25, 0.9)
    world.report("t001", 0.25, 0.1)
    assert world.notes == [("result", "t001")]


def bracket():
    world = World({"bohb": {"brackets": 2, "reduction": 2}}, trials=2, algorithm={"bohb": {}})
    assert world.report("t000", 0.5, 0.1) == "PAUSE"
    assert world.notes == [("result", "t000"), ("paused", "t000")]
    return world


def test_a_trial_that_waits_is_stopped_through_tune_after_the_result_that_decided_it():
    world = bracket()
    assert world.report("t001", 0.5, 0.9) == "CONTINUE"
    assert world.notes == [("result", "t001"), ("stopping", "t000")]
    assert world.seats.seats["t000"].is_finished()


def test_a_trial_that_waits_starts_when_it_is_chosen_when_tune_has_paused_it_and_when_there_is_room():
    world = World({"bohb": {"brackets": 2, "reduction": 2}}, algorithm={"bohb": {}})
    world.report("t000", 0.5, 0.9)
    assert world.report("t001", 0.5, 0.1) == "STOP"
    tunes = world.trials["t000"]
    assert world.conductor.choose_trial_to_run(world) is None  # Tune has not paused it yet
    tunes.status = Trial.PAUSED
    world.room = False
    assert world.conductor.choose_trial_to_run(world) is None
    assert world.conductor.has_ready()
    world.room = True
    assert world.conductor.choose_trial_to_run(world) is tunes


def test_a_slot_that_died_is_no_failure_to_the_scheduler():
    world = bracket()
    again = world.trials["t001"]
    again.status = Trial.ERROR  # so Tune has it while it takes a trial up again
    world.conductor.on_trial_error(world, again)
    assert world.seats.seats["t001"].status == Trial.PENDING
    again.status = Trial.RUNNING
    world.conductor.on_trial_error(world, again)
    assert world.seats.seats["t001"].status == Trial.ERROR


def test_survivors_of_a_rung_after_which_workers_change_wait_the_deepest_and_best_first_and_before_new_trials():
    world = World({"asha": {"workers": [1, 1, 2]}}, trials=4)
    for name in world.trials:
        assert world.report(name, 0.25, 0.5) == "CONTINUE", "as many workers as before"
    assert world.report("t000", 0.5, 0.5) == "PAUSE"
    assert world.notes == [("result", "t000"), ("paused", "t000")]
    assert world.report("t001", 0.5, 0.4) == "STOP"
    assert world.report("t002", 0.5, 0.9) == "PAUSE"
    assert not world.conductor.has_ready(), "Tune has not paused them yet"
    for name in ("t000", "t002"):
        world.trials[name].status = Trial.PAUSED
    assert world.conductor.has_ready()
    assert world.conductor.choose_trial_to_run(world) is world.trials["t002"]
    world.room = False
    assert world.conductor.choose_trial_to_run(world) is None


@pytest.mark.parametrize("scheduler", [{"hyperband": {}}, {"asha": {}}, {"median": {}}])
def test_a_trial_that_left_because_the_sweep_stops_is_no_failure_to_the_scheduler(scheduler):
    world = World(scheduler)
    trial = world.trials["t000"]
    trial.failure = RayTaskError("step", "", Cancelled("the sweep is being stopped"))
    world.conductor.on_trial_error(world, trial)
    assert world.seats.seats["t000"].status == Trial.PENDING
    assert world.notes == []

    trial.failure = RayTaskError("step", "", DataError("no column 'text'"))
    world.conductor.on_trial_error(world, trial)
    assert world.seats.seats["t000"].status == Trial.ERROR
