"""Which run a resume goes on with, and which recipes it refuses: the search decides what a sweep's trials are."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta

import pytest

from tlcore.errors import DataError, ModelError, RequestError, SweepError, TrainError
from tlcore.recipe import recipe_from_dict
from tlcore.storage import create_run
from tlcore.storage.journal import SweepState
from tlcore.sweep.halt import Halt
from tlcore.sweep.runner import _check_progress, identity, one_training, run_to_resume
from tlcore.train.budget import Exhausted

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 28, tzinfo=UTC)
LR, DECAY = "train.learning_rate", "train.weight_decay"
RANGE = {"loguniform": [1e-5, 1e-3]}
GRIDS = {"space": {LR: {"grid": [1e-4, 2e-4]}}, "algorithm": "grid"}


@pytest.fixture
def made(tmp_path):
    """Recipes over one storage: `made(search..., train={...})`."""

    def make(train=None, **search):
        data = {
            "name": "n",
            "task": "text-classification",
            "model": {"source": "package:x/y"},
            "data": {"train": "train.csv"},
            "storage": str(tmp_path / "store"),
            "train": train or {},
            "search": copy.deepcopy({"space": {LR: RANGE}, "trials": 4, **search}),
        }
        return recipe_from_dict({**data, "search": {key: value for key, value in data["search"].items() if value}})

    return make


def begin(recipe, hours=0, **facts):
    started = NOW + timedelta(hours=hours)
    return create_run(recipe.storage, recipe.name, {**identity(recipe), **facts}, started, str(hours))


@pytest.mark.parametrize("search", [{}, {"trials": 9}, {"trials": 2}, {"at_once": 2}], ids=str)
def test_the_same_search_goes_on_with_more_or_fewer_trials_and_so_many_at_a_time(made, search):
    run = begin(made())
    assert run_to_resume(made(**search)) == run


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            {},
            {"space": {LR: {"loguniform": [1e-5, 1e-2]}}},
            "search.space.train.learning_rate was {'loguniform': [1e-05, ",
        ),
        ({}, {"space": {LR: RANGE, DECAY: {"choice": [0.1]}}}, "train.weight_decay was None, is {'choice': [0.1]}"),
        (
            {"scheduler": "asha"},
            {},
            "search.scheduler was {'asha': {'grace': 0.25, 'reduction': 2.0, 'workers': None}}, is 'none'",
        ),
        ({"scheduler": "asha"}, {"scheduler": {"asha": {"grace": 0.5}}}, "'grace': 0.5"),
        ({}, {"algorithm": "optuna"}, "search.algorithm was 'random', is {'optuna': {"),
        (
            GRIDS | {"trials": 2},
            {"space": {LR: {"grid": [2e-4, 1e-4]}}, "algorithm": "grid", "trials": 2},
            "[0.0001, 0.0002]",
        ),
        ({}, {"metric": "eval_f1"}, "search.metric was 'eval_accuracy', is 'eval_f1'"),
        ({}, {"metric": "eval_loss", "mode": "min"}, "search.mode was 'max', is 'min'"),
        ({}, {"first": [{LR: 1e-4}]}, "search.first was [], is [{'train.learning_rate': 0.0001}]"),
        ({}, {"train": {"epochs": 3}}, "train.epochs was 1, is 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_search_is_refused_by_the_settings_that_differ(made, before, after, said):
    run = begin(made(**before))
    with pytest.raises(RequestError) as refused:
        run_to_resume(made(**after))
    assert refused.value.message.startswith(f"cannot resume {run.url} with another recipe: ")
    assert said in refused.value.message
    assert run_to_resume(made(**before)) == run


def test_one_training_and_a_sweep_of_the_same_name_are_not_taken_for_each_other(made):
    recipe = made(scheduler="asha")
    sweep = begin(recipe)
    assert run_to_resume(recipe) == sweep
    with pytest.raises(RequestError, match=r"search\.space\.train\.learning_rate was .*, is None"):
        run_to_resume(one_training(recipe))
    training = begin(one_training(recipe), hours=1)
    assert run_to_resume(one_training(recipe)) == training
    with pytest.raises(RequestError, match=r"search\.scheduler was 'none', is"):
        run_to_resume(recipe)


def test_a_training_that_was_begun_without_ray_or_imported_goes_on_with_its_whole_recipe(made):
    recipe = made(scheduler="asha", first=[{LR: 1e-4}])
    run = begin(recipe, kind="train")
    assert run_to_resume(one_training(recipe)) == run
    with pytest.raises(RequestError, match=r"search\.space"):
        run_to_resume(recipe)


# A sweep in which no trial took a step is no success.

FAILED = {
    "kind": "failed",
    "trial": "t000",
    "error": "TrainError",
    "message": "rank 1: KeyError: 'x'",
    "hint": "",
    "rank": 1,
}


def folded(*entries):
    return SweepState.from_entries(
        [{"kind": "suggested", "trial": "t000", "point": {}, "time": NOW.isoformat()}, *entries]
    )


def result(fraction=0.5):
    facts = {"step": 5, "fraction": fraction, "metrics": {}, "checkpoint_step": 5}
    return {"kind": "result", "trial": "t000", "time": NOW.isoformat(), **facts}


def test_a_sweep_without_a_report_fails_by_its_first_failure(tmp_path):
    with pytest.raises(SweepError) as end:
        _check_progress(folded({**FAILED, "time": NOW.isoformat()}), Halt(), False, tmp_path)
    assert end.value.exit_code == 1
    assert end.value.message == "no trial took a step; t000 failed first: TrainError: rank 1: KeyError: 'x'"
    assert (end.value.fields["trial"], end.value.fields["rank"], end.value.hint) == ("t000", 1, f"see {tmp_path}")
    with pytest.raises(SweepError, match="no trial took a step") as end:
        _check_progress(folded(), Halt(), False, tmp_path)
    assert end.value.exit_code == 1


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("no column"), 2), (ModelError("no config.json"), 2), (TrainError("KeyError"), 1)]
)
def test_an_error_that_every_trial_would_meet_ends_the_sweep_by_its_own_code(tmp_path, error, code):
    """2 is the request's fault, here as where the same is found before anything is started."""
    halt = Halt()
    halt.fail(error)
    with pytest.raises(type(error)) as end:
        _check_progress(folded({**FAILED, "time": NOW.isoformat()}), halt, False, tmp_path)
    assert end.value is error
    assert end.value.exit_code == code


def test_a_budget_that_is_used_up_before_any_report_is_told_as_such(tmp_path):
    halt = Halt()
    halt.exhaust(Exhausted("budget.hours", 1.0, 1.1))
    with pytest.raises(SweepError, match="the budget ended the sweep before any trial reported") as end:
        _check_progress(folded(), halt, False, tmp_path)
    assert end.value.exit_code == 1


def test_a_report_or_an_interrupt_is_no_failure_of_the_sweep(tmp_path):
    _check_progress(folded(result()), Halt(), False, tmp_path)
    _check_progress(folded(), Halt(), True, tmp_path)
