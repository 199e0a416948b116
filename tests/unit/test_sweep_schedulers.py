"""Rungs that are fractions, and every scheduler's state rebuilt from the journal: Tune's own classes, stub results, no Ray."""

from __future__ import annotations

import math
from functools import cache

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from scheduler_bench import Live, play, recipe, state_of, stream

from tlcore.recipe import report_fractions

pytestmark = pytest.mark.unit

ALL = {
    "none": "none",
    "asha": {"asha": {"grace": 0.125, "reduction": 2}},
    "asha with more workers": {"asha": {"grace": 0.125, "reduction": 2, "workers": [1, 2, 2, 4]}},
    "median": {"median": {"grace": 0.25, "interval": 0.125, "min_trials": 2}},
    "hyperband": {"hyperband": {"brackets": 3, "reduction": 2}},
    "bohb": {"bohb": {"brackets": 3, "reduction": 2}},
    "pbt": {"pbt": {"interval": 0.125, "quantile": 0.34}},
    "pbt in step": {"pbt": {"interval": 0.125, "quantile": 0.34, "synchronous": True}},
    "pb2": {"pb2": {"interval": 0.34, "quantile": 0.34}},
}
TRIALS = 9


@cache
def sweep(name):
    algorithm = "bohb" if name == "bohb" else "random"
    trials = 4 if name == "pb2" else TRIALS  # its model takes a second a takeover
    return recipe(ALL[name], trials=trials, algorithm=algorithm, epochs=2)


def rungs(scheduler):
    return {milestone: dict(recorded) for bracket in scheduler._brackets for milestone, recorded in bracket._rungs}


@pytest.mark.parametrize("grace", [0.1, 0.2, 0.25, 0.3, 0.05, 1 / 3, 1 / 7, 0.01])
@pytest.mark.parametrize("reduction", [2, 3, 4, 2.5])
@pytest.mark.parametrize("epochs", [1, 3, 7])
def test_every_rung_of_asha_is_met_by_the_report_fraction_that_is_it(grace, reduction, epochs):
    chosen = recipe({"asha": {"grace": grace, "reduction": reduction}}, epochs)
    live = Live(chosen)
    live.add("t000")
    live.start("t000")
    for fraction in report_fractions(chosen):
        live.report("t000", fraction, 0.5)
        passed = {milestone: "t000" in recorded for milestone, recorded in rungs(live.scheduler).items()}
        assert passed == {milestone: milestone < fraction + 1e-6 for milestone in passed}


@pytest.mark.parametrize(
    ("metric", "mode", "values"), [("eval_accuracy", "max", (0.8, 0.5, 0.9)), ("eval_loss", "min", (0.5, 0.8, 0.4))]
)
def test_the_worse_half_stops_at_its_rung(metric, mode, values):
    live = Live(recipe({"asha": {"grace": 0.25, "reduction": 2}}, mode=mode, metric=metric))
    decisions = []
    for name, value in zip(("t000", "t001", "t002"), values, strict=True):
        live.add(name)
        live.start(name)
        decisions.append(live.report(name, 0.25, value))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP, TrialScheduler.CONTINUE]


def test_a_trial_below_the_median_of_the_others_stops():
    live = Live(recipe({"median": {"grace": 0.25, "interval": 0.25, "min_trials": 3}}))
    for name, value in (("t000", 0.8), ("t001", 0.7), ("t002", 0.9)):
        live.add(name)
        live.start(name)
        assert live.report(name, 0.25, value) == TrialScheduler.CONTINUE
    live.add("t003")
    live.start("t003")
    assert live.report("t003", 0.25, 0.75) == TrialScheduler.STOP


@pytest.mark.parametrize("fail", [0.0, 0.05], ids=["sound", "failing"])
@pytest.mark.parametrize("slots", [1, 2, 20])
@pytest.mark.parametrize("name", ALL)
def test_every_sweep_comes_to_its_end_with_any_number_of_slots(name, slots, fail):
    """No trial is left waiting for ever."""
    live = Live(sweep(name))
    play(live, stream(slots), slots, fail=fail)
    assert len(live.seats.seats) == live.recipe.search.trials
    assert {seat.trial_id for seat in live.seats.get_live_trials()} == set()
    assert any(entry["kind"] == "completed" for entry in live.journal)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ALL)
def test_replay_gives_the_state_and_the_next_decisions_of_the_scheduler_that_died(name, seed):
    """At any moment of a sweep: kill it, replay its journal, and go on; nothing differs from going on without the kill."""
    live = Live(sweep(name))
    play(live, stream(seed), stop_after=8 + 9 * seed, fail=0.02)
    resumed = live.resumed()
    assert state_of(resumed.seats) == state_of(live.seats)
    assert (resumed.replayed.stopped, resumed.replayed.pending) == (set(), [])
    for one in (live, resumed):
        one.note_resume()
        play(one, stream(100 + seed), fail=0.02)
    assert resumed.journal == live.journal
    assert state_of(resumed.seats) == state_of(live.seats)


@pytest.mark.parametrize("name", [name for name in ALL if name != "none"])
def test_a_kill_after_any_entry_loses_no_decision(name):
    """The journal cut anywhere: replay finds what was decided and not written, and what is written then is what was."""
    live = Live(sweep(name))
    play(live, stream(3))
    kinds = set()
    for cut in range(1, len(live.journal)):
        missing = live.journal[cut]
        if live.journal[cut - 1]["kind"] != "result" or live.journal[cut - 1]["fraction"] == 1.0:
            continue
        resumed = Live(live.recipe, live.journal[:cut])
        if missing["kind"] == "stopped":
            assert missing["trial"] in resumed.replayed.stopped
        elif missing["kind"] == "took_over":
            decided = resumed.replayed.pending[0]
            assert (decided.trial, decided.parent, decided.step) == (
                missing["trial"],
                missing["parent"],
                missing["step"],
            )
            assert decided.point == missing["point"]
        elif missing["kind"] == "paused":
            assert resumed.status(missing["trial"]) == Trial.PAUSED
        kinds.add(missing["kind"])
    assert kinds & {"stopped", "took_over", "paused"}


def test_a_metric_that_was_not_finite_does_not_stop_the_replay():
    live = Live(recipe({"asha": {"grace": 0.25, "reduction": 2}}))
    live.add("t000")
    live.start("t000")
    live.report("t000", 0.25, None)
    assert math.isnan(live.seats.seats["t000"].result["eval_accuracy"])
    assert live.resumed().replayed.stopped == set()


def test_without_a_scheduler_nothing_stops():
    live = Live(recipe("none", epochs=3))
    assert type(live.scheduler) is FIFOScheduler
    live.add("t000")
    assert live.report("t000", 0.5, 0.0) == TrialScheduler.CONTINUE


def test_a_slot_that_dies_costs_a_trial_neither_its_bracket_nor_its_place_in_the_population():
    """Tune tells a scheduler that such a trial failed and adds it anew."""
    for name in ("hyperband", "pbt"):
        live = Live(sweep(name))
        play(live, stream(1), stop_after=14)
        running = next(seat.trial_id for seat in live.seats.seats.values() if seat.status == Trial.RUNNING)
        before = state_of(live.seats)
        live.seats.requeue(running)
        live.seats.start(running)
        assert state_of(live.seats) == before
