"""Which trial comes next, and the promise that a resume keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial
from ray.tune.registry import register_trainable

from tlcore.recipe import recipe_from_dict, trial_point
from tlcore.storage.journal import SweepState
from tlcore.sweep.cluster.fit import Admitted, admit_all
from tlcore.sweep.cluster.resources import Shape
from tlcore.sweep.search.searchers import make_searcher
from tlcore.sweep.search.source import LOOK_AGAIN_S, Places, SlotTrial, TrialSource, Waiting, trials_wanted
from tlcore.sweep.slots.slot import Slot

pytestmark = pytest.mark.unit
ANY_SHAPE = Shape(2, 1.0, 0.0, "pack")


def recipe(**search):
    return recipe_from_dict(
        {
            "name": "n",
            "task": "text-classification",
            "model": {"source": "package:x/y"},
            "data": {"train": "train.csv"},
            "storage": "/tmp/store",
            "search": {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": 4, **search},
        }
    )


def suggested(trial, rate=1e-4):
    return {"kind": "suggested", "trial": trial, "point": {"train.learning_rate": rate}}


def result(trial, fraction):
    return {"kind": "result", "trial": trial, "step": 9, "fraction": fraction, "metrics": {}, "checkpoint_step": 9}


class Harness:
    def __init__(
        self,
        recipe,
        entries=(),
        room=lambda shape, live, idle: True,
        shape_of=lambda recipe: ANY_SHAPE,
        waiting=None,
        admit=admit_all,
    ):
        self.written = []
        self.state = SweepState.from_entries(entries)
        self.source = TrialSource(
            recipe,
            {"url": "file:///run"},
            self.state,
            make_searcher(recipe),
            waiting or Waiting(),
            shape_of=shape_of,
            room=room,
            record=self.record,
            admit=admit,
        )
        register_trainable("slot-under-test", Slot)
        spec = {"run": "slot-under-test", "storage": None, "checkpoint_config": CheckpointConfig()}
        self.source.add_configurations([SimpleNamespace(spec=spec)])

    def record(self, kind, trial, **facts):
        self.written.append((kind, trial, facts))
        self.state.apply({"kind": kind, "trial": trial, **facts})

    def take(self, most=20):
        taken = []
        while len(taken) < most and (trial := self.source.next_trial()) is not None:
            taken.append(trial)
        return taken


def test_trials_bear_our_names_and_the_points_of_the_recipe():
    harness = Harness(recipe())
    trials = harness.take()
    assert [trial.trial_id for trial in trials] == ["t000", "t001", "t002", "t003"]
    assert [trial.config["point"] for trial in trials] == [trial_point(recipe(), 0, index) for index in range(4)]
    assert harness.source.is_finished()


def test_each_suggestion_is_written_before_it_is_handed_out():
    harness = Harness(recipe())
    first = harness.source.next_trial()
    assert harness.written == [("suggested", "t000", {"point": first.config["point"], "of": 4})]


def test_a_suggestion_that_cannot_be_written_is_not_handed_out():
    harness = Harness(recipe())

    def refuse(*args, **facts):
        raise OSError("store down")

    harness.source._record = refuse
    with pytest.raises(OSError, match="store down"):
        harness.source.next_trial()
    harness.source._record = harness.record
    assert harness.source.next_trial().trial_id == "t000"
    assert len(harness.written) == 1


def test_after_a_resume_unfinished_trials_come_first_with_what_they_reached_and_ended_ones_never():
    entries = [suggested(f"t00{n}") for n in range(4)]
    entries += [result("t001", 0.5), {"kind": "completed", "trial": "t000"}, {"kind": "stopped", "trial": "t002"}]
    harness = Harness(recipe(trials=6), entries)
    trials = harness.take()
    assert [trial.trial_id for trial in trials] == ["t001", "t003", "t004", "t005"]
    assert [trial.config["reached"] for trial in trials] == [0.5, 0.0, 0.0, 0.0]
    assert [trial for _, trial, _ in harness.written] == ["t004", "t005"]


def test_points_after_a_resume_are_those_of_the_uninterrupted_sweep():
    whole = Harness(recipe()).take()
    rest = Harness(recipe(), [suggested(f"t00{n}") | {"point": whole[n].config["point"]} for n in range(2)]).take()
    rest = [trial for trial in rest if trial.trial_id > "t001"]
    assert [trial.config["point"] for trial in rest] == [trial.config["point"] for trial in whole[2:]]


def test_no_more_trials_at_a_time_than_there_is_room_for_and_nothing_is_written_meanwhile():
    harness = Harness(recipe(), room=lambda shape, live, idle: len(live) < 2)
    assert [trial.trial_id for trial in harness.take()] == ["t000", "t001"]
    assert harness.source.next_trial() is None
    assert len(harness.written) == 2
    assert not harness.source.is_finished()
    harness.source.on_trial_complete("t000")
    assert [trial.trial_id for trial in harness.take()] == ["t002"]


def test_the_only_trial_starts_even_where_others_hold_the_cluster():
    harness = Harness(recipe(), room=lambda shape, live, idle: False)
    assert [trial.trial_id for trial in harness.take()] == ["t000"]


def test_a_grid_ends_with_its_last_point():
    grid = recipe(algorithm="grid", space={"train.learning_rate": {"grid": [1e-4, 2e-4, 3e-4]}}, trials=3)
    assert trials_wanted(grid) == 3
    assert [trial.config["point"]["train.learning_rate"] for trial in Harness(grid).take()] == [1e-4, 2e-4, 3e-4]


def test_slots_of_equal_shape_ask_for_the_same_and_of_others_for_something_else():
    shapes = {1e-4: Shape(1, 1.0, 0.0, "pack"), 2e-4: ANY_SHAPE}
    grid = recipe(algorithm="grid", space={"train.learning_rate": {"grid": [1e-4, 2e-4]}}, trials=2)
    one, two = Harness(grid, shape_of=lambda recipe: shapes[recipe.train.learning_rate]).take()
    same, again = Harness(grid).take()
    for trial in (one, two, same, again):
        trial.create_placement_group_factory()  # as Tune does when it takes a trial in
    assert one.placement_group_factory != two.placement_group_factory
    assert same.placement_group_factory == again.placement_group_factory
    assert "CPU" not in one.placement_group_factory.required_resources


def test_a_trial_that_waits_is_handed_over_as_a_paused_one_and_takes_no_place():
    paused = Waiting(is_paused=lambda trial: trial == "t000", pauses=True)
    harness = Harness(
        recipe(trials=3),
        [suggested("t000"), suggested("t001")],
        room=lambda shape, live, idle: len(live) < 1,
        waiting=paused,
    )
    assert [(trial.trial_id, trial.status) for trial in harness.take()] == [("t000", "PAUSED"), ("t001", "PENDING")]
    waits = harness.source.trial("t000")
    assert harness.source.start([waits]) is None
    harness.source.on_trial_complete("t001")
    assert harness.source.start([waits]) is waits
    waits.set_status("RUNNING")
    assert harness.take() == []


def test_what_the_scheduler_has_ready_comes_before_new_trials():
    ready = [True]
    harness = Harness(recipe(), waiting=Waiting(has_ready=lambda: ready[0], pauses=True))
    assert harness.take() == []
    ready[0] = False
    assert len(harness.take()) == 4


def test_a_population_is_handed_over_whole_and_the_search_is_over_when_its_last_trial_is():
    harness = Harness(recipe(), room=lambda shape, live, idle: False, waiting=Waiting(population=True, pauses=True))
    assert [trial.status for trial in harness.take()] == ["PAUSED"] * 4
    for name in ("t000", "t001", "t002", "t003"):
        assert not harness.source.is_finished()
        harness.source.on_trial_complete(name)
    assert harness.source.is_finished()


def test_a_trial_that_paused_gave_its_place_back_and_one_that_moved_has_its_new_life():
    harness = Harness(recipe(), room=lambda shape, live, idle: len(live) < 1, waiting=Waiting(pauses=True))
    (first,) = harness.take()
    first.set_status("PAUSED")
    (second,) = harness.take()
    facts = {"parent": second.trial_id, "step": 7, "fraction": 0.25, "changed": {}, "metrics": {}}
    harness.record("took_over", first.trial_id, point={"train.learning_rate": 3e-4}, **facts)
    harness.source.move(first, first.trial_id)
    assert first.config["point"] == {"train.learning_rate": 3e-4}
    assert (first.config["reached"], first.config["life"]) == (0.25, 1)


GROWING = {"scheduler": {"asha": {"workers": [1, 2, 4]}}}


def shape_by_workers(recipe):
    return Shape(recipe.resources.workers, 1.0, 0.0, "pack")


def fits_in(cpus):
    return lambda shape, live, idle: sum(one.workers for one in live) + shape.workers <= cpus


def test_a_survivor_starts_again_with_the_workers_of_its_next_stretch_in_a_slot_of_that_shape():
    entries = [suggested("t000"), result("t000", 0.25)]
    paused = Waiting(is_paused=lambda trial: True, pauses=True)
    harness = Harness(recipe(**GROWING), entries, shape_of=shape_by_workers, waiting=paused, room=fits_in(4))
    waits, new = harness.take(2)
    assert (waits.status, waits.config["workers"], new.config["workers"]) == ("PAUSED", 2, 1)
    harness.state.apply(result("t000", 0.5))
    assert harness.source.start([waits]) is None, "4 beside the new one are more than there are"
    harness.source.on_trial_complete(new.trial_id)
    before = waits.placement_group_factory
    assert harness.source.start([waits]) is waits
    assert (waits.config["workers"], waits.config["reached"]) == (4, 0.5)
    assert waits.placement_group_factory not in (before, new.placement_group_factory)


def test_a_survivor_that_fits_passes_one_that_does_not_and_each_shape_is_asked_about_once():
    entries = [suggested("t000"), result("t000", 0.5), suggested("t001"), result("t001", 0.5)]
    entries += [suggested("t002"), result("t002", 0.25)]
    asked = []

    def room(shape, live, idle):
        asked.append(shape.workers)
        return fits_in(3)(shape, live, idle)

    paused = Waiting(is_paused=lambda trial: True, pauses=True)
    harness = Harness(recipe(**GROWING), entries, shape_of=shape_by_workers, waiting=paused, room=room)
    *waiting, new = harness.take(4)
    assert new.trial_id == "t003"
    assert harness.source.start(waiting) is waiting[2]
    assert asked == [4, 2]


def test_survivors_that_all_want_more_than_there_is_beside_each_other_go_one_after_the_other():
    entries = [line for n in range(4) for line in (suggested(f"t00{n}"), result(f"t00{n}", 0.5))]
    paused = Waiting(is_paused=lambda trial: True, pauses=True)
    harness = Harness(recipe(**GROWING), entries, shape_of=shape_by_workers, waiting=paused, room=fits_in(4))
    waiting = harness.take()
    for trial in list(waiting):
        assert harness.source.start(waiting) is trial
        trial.set_status("RUNNING")
        waiting.remove(trial)
        assert harness.source.start(waiting) is None
        harness.source.on_trial_complete(trial.trial_id)


def test_what_idle_slots_hold_is_told_by_their_requests():
    seen = []

    def room(shape, live, idle):
        seen.append(list(idle))
        return True

    kept = []
    harness = Harness(recipe(), room=room, waiting=Waiting(idle=lambda: kept))
    first = harness.source.next_trial()
    first.create_placement_group_factory()  # as Tune does when it takes a trial in
    kept.append(first.placement_group_factory)
    harness.source.next_trial()
    assert seen == [[ANY_SHAPE]]


def test_slots_with_fresh_processes_for_each_trial_hold_nothing_between_two():
    seen = []
    own = recipe().model_copy(update={"resources": recipe().resources.model_copy(update={"isolation": "process"})})
    kept = []
    harness = Harness(own, room=lambda *args: seen.append(args[2]) or True, waiting=Waiting(idle=lambda: kept))
    kept.append(harness.source.next_trial())
    harness.source.next_trial()
    assert seen == [[]]


def test_a_sweep_that_stops_hands_out_nothing_more():
    harness = Harness(recipe())
    harness.take(most=1)
    harness.source.set_finished()
    assert harness.source.next_trial() is None
    assert harness.source.is_finished()


@pytest.mark.parametrize(
    ("error", "recovers"),
    [(ActorUnavailableError("gone", None), True), (RayTaskError("step", "trace", ValueError("no")), False)],
)
def test_a_trial_is_retried_when_its_slot_died_and_not_when_it_failed(error, recovers):
    register_trainable("slot-under-test", Slot)
    trial = SlotTrial("slot-under-test", trial_id="t000", max_failures=3)
    trial.failure = error
    assert isinstance(trial, Trial)
    assert trial.should_recover() is recovers


def admit_but(index, instead):
    """Everything as it is, but the point number `index`."""
    seen = []

    def admit(point):
        if point not in seen:
            seen.append(point)
        return instead(point) if seen.index(point) == index else Admitted(dict(point))

    return admit


def dropping(point):
    return Admitted(dict(point), failure={"error": "CannotFit", "message": "not run: too large", "hint": ""})


def test_a_point_that_does_not_fit_is_written_down_and_the_next_one_runs():
    harness = Harness(recipe(), admit=admit_but(1, dropping))
    assert [trial.trial_id for trial in harness.take()] == ["t000", "t002", "t003"]
    assert [(kind, trial) for kind, trial, _ in harness.written] == [
        ("suggested", "t000"),
        ("dropped", "t001"),
        ("suggested", "t002"),
        ("suggested", "t003"),
    ]
    assert harness.state.trials["t001"].status == "failed"
    assert harness.source.is_finished()


def test_when_nothing_fits_the_sweep_ends():
    harness = Harness(recipe(), admit=dropping)
    assert harness.take() == []
    assert harness.source.is_finished()
    assert len(harness.state.trials) == 4


def test_a_resume_goes_on_after_dropped_points_and_suggests_them_never_again():
    first = Harness(recipe(), admit=admit_but(1, dropping))
    first.take(2)
    entries = [{"kind": kind, "trial": trial, **facts} for kind, trial, facts in first.written]
    again = Harness(recipe(), [*entries, {"kind": "resumed"}], admit=dropping)
    assert [trial.trial_id for trial in again.take()] == ["t000", "t002"]
    assert again.state.trials["t001"].status == "failed"


def test_a_repaired_point_is_what_the_slot_gets_and_what_a_resume_finds():
    def mend(point):
        return Admitted({**point, "train.micro_batch_size": 2}, {"train.micro_batch_size": ["auto", 2]})

    harness = Harness(recipe(), admit=admit_but(0, mend))
    trial = harness.take(1)[0]
    assert trial.config["point"]["train.micro_batch_size"] == 2
    [(_, _, facts)] = harness.written
    assert facts["repaired"] == {"train.micro_batch_size": ["auto", 2]}
    again = Harness(recipe(), [{"kind": "suggested", "trial": "t000", **facts}, {"kind": "resumed"}])
    assert again.take(1)[0].config["point"] == trial.config["point"]


def test_what_a_trial_lost_and_was_adapted_to_goes_with_it():
    hang = {"kind": "lost", "trial": "t000", "loss": "hang"}
    smaller = {"kind": "adapted", "trial": "t000", "changed": {"train.micro_batch_size": [4, 2]}}
    (first, *_) = Harness(recipe(), [suggested("t000"), hang, smaller]).take()
    assert (first.config["lost"], first.config["adapted"]) == ({"hang": 1}, {"train.micro_batch_size": 2})

    harness = Harness(recipe())
    first, second, *_ = harness.take()
    for entry in (hang, smaller):
        harness.state.apply(entry)
        harness.source.heed(entry)
    assert (first.config["lost"], first.config["adapted"]) == ({"hang": 1}, {"train.micro_batch_size": 2})
    assert (second.config["lost"], second.config["adapted"]) == ({}, {})


def test_no_room_stands_for_a_moment_while_nothing_of_ours_moves():
    """Tune asks after each of its events, and each look at the cluster costs as much as a report."""
    now, asked, idle = [0.0], [], []

    def room(shape, live, idle):
        asked.append((shape, len(live), len(idle)))
        return False

    first, second = (SimpleNamespace(trial_id=name, status=Trial.RUNNING) for name in ("t000", "t001"))
    places, other = Places(room, lambda: list(idle), lambda: now[0]), Shape(1, 1.0, 0.0, "pack")
    places.take(first, ANY_SHAPE)
    for _ in range(3):
        assert not places.has_room(ANY_SHAPE)
        assert not places.has_room(other)
    assert asked == [(ANY_SHAPE, 1, 0), (other, 1, 0)]
    now[0] += LOOK_AGAIN_S
    assert not places.has_room(ANY_SHAPE)
    assert len(asked) == 3, "others may have gone"
    places.take(second, ANY_SHAPE)
    assert not places.has_room(ANY_SHAPE)
    second.status = Trial.PAUSED
    assert not places.has_room(ANY_SHAPE)
    idle.append(other)
    assert not places.has_room(ANY_SHAPE)
    assert [rest for _, *rest in asked[3:]] == [[2, 0], [1, 0], [1, 1]], "ours moved"


def suggestions(space, reports):
    """How often a searcher is asked for t001, which waits while t000 reports so often, and which point it then gets."""
    free, asked = [True], []
    harness = Harness(recipe(space=space), room=lambda shape, live, idle: free[0], shape_of=lambda recipe: ANY_SHAPE)
    points = iter(range(1, 1000))

    def suggest(index):
        asked.append(index)
        return {key: 10 ** -next(points) if "rate" in key else 1 for key in space}

    harness.source._searcher = SimpleNamespace(suggest=suggest)
    assert harness.source.next_trial().trial_id == "t000"
    free[0] = False
    for step in range(reports):
        assert harness.source.next_trial() is None
        harness.state.apply(result("t000", step / reports))
    free[0] = True
    harness.source._places._refused.clear()
    given = harness.source.next_trial()
    assert given.trial_id == "t001"
    return asked.count(1), given.config["point"]["train.learning_rate"]


def test_what_waits_for_room_is_suggested_again_when_there_is_room_and_not_at_every_report():
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    assert suggestions(space, 20) == (2, 1e-3)


def test_where_another_point_may_need_less_it_is_suggested_again_at_every_report():
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "resources.workers": {"choice": [1, 2]}}
    asked, _ = suggestions(space, 20)
    assert asked == 21


def test_a_trial_that_is_taken_up_where_it_does_not_fit_goes_to_its_slot_with_the_reason():
    harness = Harness(recipe(), [suggested("t000"), {"kind": "resumed", "trial": None}], admit=dropping)
    config = harness.source.next_trial().config
    assert config["failure"]["message"] == "not run: too large"
    assert Harness(recipe()).source.next_trial().config["failure"] is None
