"""Algorithms, schedulers and metrics that do not go together, and the exact message that each gets."""

from __future__ import annotations

import itertools

import pytest
from recipe_cases import LR, STRATEGY, assert_faults, changed

from tlcore.errors import RecipeError
from tlcore.recipe import recipe_from_dict
from tlcore.recipe.pairs import mutated_keys

pytestmark = pytest.mark.unit

RANGE = {"uniform": [0.1, 0.5]}
BASE = {"search.space": {LR: RANGE}}
IN_MID_TRIAL = (
    "train.learning_rate, train.weight_decay, train.gradient_clip, train.lr_schedule, train.warmup_ratio, "
    "train.global_batch_size, train.micro_batch_size, transfer.n"
)


def search(**settings):
    return {**BASE, **{f"search.{key}": value for key, value in settings.items()}}


CASES = {
    "unknown algorithm": (
        search(algorithm="optunna"),
        [
            "search.algorithm.optunna: unknown algorithm; give one of random, grid, optuna, bohb; "
            "did you mean search.algorithm.optuna?"
        ],
    ),
    "unknown sampler": (
        search(algorithm={"optuna": {"sampler": "tpr"}}),
        ["search.algorithm.optuna.sampler: got 'tpr'; give one of tpe, cmaes, nsga2; did you mean 'tpe'?"],
    ),
    "setting of another algorithm": (
        search(algorithm={"random": {"sampler": "tpe"}}),
        [
            "search.algorithm.random.sampler: unknown key (got 'tpe'); did you mean search.algorithm.optuna.sampler?",
        ],
    ),
    "two algorithms": (
        search(algorithm={"optuna": None, "bohb": None}),
        ["search.algorithm: got optuna and bohb; give one"],
    ),
    "two schedulers": (search(scheduler={"asha": None, "pbt": None}), ["search.scheduler: got asha and pbt; give one"]),
    "interval of a whole trial": (
        search(scheduler={"pbt": {"interval": 1.0}}),
        ["search.scheduler.pbt.interval: got 1.0; give a number above 0 and below 1"],
    ),
    "more than half": (
        search(scheduler={"pbt": {"quantile": 0.6}}),
        ["search.scheduler.pbt.quantile: got 0.6; give a number above 0 and of at most 0.5"],
    ),
    "bohb's scheduler alone": (
        search(scheduler="bohb"),
        [
            "search.scheduler: got bohb with algorithm random; bohb's HyperBand goes with bohb's model: "
            "set search.algorithm to bohb, or this to hyperband"
        ],
    ),
    "bohb's scheduler with tpe": (
        search(scheduler="bohb", algorithm="optuna"),
        [
            "search.scheduler: got bohb with algorithm optuna; bohb's HyperBand goes with bohb's model: "
            "set search.algorithm to bohb, or this to hyperband"
        ],
    ),
    "bohb's model without rungs": (
        search(algorithm="bohb"),
        [
            "search.scheduler: got none with algorithm bohb, which learns from rungs: "
            "give bohb, hyperband or asha, or set search.algorithm to optuna"
        ],
    ),
    "bohb's model and the median": (
        search(algorithm="bohb", scheduler="median"),
        [
            "search.scheduler: got median with algorithm bohb, which learns from rungs: "
            "give bohb, hyperband or asha, or set search.algorithm to optuna"
        ],
    ),
    "pbt with a searcher": (
        search(algorithm="optuna", scheduler="pbt"),
        [
            "search.scheduler: got pbt with algorithm optuna; its trials change their settings as they go: "
            "set search.algorithm to random, or this to asha"
        ],
    ),
    "pb2 with a grid": (
        {"search.space": {LR: {"grid": [0.1, 0.2]}}, "search.algorithm": "grid", "search.scheduler": "pb2"},
        [
            "search.scheduler: got pb2 with algorithm grid; its trials change their settings as they go: "
            "set search.algorithm to random, or this to asha",
            f"search.scheduler: got pb2, but search.space has no ranges that it could "
            f"change in mid-trial; search some of {IN_MID_TRIAL}",
        ],
    ),
    "nsga2 with early stops": (
        search(algorithm={"optuna": {"sampler": "nsga2"}}, scheduler="asha"),
        [
            "search.scheduler: got asha with sampler nsga2, which learns nothing from trials that stopped early: "
            "give none, or set search.algorithm.optuna.sampler to tpe"
        ],
    ),
    "nsga2 with a generation of one": (
        search(algorithm={"optuna": {"sampler": "nsga2", "startup": 1}}),
        [
            "search.algorithm.optuna.startup: got 1 with sampler nsga2, whose generations are as large; "
            "a point has two parents: give at least 2, or null for 10"
        ],
    ),
    "cmaes over a list": (
        {
            "search.space": {LR: RANGE, STRATEGY: {"choice": ["full", "head"]}},
            "search.algorithm": {"optuna": {"sampler": "cmaes"}},
        },
        [
            "search.space.transfer.strategy: has a choice; sampler cmaes moves in ranges alone: "
            "use uniform, loguniform, quniform or randint, or sampler tpe"
        ],
    ),
    "cmaes under a condition": (
        {
            "search.space": {LR: RANGE, "train.weight_decay": {**RANGE, "when": {STRATEGY: "full"}}},
            "search.algorithm": {"optuna": {"sampler": "cmaes"}},
        },
        [
            "search.space.train.weight_decay: has a condition; sampler cmaes moves in ranges alone: "
            "use uniform, loguniform, quniform or randint, or sampler tpe"
        ],
    ),
    "two metrics, one mode": (
        search(metric=["eval_f1", "eval_loss"], mode="max"),
        ["search.mode: got 1 for 2 metrics; give a list with one of max, min for each"],
    ),
    "no metric": (search(metric=[], mode=[]), ["search.mode: got no metric; give at least one search.metric"]),
    "a metric twice": (
        search(metric=["eval_f1", "eval_f1"], mode=["max", "max"]),
        ["search.metric: got eval_f1 twice; give each metric once"],
    ),
    "one of the modes": (
        search(metric=["eval_f1", "eval_loss"], mode=["max", "max"]),
        ["search.mode: got max with metric eval_loss, of which less is better; give min"],
    ),
    "two metrics and a scheduler": (
        search(metric=["eval_f1", "eval_loss"], mode=["max", "min"], scheduler="asha"),
        ["search.scheduler: got asha with 2 metrics; a scheduler stops trials by one: give none, or one search.metric"],
    ),
    "two metrics and cmaes": (
        search(metric=["eval_f1", "eval_loss"], mode=["max", "min"], algorithm={"optuna": {"sampler": "cmaes"}}),
        [
            "search.algorithm: got cmaes with 2 metrics, and it follows one: "
            "give optuna with sampler tpe or nsga2, or one search.metric"
        ],
    ),
    "pbt over what cannot change": (
        {"search.space": {"train.seed": {"choice": [1, 2]}}, "search.scheduler": "pbt"},
        [
            f"search.scheduler: got pbt, but search.space has no setting that it could "
            f"change in mid-trial; search some of {IN_MID_TRIAL}"
        ],
    ),
    "pbt told to change what cannot change": (
        {
            "search.space": {LR: RANGE, "train.seed": {"choice": [1, 2]}},
            "search.scheduler": {"pbt": {"mutate": [LR, "train.seed", "train.epochs"]}},
        },
        [
            f"search.scheduler.pbt.mutate: train.seed cannot change while a trial runs; "
            f"give some of {IN_MID_TRIAL}, or take it out",
            "search.scheduler.pbt.mutate: train.epochs is not in search.space; give it a domain there, or take it out",
        ],
    ),
    "pbt told to change the optimizer": (
        {
            "search.space": {LR: RANGE, "train.optimizer": {"choice": ["adamw", "lion"]}},
            "search.scheduler": {"pbt": {"mutate": ["train.optimizer"]}},
        },
        [
            "search.scheduler.pbt.mutate: train.optimizer cannot change while a trial runs; "
            f"give some of {IN_MID_TRIAL}, or take it out",
        ],
    ),
    "pbt over what the optimizer depends on": (
        {
            "search.space": {
                "train.lr_schedule": {"choice": ["linear", "cosine"]},
                "train.optimizer": {"choice": ["adamw", "lion"], "when": {"train.lr_schedule": "linear"}},
            },
            "search.scheduler": "pbt",
        },
        [
            "search.space.train.optimizer.when: train.lr_schedule changes in mid-trial, and train.optimizer cannot; "
            "take the condition out, or leave train.lr_schedule out of mutate"
        ],
    ),
    "pb2 told to change a list": (
        {
            "search.space": {LR: RANGE, "train.weight_decay": {"choice": [0.0, 0.1]}},
            "search.scheduler": {"pb2": {"mutate": [LR, "train.weight_decay"]}},
        },
        [
            "search.scheduler.pb2.mutate: train.weight_decay is no plain range, which pb2's model needs; "
            "use uniform, loguniform, quniform or randint without when, or pbt"
        ],
    ),
    "a population of one": (
        search(scheduler="pbt", trials=1),
        ["search.trials: got 1 with pbt; a population has at least 2"],
    ),
    "warm start of what learns nothing": (
        search(**{"from": "last-week"}),
        [
            "search.from: got 'last-week' with algorithm random, which learns nothing from results; "
            "set search.algorithm to optuna or bohb, or take it out"
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_pair_gets_exactly_this_message(case):
    assert_faults(*CASES[case])


ALGORITHMS = ("random", "grid", "optuna", {"optuna": {"sampler": "cmaes"}}, {"optuna": {"sampler": "nsga2"}}, "bohb")
SCHEDULERS = ("none", "asha", "hyperband", "bohb", "median", "pbt", "pb2")
SOUND = {
    "random": ("none", "asha", "hyperband", "median", "pbt", "pb2"),
    "grid": ("none", "asha", "hyperband", "median"),
    "optuna": ("none", "asha", "hyperband", "median"),
    "cmaes": ("none", "asha", "hyperband", "median"),
    "nsga2": ("none",),
    "bohb": ("asha", "hyperband", "bohb"),
}


@pytest.mark.parametrize(("algorithm", "scheduler"), list(itertools.product(ALGORITHMS, SCHEDULERS)), ids=str)
def test_every_pair_is_accepted_or_refused_as_the_table_says(algorithm, scheduler):
    name = algorithm["optuna"]["sampler"] if isinstance(algorithm, dict) else algorithm
    space = {LR: {"grid": [0.1, 0.2]} if name == "grid" else RANGE, "train.weight_decay": RANGE}
    settings = {"search.space": space, "search.algorithm": algorithm, "search.scheduler": scheduler}
    if scheduler in SOUND[name]:
        assert recipe_from_dict(changed(settings)).search.scheduler.name == scheduler
    else:
        with pytest.raises(RecipeError, match=r"search\.scheduler: got"):
            recipe_from_dict(changed(settings))


def test_a_recipe_with_search_settings_comes_back_equal_from_its_own_dict():
    settings = search(
        algorithm={"optuna": {"sampler": "nsga2", "startup": 4}}, metric=["eval_f1", "eval_loss"], mode=["max", "min"]
    )
    recipe = recipe_from_dict(changed(settings))
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["search"]["algorithm"] == {"optuna": {"sampler": "nsga2", "startup": 4}}
    assert (recipe.search.metric, recipe.search.modes) == ("eval_f1", ("max", "min"))
    plain = recipe_from_dict(changed(search()))
    assert (plain.to_dict()["search"]["algorithm"], plain.to_dict()["search"]["metric"]) == ("random", "eval_accuracy")


def test_a_population_changes_what_it_can():
    space = {LR: RANGE, "train.seed": {"choice": [1, 2]}, "train.lr_schedule": {"choice": ["linear", "cosine"]}}
    of = {
        name: mutated_keys(recipe_from_dict(changed({"search.space": space, "search.scheduler": name})))
        for name in ("pbt", "pb2", "asha")
    }
    assert of == {"pbt": (LR, "train.lr_schedule"), "pb2": (LR,), "asha": ()}
