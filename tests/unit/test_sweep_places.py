"""How many trials of a sweep run at a time, and what is left of a trial's slots after a resume."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from test_sweep_admission import Sweep, growing
from test_sweep_search import Harness, recipe, suggested

from tlcore.recipe import recipe_from_dict
from tlcore.sweep.search.source import Waiting

pytestmark = pytest.mark.unit


def test_no_more_trials_at_a_time_than_the_recipe_says_however_much_room_there_is():
    harness = Harness(recipe(at_once=2))
    assert [trial.trial_id for trial in harness.take()] == ["t000", "t001"]
    assert len(harness.written) == 2, "what waits is not suggested yet"
    harness.source.on_trial_complete("t001")
    assert [trial.trial_id for trial in harness.take()] == ["t002"]


def test_members_of_a_population_take_turns_within_the_same_limit():
    harness = Harness(recipe(at_once=1), waiting=Waiting(population=True, pauses=True))
    members = harness.take()
    assert [trial.status for trial in members] == [Trial.PAUSED] * 4
    first = harness.source.start(members)
    assert first is members[0]
    first.set_status(Trial.RUNNING)
    assert harness.source.start(members[1:]) is None
    first.set_status(Trial.PAUSED)
    assert harness.source.start(members[1:]) is members[1]


def test_what_a_resume_takes_up_is_counted_too():
    harness = Harness(recipe(at_once=2), [suggested(f"t00{n}") for n in range(3)])
    assert [trial.trial_id for trial in harness.take()] == ["t000", "t001"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_survivors_that_wait_for_more_workers_come_to_their_end_within_the_limit(at_once):
    data = growing([1, 2, 4], 6).to_dict()
    data["search"]["at_once"] = at_once
    sweep, draw = Sweep(recipe_from_dict(data), [16]), random.Random(at_once)
    most = 0
    while True:
        sweep.start()
        most = max(most, len(sweep.running()))
        if not sweep.running():
            break
        sweep.report(draw.choice(sweep.running()), draw.random())
    assert most == at_once
    assert len(sweep.state.trials) == 6
    assert all(trial.ended for trial in sweep.state.trials.values())


def slot_died(number):
    return [{"kind": "lost", "trial": "t000", "rank": None, "slot": f"s{n}"} for n in range(number)]


@pytest.mark.parametrize(("before", "most", "more"), [(0, 3, 3), (2, 3, 1), (3, 3, 0), (5, 3, 0), (0, 0, 0)])
def test_a_resumed_trial_has_the_rest_of_its_slots_and_no_new_ones(before, most, more):
    chosen = recipe()
    failures = chosen.failures.model_copy(update={"max_lost_workers": most})
    harness = Harness(chosen.model_copy(update={"failures": failures}), [suggested("t000"), *slot_died(before)])
    trial = harness.source.next_trial()
    trial.storage = SimpleNamespace(trial_driver_staging_path=None)  # where Tune would keep a copy of each error
    recovered = 0
    while recovered < 9:
        trial.handle_error(RayActorError())
        if not trial.should_recover():
            break
        recovered += 1
    assert recovered == more
    assert trial.max_failures == most, "what the error names is the setting"
