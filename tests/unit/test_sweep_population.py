"""PBT and PB2: what is taken over, what is changed, and that only committed state is ever seen."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ray.tune.experiment import Trial
from scheduler_bench import Live, recipe

from tlcore.recipe import sample_point
from tlcore.recipe.domains import contains
from tlcore.recipe.space import fits
from tlcore.sweep.schedule.explore import perturb
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.search.source import trials_wanted

pytestmark = pytest.mark.unit
LR, DECAY, BATCH = "train.learning_rate", "train.weight_decay", "train.global_batch_size"
PBT = {"interval": 0.25, "quantile": 0.5}


def population(scheduler="pbt", trials=2, **settings):
    live = Live(recipe({scheduler: {**PBT, **settings}}, trials=trials))
    for number in range(trials):
        live.add(f"t00{number}")
        live.start(f"t00{number}")
    return live


def takeovers(live):
    return [entry for entry in live.journal if entry["kind"] == "took_over"]


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_the_worse_trial_takes_over_the_better_ones_committed_state(scheduler):
    live = population(scheduler)
    live.report("t000", 0.25, 0.9)
    assert live.report("t001", 0.25, 0.1) == "NOOP"
    (taken,) = takeovers(live)
    donor = live.seats.seats["t000"]
    assert (taken["trial"], taken["parent"], taken["step"], taken["fraction"]) == ("t001", "t000", 250, 0.25)
    assert taken["changed"] == {key: [donor.config[key], taken["point"][key]] for key in taken["changed"]} != {}
    assert (live.status("t001"), live.seats.seats["t001"].config) == (Trial.PAUSED, taken["point"])


def test_a_save_that_was_not_committed_is_never_taken_over():
    """The donor reported at 0.5, and died or failed before that save was committed: its last committed one is taken."""
    live = population()
    live.report("t000", 0.25, 0.9)
    live.report("t000", 0.5, 0.95, committed=False)
    live.report("t001", 0.25, 0.1)
    (taken,) = takeovers(live)
    assert (taken["step"], taken["fraction"], taken["metrics"]["eval_accuracy"]) == (250, 0.25, 0.9)


def test_without_any_committed_save_nothing_is_taken_over():
    live = population()
    live.report("t000", 0.25, 0.9, committed=False)
    assert live.report("t001", 0.25, 0.1) == "CONTINUE"
    assert takeovers(live) == []


def test_a_takeover_that_could_not_be_done_is_not_done_in_the_replay_either():
    live = population()
    live.take_over = lambda seat, donor, propose: None  # the donor's checkpoint is gone
    live.report("t000", 0.25, 0.9)
    live.report("t001", 0.25, 0.1)
    del live.take_over
    live.report("t000", 0.5, 0.9)
    assert live.resumed().replayed.pending == []
    assert live.resumed().status("t001") == Trial.RUNNING


def test_a_copy_has_committed_what_its_donor_had():
    live = population()
    live.report("t000", 0.25, 0.9)
    live.report("t001", 0.25, 0.1)
    assert live.seats.seats["t001"].committed == live.seats.seats["t000"].committed


def test_the_population_waits_for_its_members_in_step_and_for_none_that_failed():
    live = population(trials=3, synchronous=True)
    assert live.report("t000", 0.25, 0.9) == "PAUSE"
    assert live.report("t001", 0.25, 0.1) == "PAUSE"
    assert live.seats.choose() is None
    live.end("t002", "failed")
    assert {live.seats.choose().trial_id} <= {"t000", "t001"}


def test_tunes_own_population_waits_for_ever():
    """When this fails, `_let_go` is not needed any more."""
    live = population(trials=3, synchronous=True)
    live.scheduler._let_go = lambda controller, ended: None
    live.report("t000", 0.25, 0.9)
    live.report("t001", 0.25, 0.1)
    live.end("t002", "failed")
    assert live.seats.choose() is None


def in_turn(live, value, most=200):
    """With room for one trial at a time, `value(fraction)` at each interval; how many intervals it took to the end of all."""
    for count in range(most):
        chosen = live.seats.choose()
        if chosen is None:
            return count
        name = chosen.trial_id
        live.start(name)
        while (fraction := live.reached[name] + 0.25) and live.report(name, fraction, value(fraction)) == "CONTINUE":
            pass
    raise AssertionError(f"the population is still at {live.reached}")


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_ends_where_who_goes_ahead_is_worse_than_all_behind(scheduler):
    """With room for one trial, the first went back to its donor's time at every interval, and no other ever ran."""
    live = Live(recipe({scheduler: PBT}, trials=4))
    for number in range(4):
        live.add(f"t00{number}")
    in_turn(live, lambda fraction: 1 - fraction)
    assert set(live.reached.values()) == {1.0}
    gone = [entry["trial"] for entry in takeovers(live)]
    assert gone and max(gone.count(name) for name in live.reached) <= 3, "once from each interval"
    assert not live.resumed().seats.get_live_trials()


def test_nobody_takes_over_what_is_no_better():
    live = Live(recipe({"pbt": PBT}, trials=4))
    for number in range(4):
        live.add(f"t00{number}")
    assert in_turn(live, lambda fraction: 0.4) == 16
    assert takeovers(live) == []


@pytest.mark.parametrize("interval", [0.1, 0.05, 0.3, 1 / 3, 1 / 7])
def test_every_interval_is_looked_at(interval):
    """In floats 0.3 - 0.2 is less than 0.1."""
    live = Live(recipe({"pbt": {"interval": interval}}, trials=2))
    live.add("t000")
    live.start("t000")
    count = 1
    while count * interval < 0.999:
        live.report("t000", count * interval, 0.5)
        assert live.scheduler._trial_state[live.seats.seats["t000"]].last_perturbation_time == count
        count += 1


def test_what_is_changed_stays_in_its_domain_and_is_accepted():
    chosen = recipe({"pbt": PBT})
    for number in range(60):
        point = sample_point(chosen, 0, number)
        moved = perturb(chosen, point, (LR, DECAY, BATCH), 0.2, (0.5, 2.0), f"s/{number}")
        assert all(contains(chosen.search.space[key], value) for key, value in moved.items())
        assert fits(chosen, moved) is None


def test_without_drawing_anew_a_number_moves_by_a_factor_and_a_list_by_one_place():
    space = {LR: {"loguniform": [1e-5, 1e-3]}, BATCH: {"choice": [8, 16, 32, 64]}, DECAY: {"uniform": [0.0, 0.1]}}
    chosen = recipe({"pbt": PBT}, space=space)
    point = {LR: 1e-4, BATCH: 16, DECAY: 0.05}
    found = [perturb(chosen, point, (LR, BATCH), 0.0, (0.8, 1.2), str(number)) for number in range(40)]
    assert {round(one[LR] / 1e-4, 6) for one in found} == {0.8, 1.2}
    assert {one[BATCH] for one in found} == {8, 32}
    assert {one[DECAY] for one in found} == {0.05}


def test_a_changed_condition_takes_its_settings_along():
    space = {
        LR: {"loguniform": [1e-5, 1e-3]},
        "train.lr_schedule": {"choice": ["linear", "constant"]},
        "train.warmup_ratio": {"uniform": [0.1, 0.2], "when": {"train.lr_schedule": "linear"}},
    }
    chosen = recipe({"pbt": PBT}, space=space)
    for number in range(20):
        point = {LR: 1e-4, "train.lr_schedule": "constant"}
        moved = perturb(chosen, point, ("train.lr_schedule",), 0.0, (0.8, 1.2), str(number))
        assert ("train.warmup_ratio" in moved) == (moved["train.lr_schedule"] == "linear")


def test_decisions_take_nothing_from_the_global_random_numbers():
    points = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        live = population("pb2", trials=3)
        for fraction in (0.25, 0.5):
            for number in range(3):
                if live.status(f"t00{number}") == Trial.RUNNING:
                    live.report(f"t00{number}", fraction, number * fraction)
        points.append([entry["point"] for entry in takeovers(live)])
    assert points[0] == points[1] != []


def test_pb2_asks_for_what_it_needs(monkeypatch):
    from tlcore.errors import RequestError
    from tlcore.sweep.schedule import population as module

    chosen = recipe({"pb2": PBT})
    assert trials_wanted(chosen) == 4
    monkeypatch.setattr(module, "_is_there", lambda name: name != "sklearn")
    with pytest.raises(RequestError, match=r"search\.scheduler pb2 needs scikit-learn") as error:
        make_seats(chosen, None)
    assert "tlcore[pb2]" in error.value.hint
