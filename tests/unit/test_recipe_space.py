"""Points of a space: drawn in range, the same for the same seed and index, applied and told apart without loss."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlcore.errors import RecipeError
from tlcore.recipe import (
    Domain,
    apply_point,
    difference,
    grid_points,
    recipe_from_dict,
    sample_point,
    trial_point,
    trial_points,
    trial_recipe_from_dict,
)
from tlcore.recipe import space as space_module
from tlcore.recipe.domains import contains, trial_values
from tlcore.recipe.space import in_order

pytestmark = pytest.mark.unit

LR = "train.learning_rate"
STRATEGY = "transfer.strategy"
LAST_N = {
    STRATEGY: {"choice": ["full", "last_n", "head"]},
    "transfer.n": {"randint": [1, 4], "when": {STRATEGY: "last_n"}},
}
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
INDEXES = st.integers(min_value=0, max_value=10_000)


def recipe_with(space, **search):
    return recipe_from_dict(
        {
            "name": "reviews",
            "task": "text-classification",
            "model": {"source": "org/model"},
            "data": {"train": "reviews.csv"},
            "storage": "runs",
            "search": {"space": space, **search},
        }
    )


EVERY_KIND = recipe_with(
    {
        LR: {"loguniform": [1e-5, 1e-3]},
        "train.weight_decay": {"uniform": [0, 0.1]},
        "train.warmup_ratio": {"quniform": [0, 0.3, 0.1]},
        "train.global_batch_size": {"quniform": [16, 64, 16]},
        "train.epochs": {"randint": [1, 3]},
        "train.precision": {"choice": ["auto", "fp32"]},
        **LAST_N,
    }
)


@st.composite
def ranges(draw):
    kind = draw(st.sampled_from(["uniform", "loguniform", "quniform", "randint"]))
    if kind == "randint":
        low = draw(st.integers(-(10**6), 10**6))
        return Domain.model_validate({kind: [low, low + draw(st.integers(1, 10**6))]})
    low = draw(st.floats(1e-9, 1e3)) if kind == "loguniform" else draw(st.floats(-1e3, 1e3))
    high = low + draw(st.floats(1e-3, 1e3))
    if kind == "quniform":
        return Domain.model_validate(
            {kind: [round(low, 6), round(high, 6) + 1, draw(st.sampled_from([0.1, 0.25, 0.001, 1]))]}
        )
    return Domain.model_validate({kind: [low, high]})


@settings(deadline=None)
@given(ranges(), SEEDS, INDEXES)
def test_a_drawn_value_lies_in_its_domain(domain, seed, index):
    recipe = EVERY_KIND.model_copy(update={"search": EVERY_KIND.search.model_copy(update={"space": {LR: domain}})})
    value = sample_point(recipe, seed, index)[LR]
    assert contains(domain, value)
    assert all(contains(domain, one) for one in trial_values(domain))


@settings(deadline=None)
@given(SEEDS, INDEXES)
def test_every_point_can_be_applied_and_told_apart(seed, index):
    point = sample_point(EVERY_KIND, seed, index)
    trial = apply_point(EVERY_KIND, point)
    told = {path: new for path, (_, new) in difference(trial, EVERY_KIND).items()}
    assert told.items() <= point.items()
    assert apply_point(EVERY_KIND, told) == trial
    assert ("transfer.n" in point) == (point[STRATEGY] == "last_n")
    assert 16 <= point["train.global_batch_size"] <= 64
    assert point["train.global_batch_size"] % 16 == 0


@settings(deadline=None)
@given(SEEDS, INDEXES)
def test_a_point_depends_on_seed_and_index_alone(seed, index):
    assert sample_point(EVERY_KIND, seed, index) == sample_point(READ_AGAIN, seed, index)


ONE_MORE = recipe_with({**EVERY_KIND.to_dict()["search"]["space"], "train.seed": {"randint": [0, 1000]}})
READ_AGAIN = recipe_from_dict(EVERY_KIND.to_dict())


@settings(deadline=None)
@given(SEEDS, INDEXES)
def test_a_further_setting_leaves_the_others_as_they_were(seed, index):
    point = sample_point(ONE_MORE, seed, index)
    del point["train.seed"]
    assert point == sample_point(EVERY_KIND, seed, index)


def test_points_stay_what_they_were_in_earlier_versions():
    """A resumed sweep draws its next point anew: a changed stream would repeat or skip points."""
    assert sample_point(EVERY_KIND, 0, 0) == {
        "train.learning_rate": 0.00020743646076240327,
        "train.weight_decay": 0.011546051915998213,
        "train.warmup_ratio": 0.2,
        "train.global_batch_size": 64,
        "train.epochs": 2,
        "train.precision": "fp32",
        "transfer.strategy": "head",
    }


def test_draws_are_spread_over_the_domain():
    points = [sample_point(EVERY_KIND, 1, index) for index in range(400)]
    for key, wanted in (
        ("train.epochs", {1, 2, 3}),
        ("train.global_batch_size", {16, 32, 48, 64}),
        ("train.warmup_ratio", {0.0, 0.1, 0.2, 0.3}),
    ):
        assert {point[key] for point in points} == wanted
    below_middle = sum(math.log10(point[LR]) < -4 for point in points)
    assert 140 < below_middle < 260
    assert len({point[LR] for point in points}) == 400


def test_whole_numbers_stay_whole():
    point = sample_point(EVERY_KIND, 3, 4)
    assert type(point["train.global_batch_size"]) is int
    assert type(point["train.epochs"]) is int
    assert type(point["train.warmup_ratio"]) is float


def test_conditions_chain():
    recipe = recipe_with(
        {
            "train.weight_decay": {"choice": [0.1], "when": {"transfer.n": [2, 3]}},
            **LAST_N,
        }
    )
    assert in_order(recipe.search.space) == [STRATEGY, "transfer.n", "train.weight_decay"]
    points = [sample_point(recipe, 0, index) for index in range(100)]
    assert {("train.weight_decay" in point) for point in points} == {True, False}
    for point in points:
        assert ("train.weight_decay" in point) == (point.get("transfer.n") in (2, 3))


def test_a_condition_on_a_setting_that_is_not_searched_reads_the_recipe():
    space = {LR: {"choice": [1.0]}, "train.epochs": {"choice": [2], "when": {"train.optimizer": ["adamw", "sgd"]}}}
    assert sample_point(recipe_with(space), 0, 0) == {LR: 1.0, "train.epochs": 2}
    space["train.epochs"]["when"] = {"train.optimizer": "sgd"}
    assert sample_point(recipe_with(space), 0, 0) == {LR: 1.0}


def test_true_is_not_one():
    space = {"train.compile": {"choice": [True, False]}, LR: {"choice": [1.0], "when": {"train.compile": True}}}
    recipe = recipe_with(space)
    for index in range(20):
        point = sample_point(recipe, 0, index)
        assert (LR in point) == point["train.compile"]
    with pytest.raises(RecipeError, match=r"train\.compile is never 1"):
        recipe_with({**space, LR: {"choice": [1.0], "when": {"train.compile": 1}}})


def test_grid_crosses_grids_and_draws_the_rest():
    space = {"train.epochs": {"grid": [1, 2]}, LR: {"uniform": [0.1, 1]}, "train.seed": {"grid": [5, 6, 7]}}
    recipe = recipe_with(space, algorithm="grid")
    points = grid_points(recipe)
    assert [(point["train.epochs"], point["train.seed"]) for point in points] == [
        (1, 5),
        (1, 6),
        (1, 7),
        (2, 5),
        (2, 6),
        (2, 7),
    ]
    assert len({point[LR] for point in points}) == 6
    assert recipe.search.trials == 6
    assert [sample_point(recipe, recipe.train.seed, index) for index in range(6)] == points
    assert recipe_from_dict(recipe.to_dict()) == recipe


def test_a_grid_whose_condition_fails_is_crossed_once():
    space = {
        STRATEGY: {"grid": ["full", "last_n", "head"]},
        "transfer.n": {"grid": [1, 2], "when": {STRATEGY: "last_n"}},
    }
    recipe = recipe_with(space, algorithm="grid")
    assert grid_points(recipe) == [
        {STRATEGY: "full"},
        {STRATEGY: "last_n", "transfer.n": 1},
        {STRATEGY: "last_n", "transfer.n": 2},
        {STRATEGY: "head"},
    ]
    assert recipe.search.trials == 4


def test_the_points_of_many_trials_are_those_of_each():
    grids = {"train.epochs": {"grid": [1, 2]}, STRATEGY: {"grid": ["full", "last_n"]}, LR: {"uniform": [0.1, 1]}}
    counted = {**grids, "transfer.n": {"randint": [1, 3], "when": {STRATEGY: "last_n"}}}
    for recipe in (
        recipe_with(counted, algorithm="grid"),
        recipe_with({LR: {"uniform": [0.1, 1]}, **LAST_N}, first=[{LR: 0.5}], trials=9),
    ):
        trials = recipe.search.trials
        each = [trial_point(recipe, recipe.train.seed, index) for index in range(trials)]
        assert trial_points(recipe, trials) == each
        assert trial_points(recipe, trials - 1) == each[:-1]


def test_a_grid_is_crossed_once_however_many_trials_are_asked_for(monkeypatch):
    recipe = recipe_with({"train.epochs": {"grid": [1, 2, 3]}, "train.seed": {"grid": [5, 6, 7]}}, algorithm="grid")
    crossed = []
    grid = space_module._grid
    monkeypatch.setattr(space_module, "_grid", lambda *given: crossed.append(given) or grid(*given))
    assert len(trial_points(recipe, 9)) == 9
    assert len(crossed) == 1


def test_first_points_come_first_and_are_completed():
    recipe = recipe_with(
        {LR: {"uniform": [0.1, 1]}, **LAST_N}, first=[{STRATEGY: "last_n", "transfer.n": 3}, {LR: 0.5}]
    )
    assert trial_point(recipe, 0, 0)[STRATEGY] == "last_n"
    assert trial_point(recipe, 0, 0)["transfer.n"] == 3
    assert 0.1 <= trial_point(recipe, 0, 0)[LR] <= 1
    assert trial_point(recipe, 0, 1)[LR] == 0.5
    assert trial_point(recipe, 0, 2) == sample_point(recipe, 0, 2)


def test_more_first_points_than_the_default_number_of_trials_all_run():
    first = [{LR: (index + 1) / 20} for index in range(11)]
    assert recipe_with({LR: {"uniform": [0.01, 1]}}, first=first).search.trials == 11


def test_a_trials_recipe_is_a_recipe_of_its_own():
    """Workers read it back: nothing in it may depend on the space that it came from."""
    trial = apply_point(EVERY_KIND, {STRATEGY: "last_n", "transfer.n": 2})
    assert recipe_from_dict(trial.to_dict()) == trial
    assert trial.search.space == {}
    assert trial.search.scheduler == EVERY_KIND.search.scheduler


@pytest.mark.parametrize(
    ("scheduler", "algorithm"),
    [
        ("none", "optuna"),
        ("median", "random"),
        ("asha", "optuna"),
        ("hyperband", "bohb"),
        ("bohb", "bohb"),
        ("pbt", "random"),
        ("pb2", "random"),
    ],
)
def test_a_trials_recipe_is_read_back_whatever_searched_for_it(scheduler, algorithm):
    """Export, evaluation and new runs read it from a checkpoint; those of pbt, pb2 and bohb were once refused there."""
    sweep = recipe_with({LR: {"loguniform": [1e-5, 1e-3]}}, scheduler=scheduler, algorithm=algorithm)
    trial = apply_point(sweep, sample_point(sweep, 0, 0))
    assert trial_recipe_from_dict(trial.to_dict()) == trial


@pytest.mark.parametrize(
    ("point", "fault"),
    [
        ({LR: -1.0}, "train.learning_rate: got -1.0; give a number above 0"),
        (
            {STRATEGY: "last_n"},
            "transfer.n: missing with strategy last_n; give the number of last blocks to train, such as 2",
        ),
        ({"train.nothing": 1}, "train.nothing: unknown key (got 1); train has"),
        ({"train.epochs": 1.5}, "train.epochs: got 1.5; give a whole number of at least 1"),
    ],
)
def test_a_point_that_does_not_fit_is_refused_by_name(point, fault):
    with pytest.raises(RecipeError) as caught:
        apply_point(EVERY_KIND, point)
    assert caught.value.message.startswith("search point {" + next(iter(point)))
    assert str(caught.value.faults[0]).startswith(fault)


def test_difference_leaves_the_search_out_and_keeps_order():
    trial = apply_point(EVERY_KIND, {"train.epochs": 3, STRATEGY: "head"})
    assert difference(trial, EVERY_KIND) == {STRATEGY: ("full", "head"), "train.epochs": (1, 3)}
    assert difference(EVERY_KIND, EVERY_KIND) == {}
