"""Conductor, trial source and admission together, under a Tune of a few lines: whatever the shapes, every trial comes to its end,
no more runs at once than there is room for, and survivors come before new trials."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial
from ray.tune.registry import register_trainable
from scheduler_bench import recipe

from tlcore.recipe import recipe_from_dict, report_fractions
from tlcore.storage.journal import SweepState
from tlcore.sweep.cluster.resources import Node, has_room, shape_of
from tlcore.sweep.conductor import Conductor
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay
from tlcore.sweep.search.searchers import make_searcher
from tlcore.sweep.search.source import TrialSource, Waiting
from tlcore.sweep.slots.slot import REPORT, Slot

pytestmark = pytest.mark.unit


class Sweep:
    """A sweep over nodes with so many CPUs each; time is the number of reports."""

    def __init__(self, chosen, cpus, journal=()):
        self.recipe, self.nodes = chosen, [Node({"CPU": number}, {}) for number in cpus]
        self.journal, self.state, self.trials = list(journal), SweepState.from_entries(journal), []
        self.conductor = Conductor(self, lambda decided, check: True)
        self.seats = self.conductor.seats = make_seats(chosen, self.conductor)
        Replay(self.seats, self.journal)
        if self.journal:
            self.record("resumed", of=chosen.search.trials)
            self.seats.resume(chosen.search.trials)
        waiting = Waiting(
            lambda trial: self.seats.seats[trial].status == Trial.PAUSED, self.conductor.has_ready, pauses=True
        )
        self.source = self.conductor.hands = TrialSource(
            chosen,
            {},
            self.state,
            make_searcher(chosen),
            waiting,
            shape_of=lambda one: shape_of(one, False),
            room=lambda shape, live, idle: has_room(shape, live, self.nodes),
            record=self.record,
        )
        register_trainable("slot-under-test", Slot)
        spec = {"run": "slot-under-test", "storage": None, "checkpoint_config": CheckpointConfig()}
        self.source.add_configurations([SimpleNamespace(spec=spec)])

    def record(self, kind, trial=None, **facts):
        entry = {"kind": kind, "trial": trial, **facts}
        self.journal.append(entry)
        self.state.apply(entry)
        if kind == "suggested":
            self.seats.add(trial, facts["point"], facts["of"])

    def result(self, trial, report):
        self.record("result", trial, **report)

    def running(self):
        return [trial for trial in self.trials if trial.status == Trial.RUNNING]

    def start(self):
        """As Tune does in one step: new trials, what the scheduler has ready, then slots for both."""
        while (trial := self.source.next_trial()) is not None:
            self.trials.append(trial)
            if trial.status == Trial.PENDING:
                self._run(trial)
        while (trial := self.conductor.choose_trial_to_run(self)) is not None:
            self._run(trial)
        taken = sum(trial.config["workers"] for trial in self.running())
        assert taken <= sum(node.resources["CPU"] for node in self.nodes)

    def _run(self, trial):
        trial.set_status(Trial.RUNNING)
        self.record("started", trial.trial_id, workers=trial.config["workers"])
        self.seats.start(trial.trial_id)

    def report(self, trial, value):
        reached = self.state.trials[trial.trial_id].fraction
        fraction = next(one for one in report_fractions(self.recipe) if one > reached + 1e-9)
        step = round(fraction * 100)
        facts = {"fraction": fraction, "step": step, "checkpoint_step": step, "metrics": {"eval_accuracy": value}}
        if fraction == 1.0:
            self.result(trial.trial_id, facts)
            self.seats.last_report(trial.trial_id, facts)
            self.end(trial, "completed")
            return
        decision = self.conductor.on_trial_result(self, trial, {REPORT: json.dumps(facts)})
        if decision == "PAUSE":
            trial.set_status(Trial.PAUSED)
        elif decision == "STOP":
            self.end(trial, "stopped")

    def end(self, trial, kind):
        self.conductor.on_trial_complete(self, trial, {})
        self.source.on_trial_complete(trial.trial_id)
        trial.set_status(Trial.TERMINATED)
        self.record(kind, trial.trial_id)

    def run(self, draw, reports=10**6):
        for _ in range(reports):
            self.start()
            if not self.running():
                return
            self.report(draw.choice(self.running()), draw.random())


def growing(workers, trials):
    data = recipe("none", trials=trials).to_dict()
    data["resources"]["workers"] = workers[0]
    data["search"]["scheduler"] = {"asha": {"workers": workers}}
    return recipe_from_dict(data)


def kinds(sweep, trial):
    return [entry["kind"] for entry in sweep.journal if entry.get("trial") == trial]


@pytest.mark.parametrize("cpus", [[4], [5], [8], [3, 3], [1, 1, 1, 1], [16]], ids=str)
@pytest.mark.parametrize("workers", [[1, 2, 4], [1, 1, 4], [2, 4, 4], [1, 4, 2], [4, 2, 1]], ids=str)
def test_every_sweep_ends_however_much_its_survivors_want(workers, cpus):
    sweep = Sweep(growing(workers, 7), cpus)
    sweep.run(random.Random(len(cpus)))
    assert len(sweep.state.trials) == 7
    assert all(trial.ended for trial in sweep.state.trials.values())
    assert sweep.source.is_finished()
    for trial in sweep.state.trials:
        had = [entry["workers"] for entry in sweep.journal if (entry["kind"], entry["trial"]) == ("started", trial)]
        changes = [workers[0]]
        for number in workers[1:]:
            if number != changes[-1]:
                changes.append(number)
        assert had == changes[: len(had)]


def test_where_all_run_on_one_worker_and_every_survivor_wants_all_there_is_they_go_one_by_one_before_new_trials():
    sweep = Sweep(growing([1, 4, 4], 8), [4])
    sweep.start()
    assert len(sweep.running()) == 4
    for trial in list(sweep.running()):
        sweep.report(trial, 0.5)
        assert kinds(sweep, trial.trial_id)[-1] == "paused", "as good as the others: it survives"
        sweep.start()
        assert len(sweep.state.trials) == 4, "no new trial while survivors wait"
    assert [trial.config["workers"] for trial in sweep.running()] == [4]
    sweep.run(random.Random(0))
    assert all(trial.ended for trial in sweep.state.trials.values())


@pytest.mark.parametrize("cut", range(3, 24, 2))
def test_a_second_driver_goes_on_with_the_workers_of_where_each_trial_stands(cut):
    chosen = growing([1, 2, 4], 6)
    first = Sweep(chosen, [4])
    first.run(random.Random(1), reports=cut)
    second = Sweep(chosen, [4], first.journal)
    second.run(random.Random(2))
    assert all(trial.ended for trial in second.state.trials.values())
    for trial in second.state.trials:
        reached = 0.0
        for entry in (entry for entry in second.journal if entry.get("trial") == trial):
            if entry["kind"] == "started":
                assert entry["workers"] == {0.0: 1, 0.25: 2, 0.5: 4}[reached]
            reached = entry["fraction"] if entry["kind"] == "result" else reached
