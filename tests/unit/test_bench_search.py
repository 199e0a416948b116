"""The search bench's accounting: the steps that arms took, what was run under which seed, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench.search.arms import FULL, QUICK, arm_recipe, arms, design_digest
from jobs.bench.search.figures import append_log, is_done, read_log, summarize, table
from jobs.bench.search.run import rates, worker_steps
from tlcore.recipe import report_fractions, trial_point

pytestmark = pytest.mark.unit

RATE = "train.learning_rate"


def entry(kind, trial, **facts):
    return {"kind": kind, "trial": trial, **facts}


def suggested(trial, rate):
    return entry("suggested", trial, point={RATE: rate})


def started(trial, workers=1):
    return entry("started", trial, workers=workers)


def result(trial, step):
    return entry("result", trial, step=step, fraction=step / 40)


def took_over(trial, parent, step, rate):
    return entry("took_over", trial, parent=parent, step=step, fraction=step / 40, point={RATE: rate})


def test_steps_are_those_between_a_trials_reports():
    journal = [started("t000"), result("t000", 10), started("t001"), result("t000", 40), result("t001", 10)]
    assert worker_steps([entry("resumed", None), *journal]) == 50


def test_a_trial_that_waited_goes_on_where_it_stood():
    assert worker_steps([started("t000"), result("t000", 10), started("t000"), result("t000", 20)]) == 20


def test_a_state_that_was_taken_over_was_trained_once():
    journal = [
        started("t000"),
        result("t000", 20),
        started("t001"),
        result("t001", 10),
        took_over("t001", "t000", 20, 1),
    ]
    assert worker_steps([*journal, started("t001"), result("t001", 30)]) == 20 + 10 + 10


def test_steps_that_a_loss_made_a_trial_repeat_count_again():
    journal = [started("t000"), result("t000", 20), entry("lost", "t000", step=10), result("t000", 40)]
    assert worker_steps(journal) == 20 + 30
    assert worker_steps([started("t000"), entry("lost", "t000", step=None), result("t000", 5)]) == 5


def test_workers_multiply():
    journal = [started("t000"), result("t000", 10), started("t000", workers=4), result("t000", 20)]
    assert worker_steps(journal) == 10 + 4 * 10


def test_the_rates_of_a_final_state_go_back_through_its_donors():
    journal = [suggested("t000", 0.1), suggested("t001", 0.2), took_over("t001", "t000", 10, 0.12)]
    journal += [took_over("t000", "t001", 20, 0.08), took_over("t001", "t000", 30, 0.05)]
    assert rates(journal, "t001") == [(0.0, 0.1), (0.25, 0.12), (0.5, 0.08), (0.75, 0.05)]
    assert rates(journal, "t000") == [(0.0, 0.1), (0.25, 0.12), (0.5, 0.08)]


def test_a_takeover_of_a_younger_state_forgets_what_came_later():
    journal = [suggested("t000", 0.1), suggested("t001", 0.2), took_over("t000", "t001", 30, 0.3)]
    assert rates([*journal, took_over("t000", "t001", 10, 0.4)], "t000") == [(0.0, 0.2), (0.25, 0.4)]


def test_a_space_without_a_rate_has_no_course_of_it():
    assert rates([entry("suggested", "t000", point={"transfer.n": 2})], "t000") == []


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_every_arm_is_a_recipe_of_one_worker_on_the_same_data(size):
    found = [arm_recipe(arm, size, 3, Path("data"), Path("store")) for arm in arms(size)]
    assert len({recipe.name for recipe in found}) == len(found)
    assert {recipe.data for recipe in found} == {found[0].data}
    assert {(recipe.resources.workers, recipe.train.seed, recipe.train.global_batch_size) for recipe in found} == {
        (1, 3, 16)
    }
    assert round(found[0].data.validation * (size.train_rows + size.validation_rows)) == size.validation_rows


def test_pbt_and_random_search_begin_with_the_same_points_and_have_the_same_steps():
    by_name = {(arm.part, arm.name): arm_recipe(arm, FULL, 1, Path("d"), Path("s")) for arm in arms(FULL)}
    pbt, *others = (by_name["population", name] for name in ("pbt", "random", "random-decay"))
    for other in others:
        assert [trial_point(pbt, 1, index) for index in range(FULL.population)] == [
            trial_point(other, 1, index) for index in range(FULL.population)
        ]
        assert (pbt.search.trials, pbt.train.epochs) == (other.search.trials, other.train.epochs)
    assert [round(each * 60, 6) for each in report_fractions(pbt)] == [10, 20, 30, 40, 50, 60]


def test_the_default_arm_is_the_recipe_as_it_stands():
    (default,) = [
        arm_recipe(arm, FULL, 0, Path("d"), Path("s"))
        for arm in arms(FULL)
        if (arm.part, arm.name) == ("sweep", "default")
    ]
    assert (default.search.space, default.search.trials) == ({}, 1)
    assert (default.transfer.strategy, default.train.learning_rate) == ("full", 2e-4)


def test_a_design_has_one_name_and_another_one_another():
    assert design_digest(FULL) == design_digest(FULL) != design_digest(QUICK)


def record(part, arm, seed, accuracy, loss=0.5, steps=480):
    return {
        "design": "d",
        "part": part,
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "trials": 8,
        "failed": 0,
        "takeovers": 0,
        "best": {"trial": "t000", "point": {}, "metrics": {"eval_accuracy": 0.8, "eval_loss": 0.4}, "rates": []},
        "test": {"test_accuracy": accuracy, "test_loss": loss},
        "wall_s": 1.0,
    }


def test_a_log_that_was_cut_off_keeps_its_whole_lines(tmp_path):
    path = tmp_path / "below" / "log.jsonl"
    append_log(path, record("sweep", "tpe", 0, 0.7))
    with path.open("a") as file:
        file.write('{"design": "d", "pa')
    assert [each["arm"] for each in read_log(path, "d")] == ["tpe"]
    append_log(path, record("sweep", "asha", 0, 0.7))
    found = read_log(path, "d")
    assert [each["arm"] for each in found] == ["tpe", "asha"]
    assert is_done(found, "sweep", "asha", 0)
    assert not is_done(found, "sweep", "asha", 1) and not is_done(found, "population", "asha", 0)


def test_a_log_of_another_design_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record("sweep", "tpe", 0, 0.7)) + "\n")
    with pytest.raises(ValueError, match="has figures of design d, this is e"):
        read_log(path, "e")
    assert read_log(tmp_path / "none.jsonl", "e") == []


def test_a_summary_takes_any_design_but_not_two(tmp_path):
    path = tmp_path / "log.jsonl"
    append_log(path, record("sweep", "tpe", 0, 0.7))
    assert len(read_log(path)) == 1
    append_log(path, {**record("sweep", "tpe", 1, 0.7), "design": "e"})
    with pytest.raises(ValueError, match="several designs: d, e"):
        read_log(path)


def test_differences_are_over_the_seeds_that_both_arms_have():
    found = [record("population", "pbt", seed, accuracy) for seed, accuracy in enumerate([0.80, 0.82, 0.90])]
    found += [record("population", "random", seed, accuracy) for seed, accuracy in enumerate([0.78, 0.80])]
    figures = summarize(found)["population"]
    assert figures["differences"].keys() == {"pbt - random"}
    gap = figures["differences"]["pbt - random"]["test_accuracy"]
    assert (gap["pairs"], gap["value"]) == (2, 0.02)
    assert figures["arms"]["pbt"]["seeds"] == 3
    assert figures["arms"]["pbt"]["test_accuracy"] == 0.84
    assert "pbt - random: test_accuracy +0.0200" in table(summarize(found))


def test_one_seed_has_no_interval_and_no_arm_no_table():
    found = [record("sweep", "tpe", 0, 0.7), record("sweep", "random", 0, 0.6)]
    assert "one seed: no interval" in table(summarize(found))
    assert table(summarize([])) == "nothing has run yet"
