"""HyperBand with few trials at a time: what Tune's does, and ours."""

from __future__ import annotations

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, TrialScheduler
from ray.tune.schedulers.hyperband import _Bracket
from scheduler_bench import Live, play, recipe, stream

from tlcore.sweep.schedule import brackets
from tlcore.sweep.schedule.seats import TIME

pytestmark = pytest.mark.unit
SETTINGS = {"brackets": 3, "reduction": 2}


def hyperband(trials=10, name="hyperband"):
    algorithm = "bohb" if name == "bohb" else "random"
    return Live(recipe({name: SETTINGS}, trials=trials, algorithm=algorithm))


def started(live, *names):
    for name in names:
        live.add(name)
        live.start(name)


def sizes(live):
    return [len(bracket._all_trials) for band in live.scheduler._hyperbands for bracket in band]


def paused(live):
    return [entry["trial"] for entry in live.journal if entry["kind"] == "paused"]


def test_with_two_slots_tunes_own_bracket_never_halves_and_ours_does(monkeypatch):
    live = hyperband()
    play(live, stream(0), slots=2)
    assert sizes(live) == [3, 3, 4]
    assert paused(live)
    assert [entry["kind"] for entry in live.journal].count("stopped") == 4

    monkeypatch.setattr(brackets.Bracket, "filled", _Bracket.filled)
    tunes = hyperband()
    play(tunes, stream(0), slots=2)
    assert sizes(tunes) == [10]
    assert not paused(tunes)


def test_a_bracket_is_not_halved_before_its_trials_have_come():
    live = hyperband(name="bohb")
    started(live, "t000", "t001")
    assert [live.report(name, 0.25, value) for name, value in (("t000", 0.1), ("t001", 0.2))] == ["PAUSE", "PAUSE"]
    assert live.seats.choose() is None
    started(live, "t002", "t003")
    assert live.report("t002", 0.25, 0.3) == TrialScheduler.PAUSE
    assert live.report("t003", 0.25, 0.4) == TrialScheduler.CONTINUE
    assert [live.status(f"t00{n}") for n in range(4)] == [
        Trial.TERMINATED,
        Trial.TERMINATED,
        Trial.PAUSED,
        Trial.RUNNING,
    ]
    assert live.seats.choose().trial_id == "t002"


def test_the_last_bracket_is_halved_though_it_is_not_full():
    live = hyperband(trials=3, name="bohb")
    started(live, "t000", "t001", "t002")
    live.report("t000", 0.25, 0.1)
    live.report("t001", 0.25, 0.9)
    assert live.report("t002", 0.25, 0.5) == TrialScheduler.CONTINUE
    assert (live.status("t000"), live.seats.choose().trial_id) == (Trial.TERMINATED, "t001")


def test_after_a_halving_a_failed_trial_does_not_leave_the_others_waiting():
    live = hyperband(name="bohb")
    started(live, "t000", "t001", "t002", "t003")
    for n in range(4):
        live.report(f"t00{n}", 0.25, n / 10)
    live.start("t002")
    assert live.report("t002", 0.5, 0.5) == TrialScheduler.PAUSE
    live.end("t003", "failed")
    assert live.seats.choose().trial_id == "t002"


def test_in_tune_it_does():
    """When this fails, `_process_bracket` need not reset the flag any more."""
    own = HyperBandScheduler(TIME, "m", "max", max_t=4, reduction_factor=2)
    bracket = own._create_bracket(2)
    bracket.is_being_processed = True
    bracket._live_trials = {}
    own._process_bracket(None, bracket)
    assert bracket.is_being_processed


def test_fewer_trials_than_were_awaited_free_those_that_wait():
    live = hyperband(trials=8, name="bohb")
    started(live, "t000", "t001")
    live.report("t000", 0.25, 0.1)
    live.report("t001", 0.25, 0.9)
    fewer = Live(recipe({"bohb": SETTINGS}, trials=2, algorithm="bohb"), live.journal)
    assert fewer.seats.choose() is None
    fewer.note_resume()
    assert fewer.seats.choose().trial_id == "t000"
    fewer.start("t000")
    assert fewer.seats.choose().trial_id == "t001"


@pytest.mark.parametrize(("reduction", "depth"), [(2, 3), (3, 3), (7, 3), (11, 5), (3, 7)])
def test_every_first_rung_is_a_whole_number(reduction, depth):
    live = Live(recipe({"hyperband": {"brackets": depth, "reduction": reduction}}))
    assert [live.scheduler._get_r0(s) for s in range(depth)] == [reduction ** (depth - 1 - s) for s in range(depth)]


def test_tune_rounds_the_first_rung_away():
    own = HyperBandScheduler("t", "m", "max", max_t=49, reduction_factor=7)
    assert own._get_r0(2) == 0


@pytest.mark.parametrize("name", ["hyperband", "bohb"])
def test_nobody_waits_for_a_trial_that_was_dropped(name):
    live = hyperband(trials=3, name=name)
    started(live, "t000", "t001")
    first = 0.25 if name == "bohb" else 1.0
    if name == "bohb":
        assert [live.report(each, first, value) for each, value in (("t000", 0.1), ("t001", 0.2))] == ["PAUSE", "PAUSE"]
        assert live.seats.choose() is None
    live.write("dropped", "t002", point={}, of=3)
    live.seats.drop("t002", {}, 3)
    assert not live.seats.more_to_come()
    assert live.status("t002") == Trial.ERROR
    if name == "bohb":
        assert live.seats.choose() is not None
    again = Live(live.recipe, live.journal)
    assert again.status("t002") == Trial.ERROR
    assert not again.seats.more_to_come()
