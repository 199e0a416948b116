"""Rungs that are fractions, and their state rebuilt from the journal."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tlcore.recipe import recipe_from_dict, report_fractions
from tlcore.sweep.schedulers import make_scheduler, replay

pytestmark = pytest.mark.unit


def recipe(scheduler, epochs=1, mode="max", metric="eval_accuracy"):
    return recipe_from_dict(
        {
            "name": "n",
            "task": "text-classification",
            "model": {"source": "package:x/y"},
            "data": {"train": "train.csv"},
            "storage": "/tmp/store",
            "train": {"epochs": epochs},
            "search": {
                "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
                "trials": 4,
                "scheduler": scheduler,
                "mode": mode,
                "metric": metric,
            },
        }
    )


def rungs(scheduler):
    return {milestone: dict(recorded) for bracket in scheduler._brackets for milestone, recorded in bracket._rungs}


class Live:
    """A scheduler driven as Tune drives it, with the journal that would be written."""

    def __init__(self, recipe):
        self.scheduler, self.journal = make_scheduler(recipe), []

    def add(self, name):
        self.journal.append({"kind": "suggested", "trial": name, "point": {}})
        self.scheduler.on_trial_add(None, SimpleNamespace(trial_id=name))

    def report(self, name, fraction, value):
        """One result; the trial's stop is journalled too. Returns the decision."""
        trial = SimpleNamespace(trial_id=name)
        facts = {"progress": fraction, "eval_accuracy": value, "eval_loss": value}
        entry = {"eval_accuracy": value, "eval_loss": value}
        self.journal.append({"kind": "result", "trial": name, "fraction": fraction, "step": 1, "metrics": entry})
        done = fraction >= 1.0
        decision = TrialScheduler.STOP if done else self.scheduler.on_trial_result(None, trial, facts)
        if decision == TrialScheduler.STOP:
            self.scheduler.on_trial_complete(None, trial, facts)
            self.journal.append({"kind": "completed" if done else "stopped", "trial": name})
        return decision


@pytest.mark.parametrize("grace", [0.1, 0.2, 0.25, 0.3, 0.05, 1 / 3, 1 / 7, 0.01])
@pytest.mark.parametrize("reduction", [2, 3, 4, 2.5])
@pytest.mark.parametrize("epochs", [1, 3, 7])
def test_every_rung_is_met_by_the_report_fraction_that_is_it(grace, reduction, epochs):
    chosen = recipe({"asha": {"grace": grace, "reduction": reduction}}, epochs)
    live = Live(chosen)
    live.add("t000")
    for fraction in report_fractions(chosen):
        live.report("t000", fraction, 0.5)
        passed = {milestone: "t000" in recorded for milestone, recorded in rungs(live.scheduler).items()}
        assert passed == {milestone: milestone < fraction + 1e-6 for milestone in passed}


def test_the_worse_half_stops_at_its_rung():
    live = Live(recipe({"asha": {"grace": 0.25, "reduction": 2}}))
    for name in ("t000", "t001", "t002"):
        live.add(name)
    assert live.report("t000", 0.25, 0.8) == TrialScheduler.CONTINUE
    assert live.report("t001", 0.25, 0.5) == TrialScheduler.STOP
    assert live.report("t002", 0.25, 0.9) == TrialScheduler.CONTINUE


def test_with_mode_min_the_larger_value_stops():
    live = Live(recipe({"asha": {"grace": 0.25, "reduction": 2}}, mode="min", metric="eval_loss"))
    live.add("t000")
    live.add("t001")
    live.report("t000", 0.25, 0.2)
    assert live.report("t001", 0.25, 0.9) == TrialScheduler.STOP


@pytest.mark.parametrize("seed", range(8))
def test_replay_gives_the_rungs_and_the_next_decisions_of_the_scheduler_that_died(seed):
    """At any moment of a sweep: kill it, replay its journal, and go on; nothing differs from going on without the kill."""
    chosen = recipe({"asha": {"grace": 0.125, "reduction": 2}}, epochs=2)
    fractions, draw = report_fractions(chosen), random.Random(seed)
    live, reached, resumed = Live(chosen), {}, None
    for event in range(120):
        if event == 10 + 10 * seed:
            resumed = Live(chosen)
            assert replay(resumed.scheduler, live.journal) == set()
            assert rungs(resumed.scheduler) == rungs(live.scheduler)
            for name in reached:  # Tune is told of the unfinished trials again
                resumed.scheduler.on_trial_add(None, SimpleNamespace(trial_id=name))
        if not reached or (len(reached) < 5 and draw.random() < 0.3):
            name = f"t{event:03d}"
            reached[name] = 0
            for one in (live, resumed) if resumed else (live,):
                one.add(name)
        name, value = draw.choice(sorted(reached)), draw.random()
        fraction = fractions[reached[name]]
        decision = live.report(name, fraction, value)
        if resumed:
            assert resumed.report(name, fraction, value) == decision
        reached[name] += 1
        if decision == TrialScheduler.STOP:
            del reached[name]
    assert rungs(resumed.scheduler) == rungs(live.scheduler)


def test_a_stop_that_was_decided_and_not_written_is_found_by_replay():
    live = Live(recipe({"asha": {"grace": 0.25, "reduction": 2}}))
    for name, value in (("t000", 0.8), ("t001", 0.1)):
        live.add(name)
        live.report(name, 0.25, value)
    assert live.journal[-1]["kind"] == "stopped"
    fresh = make_scheduler(recipe({"asha": {"grace": 0.25, "reduction": 2}}))
    assert replay(fresh, live.journal[:-1]) == {"t001"}


def test_a_metric_that_was_not_finite_does_not_stop_the_replay():
    fresh = make_scheduler(recipe({"asha": {"grace": 0.25, "reduction": 2}}))
    journal = [
        {"kind": "suggested", "trial": "t000", "point": {}},
        {"kind": "result", "trial": "t000", "fraction": 0.25, "step": 1, "metrics": {"eval_accuracy": None}},
        {"kind": "lost", "trial": "t000"},
        {"kind": "resumed", "trial": None},
    ]
    assert replay(fresh, journal) == set()


def test_without_a_scheduler_nothing_stops():
    live = Live(recipe("none", epochs=3))
    assert type(live.scheduler) is FIFOScheduler
    live.add("t000")
    assert live.report("t000", 0.5, 0.0) == TrialScheduler.CONTINUE
