"""The wall bench's arithmetic, and that both of its sides are asked for the same trials."""

from __future__ import annotations

import pytest

from jobs.bench import naive_pattern
from jobs.bench.sweep import walls
from jobs.bench.sweep.walls import BATCH, STEPS, VALIDATION, Wall, order, recipe_of, summarize, table, write_samples
from tlcore.data import Course
from tlcore.recipe import report_fractions, trial_point

pytestmark = pytest.mark.unit

STOPPED = (16, 4, 8)


def measured(naive=((40.0, STOPPED), (90.0, STOPPED)), warm=((10.0, STOPPED), (10.0, STOPPED))):
    """Walls as they come in: round by round, the sides in turn."""
    sides = {"naive": naive, "warm": warm}
    return [Wall(number, side, *sides[side][number]) for number in range(len(naive)) for side in order(number)]


def test_the_ratio_is_over_rounds_whose_sides_ran_next_to_each_other():
    assert summarize(measured()) == {
        "wall_ratio": 6.0,
        "range": [4.0, 9.0],
        "rounds": 2,
        "wall_s": {"warm": [10.0, 10.0], "naive": [40.0, 90.0]},
        "steps": {"warm": 28.0, "naive": 28.0},
        "same_steps": True,
    }


def test_sides_that_stopped_other_trials_are_told():
    figures = summarize(measured(naive=((40.0, STOPPED), (90.0, (16, 8, 4)))))
    assert figures["steps"] == {"warm": 28.0, "naive": 28.0}
    assert not figures["same_steps"]
    assert "not the same steps" in table(figures)[-1]


def test_a_round_without_its_other_side_is_refused():
    with pytest.raises(ValueError, match="argument"):
        summarize(measured()[:3])


@pytest.mark.parametrize(("wall_s", "verdict"), [(40.0, "target 4: met"), (39.0, "target 4: not met")])
def test_the_table_says_whether_the_target_is_met(wall_s, verdict):
    assert table(summarize(measured(naive=((wall_s, STOPPED),), warm=((10.0, STOPPED),))))[-1].endswith(verdict)


def test_either_side_is_first_as_often():
    assert {order(0), order(1)} == {("warm", "naive"), ("naive", "warm")}
    assert order(2) == order(0)


def test_the_data_are_as_many_steps_on_both_sides(tmp_path):
    path = tmp_path / "samples.csv"
    write_samples(path)
    rows = path.read_text().splitlines()[1:]
    trained = round(len(rows) * (1 - VALIDATION))
    assert trained == STEPS * BATCH
    assert Course(trained, 1, 0, None, [(0, BATCH)]).total_steps == STEPS
    assert {row.rpartition(",")[2] for row in rows} == {"no", "yes"}


def test_the_peer_is_given_tlcores_points_and_rungs(tmp_path, monkeypatch):
    asked = {}

    class Tuner:
        def __init__(self, trainable, param_space, tune_config, run_config):
            asked.update(param_space, scheduler=tune_config.scheduler, at_once=tune_config.max_concurrent_trials)

        def fit(self):
            class Results(list):
                errors = ()

            return Results()

    monkeypatch.setattr(naive_pattern.tune, "Tuner", Tuner)
    monkeypatch.setattr(naive_pattern, "stamp", lambda *_: None)
    recipe = recipe_of("naive-0", tmp_path / "samples.csv", tmp_path, trials=8)
    naive_pattern.run_naive(recipe, tmp_path, 8, STEPS)

    rates = [trial_point(recipe, recipe.train.seed, index)["train.learning_rate"] for index in range(8)]
    assert asked["learning_rate"] == {"grid_search": rates}
    assert asked["reports"] == [round(each * STEPS) for each in report_fractions(recipe)] == [4, 8, 16]
    assert (asked["evaluates"], asked["at_once"]) == (True, 1)
    (bracket,) = asked["scheduler"]._brackets
    assert sorted(rung for rung, _ in bracket._rungs) == [4, 8, 16]
    assert recipe.resources.workers == walls.RANKS
