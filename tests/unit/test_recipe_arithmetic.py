"""Batch arithmetic, rungs, and the plan's text."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tlcore.errors import RecipeError
from tlcore.recipe import (
    BatchPlan,
    plan_batch,
    recipe_from_dict,
    report_fractions,
    resizing_rungs,
    resolved_plan,
    scheduler_fractions,
    workers_at,
    world_sizes,
)
from tlcore.recipe.batch import divisors

pytestmark = pytest.mark.unit


def recipe_with(**sections):
    return recipe_from_dict(
        {
            "name": "reviews",
            "task": "text-classification",
            "model": {"source": "org/model"},
            "data": {"train": "reviews.csv"},
            "storage": "runs",
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("whole", "micro", "world", "plan"),
    [
        (32, "auto", 1, (32, 1)),
        (32, "auto", 2, (16, 1)),
        (64, "auto", 1, (32, 2)),
        (96, "auto", 2, (24, 2)),
        (74, "auto", 1, (2, 37)),
        (37, "auto", 1, (1, 37)),
        (32, 4, 2, (4, 4)),
        (32, 16, 2, (16, 1)),
        (1, "auto", 1, (1, 1)),
    ],
)
def test_batches(whole, micro, world, plan):
    recipe = recipe_with(train={"global_batch_size": whole, "micro_batch_size": micro}, resources={"workers": world})
    assert plan_batch(recipe, world) == BatchPlan(whole, world, *plan)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 64))
def test_a_batch_is_its_parts_multiplied(whole, world):
    assume(whole % world == 0)
    plan = plan_batch(recipe_with(train={"global_batch_size": whole}), world)
    assert plan.world_size * plan.micro_batch_size * plan.accumulation_steps == whole
    assert 1 <= plan.micro_batch_size <= 32


def test_a_batch_that_does_not_divide_over_other_workers_than_the_recipes():
    with pytest.raises(RecipeError, match="32 does not divide over 5 workers; give 30 or 35"):
        plan_batch(recipe_with(), 5)


@settings(deadline=None)
@given(st.integers(1, 3000))
def test_divisors(number):
    assert divisors(number) == [size for size in range(1, number + 1) if number % size == 0]


@pytest.mark.parametrize(
    ("epochs", "asha", "fractions"),
    [
        (1, None, (1.0,)),
        (1, {"grace": 0.25, "reduction": 2}, (0.25, 0.5, 1.0)),
        (1, {"grace": 0.1, "reduction": 3}, (0.1, 0.3, 0.9, 1.0)),
        (1, {"grace": 0.99, "reduction": 2}, (0.99, 1.0)),
        (2, {"grace": 0.25, "reduction": 2}, (0.25, 0.5, 1.0)),
        (4, {"grace": 0.1, "reduction": 4}, (0.1, 0.25, 0.4, 0.5, 0.75, 1.0)),
        (3, None, (0.333333333333, 0.666666666667, 1.0)),
    ],
)
def test_report_fractions(epochs, asha, fractions):
    recipe = recipe_with(train={"epochs": epochs}, search={"scheduler": {"asha": asha} if asha else "none"})
    assert report_fractions(recipe) == fractions


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0.001, 0.999), st.floats(2, 10))
def test_fractions_ascend_to_one_and_hold_every_rung(epochs, grace, reduction):
    scheduler = {"asha": {"grace": grace, "reduction": reduction}}
    recipe = recipe_with(train={"epochs": epochs}, search={"scheduler": scheduler})
    fractions = report_fractions(recipe)
    assert list(fractions) == sorted(set(fractions))
    assert fractions[-1] == 1.0
    assert set(scheduler_fractions(recipe)) < set(fractions)
    assert scheduler_fractions(recipe)[0] == pytest.approx(grace)


def test_the_plan_says_what_comes_of_the_recipe():
    recipe = recipe_with(
        transfer={"strategy": "last_n", "n": 2},
        train={"epochs": 2, "global_batch_size": 128},
        resources={"workers": 2, "gpus_per_worker": 0.75},
        deepspeed={"zero_stage": 3, "offload_param": "cpu"},
        checkpoint={"every_steps": 100},
        search={
            "space": {"train.weight_decay": {"choice": [0, 0.1], "when": {"transfer.strategy": ["last_n", "full"]}}},
            "scheduler": "asha",
            "first": [{"train.weight_decay": 0.1}],
            "trials": 3,
        },
    )
    plan = {row.topic: row.text for row in resolved_plan(recipe)}
    assert plan["transfer"] == "last_n: the head and the last 2 blocks are trained"
    assert plan["batch"] == "128 samples per step = 2 workers x micro-batch 32 x 2 accumulation steps"
    assert plan["sharding"] == "ZeRO-3: optimizer state, gradients and parameters sharded; offload_param: cpu"
    assert plan["workers"] == "2 per trial, 1 CPU and 0.75 GPUs each, pack, isolation warm"
    assert plan["reports"] == "at 0.25, 0.5, 1 of 2 epochs"
    assert plan["checkpoints"] == "every 100 steps, at each report; the last 2 and the best 1 of a trial are kept"
    assert plan["trials"] == "3 by random, scheduler asha, max of eval_accuracy"
    assert plan["  train.weight_decay"] == "choice [0, 0.1] when transfer.strategy is last_n or full"
    assert plan["  first 1"] == "{train.weight_decay: 0.1}"
    assert plan["digest"] == recipe.digest()


def test_the_plan_says_what_is_kept_of_all_trials_where_that_is_more_than_of_one():
    recipe = recipe_with(checkpoint={"keep_best_overall": 5, "keep_stopped": 0})
    plan = {row.topic: row.text for row in resolved_plan(recipe)}
    assert plan["checkpoints"].endswith(
        "the last 2 and the best 1 of a trial are kept, the best 5 of all trials, the last 0 of one that ended early"
    )


def test_the_plan_says_how_many_trials_run_at_a_time_where_the_recipe_does():
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    recipe = recipe_with(search={"space": space, "trials": 9, "at_once": 2})
    plan = {row.topic: row.text for row in resolved_plan(recipe)}
    assert plan["trials"] == "9 (2 at a time at most) by random, scheduler none, max of eval_accuracy"


def test_the_plan_says_what_a_trial_survives():
    plan = {row.topic: row.text for row in resolved_plan(recipe_with(failures={"on_oom": "adapt", "max_hangs": 1}))}
    assert plan["failures"] == (
        "a trial survives 3 lost workers, 3 lost nodes, 1 hang (of 10 minutes); out of memory it goes on with milder settings"
    )


def test_workers_follow_from_the_rung_that_was_passed():
    recipe = recipe_with(search={"scheduler": {"asha": {"grace": 0.1, "reduction": 3, "workers": [1, 1, 2, 4]}}})
    rungs = scheduler_fractions(recipe)
    assert [workers_at(recipe, fraction) for fraction in (0.0, 0.05, *rungs, 1.0)] == [1, 1, 1, 2, 4, 4]
    assert workers_at(recipe, 0.1 * 3) == 2, "floating-point rungs"
    assert resizing_rungs(recipe) == rungs[1:]
    assert world_sizes(recipe) == (1, 2, 4)
    assert recipe.search.scheduler.pauses


def test_without_workers_by_rung_a_trial_keeps_its_own():
    recipe = recipe_with(resources={"workers": 2}, search={"scheduler": "asha"})
    assert (workers_at(recipe, 0.7), resizing_rungs(recipe), world_sizes(recipe)) == (2, (), (2,))
    assert not recipe.search.scheduler.pauses


def test_the_plan_says_from_where_on_there_are_more_workers():
    recipe = recipe_with(
        resources={"gpus_per_worker": 1, "accelerator": "A100"},
        search={"scheduler": {"asha": {"workers": [1, 2, 4]}}},
    )
    plan = {row.topic: row.text for row in resolved_plan(recipe)}
    assert plan["workers"] == (
        "1 per trial, 2 from 0.25 on, 4 from 0.5 on, 1 CPU and 1 GPU each on A100, pack, isolation warm"
    )
