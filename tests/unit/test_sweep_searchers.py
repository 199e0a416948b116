"""Searchers: what they suggest follows from the journal alone, they learn, and points are always of the space."""

from __future__ import annotations

import math
import statistics

import pytest

from tlcore.recipe import grid_points, recipe_from_dict
from tlcore.recipe import space as space_module
from tlcore.recipe.domains import contains
from tlcore.recipe.space import fits
from tlcore.storage.journal import SweepState
from tlcore.sweep.search.searchers import make_searcher
from tlcore.sweep.search.warm import fitting_point

pytestmark = pytest.mark.unit

RANGES = {
    "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "train.weight_decay": {"uniform": [0.0, 0.1]},
    "train.global_batch_size": {"quniform": [8, 64, 8]},
    "train.seed": {"randint": [0, 9]},
}
CONDITIONAL = {
    "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "transfer.strategy": {"choice": ["full", "last_n"]},
    "transfer.n": {"randint": [1, 4], "when": {"transfer.strategy": "last_n"}},
    "train.activation_checkpointing": {"choice": [True, False]},
}
BOHB = {"algorithm": {"bohb": {"random_share": 0.2}}, "scheduler": {"bohb": {"brackets": 2, "reduction": 2}}}
SEARCHERS = {
    "random": {},
    "tpe": {"algorithm": {"optuna": {"sampler": "tpe", "startup": 5}}},
    "cmaes": {"algorithm": {"optuna": {"sampler": "cmaes"}}},
    "nsga2": {"algorithm": {"optuna": {"sampler": "nsga2", "startup": 6}}},
    "bohb": BOHB,
}
TWO = {"metric": ["eval_accuracy", "eval_loss"], "mode": ["max", "min"]}


def recipe(space=RANGES, seed=0, **search):
    return recipe_from_dict(
        {
            "name": "n",
            "task": "text-classification",
            "model": {"source": "package:x/y"},
            "data": {"train": "train.csv"},
            "storage": "/tmp/store",
            "train": {"seed": seed} if "train.seed" not in space else {},
            "search": {"space": dict(space), "trials": 40, **search},
        }
    )


def quality(point):
    """Best at a learning rate of 3e-4 without weight decay."""
    return 1.0 - 0.4 * abs(math.log10(point["train.learning_rate"] / 3e-4)) - point.get("train.weight_decay", 0.0)


def run(searcher, count, journal=(), parallel=3, of=quality):
    """A sweep of `count` trials, `parallel` at a time; every third stops early. Returns its journal."""
    journal, running = list(journal), []
    first = sum(entry["kind"] == "suggested" for entry in journal)

    def tell(**entry):
        journal.append(entry)
        searcher.observe(entry)

    for index in range(first, count):
        name = f"t{index:03d}"
        tell(kind="suggested", trial=name, point=searcher.suggest(index))
        running.append((name, journal[-1]["point"], index))
        if len(running) == parallel:
            finish(tell, *running.pop(0), of)
    while running:
        finish(tell, *running.pop(0), of)
    return journal


def finish(tell, name, point, index, of):
    value = of(point)
    for fraction in (0.5, 1.0):
        metrics = {
            "eval_accuracy": value * (0.5 + fraction / 2),
            "eval_loss": 1 - value + point.get("train.weight_decay", 0),
        }
        tell(kind="result", trial=name, fraction=fraction, step=1, metrics=metrics, checkpoint_step=1)
        if index % 3 == 2 and fraction == 0.5:
            tell(kind="stopped", trial=name, reason="scheduler")
            return
    tell(kind="completed", trial=name)


def warmed(used):
    return {"kind": "warmed", "trial": None, "source": "file:///old", "used": used, "unused": 0}


def points(journal):
    return [entry["point"] for entry in journal if entry["kind"] == "suggested"]


@pytest.mark.parametrize("cut", [7, 31, 58])
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_fresh_searcher_told_the_journal_suggests_what_the_first_one_would_have(name, cut):
    """Nothing of a searcher is stored; the journal, cut at any entry, is enough."""
    chosen = recipe(**SEARCHERS[name])
    whole = run(make_searcher(chosen), 22, parallel=1)
    fresh = make_searcher(chosen)
    for entry in whole[:cut]:
        fresh.observe(entry)
    index = sum(entry["kind"] == "suggested" for entry in whole[:cut])
    rest = whole[cut:]
    while rest:
        if rest[0]["kind"] == "suggested":
            assert fresh.suggest(index) == rest[0]["point"], index
            index += 1
        fresh.observe(rest.pop(0))


@pytest.mark.parametrize("name", SEARCHERS)
def test_asking_twice_changes_nothing(name):
    chosen = recipe(**SEARCHERS[name])
    one, other = make_searcher(chosen), make_searcher(chosen)
    journal = run(one, 12)
    for entry in journal:
        if entry["kind"] == "suggested":
            other.suggest(int(entry["trial"][1:]))
            other.suggest(int(entry["trial"][1:]))
        other.observe(entry)
    assert one.suggest(12) == other.suggest(12)


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name != "random"])
def test_another_seed_gives_other_points(name):
    space = {key: domain for key, domain in RANGES.items() if key != "train.seed"}
    one, other = (points(run(make_searcher(recipe(space, seed, **SEARCHERS[name])), 12)) for seed in (0, 1))
    assert all(here != there for here, there in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "space"),
    [
        *((name, "ranges") for name in SEARCHERS),
        *((name, "conditional") for name in SEARCHERS if name != "cmaes"),  # which is refused
    ],
)
def test_every_point_is_of_the_space_and_accepted_by_the_recipe(name, space):
    chosen = recipe({"ranges": RANGES, "conditional": CONDITIONAL}[space], **SEARCHERS[name])
    for point in points(run(make_searcher(chosen), 25)):
        assert all(contains(chosen.search.space[key], value) for key, value in point.items())
        assert ("transfer.n" in point) == (point.get("transfer.strategy") == "last_n")
        assert fits(chosen, point) is None


@pytest.mark.parametrize("name", ["tpe", "cmaes", "bohb"])
def test_what_is_learnt_beats_chance(name):
    space = {key: RANGES[key] for key in ("train.learning_rate", "train.weight_decay")}
    gains = []
    for seed in range(4):
        learnt = points(run(make_searcher(recipe(space, seed, **SEARCHERS[name])), 36))[-12:]
        chance = points(run(make_searcher(recipe(space, seed)), 36))[-12:]
        gains.append(statistics.mean(map(quality, learnt)) - statistics.mean(map(quality, chance)))
    assert statistics.mean(gains) > 0.05, gains


def test_what_is_learnt_of_two_metrics_beats_chance():
    """The front is a learning rate of 3e-4 at any weight decay: what one metric gains by it, the other loses."""
    space = {key: RANGES[key] for key in ("train.learning_rate", "train.weight_decay")}

    def away(point):
        return abs(math.log10(point["train.learning_rate"] / 3e-4))

    def accuracy(point):
        return 1.0 - 0.4 * away(point) + point["train.weight_decay"] / 2

    gains = []
    for seed in range(3):
        learnt = points(run(make_searcher(recipe(space, seed, **SEARCHERS["nsga2"], **TWO)), 72, of=accuracy))[-24:]
        chance = points(run(make_searcher(recipe(space, seed, **TWO)), 72, of=accuracy))[-24:]
        gains.append(statistics.mean(map(away, chance)) - statistics.mean(map(away, learnt)))
    assert statistics.mean(gains) > 0.15, gains


def generations(searcher, key):
    """Of everything told, the sampler's own note of its generation."""
    return [told.marks.get(key) for told in searcher._told.values()]


def test_given_points_and_earlier_ones_are_nsga2s_first_generation():
    chosen = recipe(**SEARCHERS["nsga2"], first=[{"train.learning_rate": 5e-4}])
    searcher = make_searcher(chosen)
    used = [
        {"point": point, "fraction": 1.0, "metrics": {"eval_accuracy": quality(point)}}
        for point in points(run(make_searcher(recipe()), 3))
    ]
    searcher.observe(warmed(used))
    run(searcher, 30)
    found = generations(searcher, "NSGAIISampler:generation")
    assert found[:4] == [0] * 4
    assert found == sorted(found) and found[-1] >= 2


@pytest.mark.parametrize("name", SEARCHERS)
def test_first_points_come_first(name):
    first = [{"train.learning_rate": 5e-4}, {"train.learning_rate": 2e-5, "train.weight_decay": 0.05}]
    chosen = recipe(**SEARCHERS[name], first=first)
    journal = run(make_searcher(chosen), 8)
    for given, point in zip(first, points(journal), strict=False):
        assert given.items() <= point.items()
        assert set(point) == set(RANGES)


def test_a_grid_is_crossed_once_for_all_its_trials(monkeypatch):
    """Crossed anew for each of a thousand points it took a minute, with conditions many."""
    grids = {"train.epochs": {"grid": [1, 2, 3]}, "train.weight_decay": {"grid": [0.0, 0.1]}}
    chosen = recipe(grids, algorithm="grid", trials=6)
    expected = grid_points(chosen)
    crossed = []
    grid = space_module._grid
    monkeypatch.setattr(space_module, "_grid", lambda *given: crossed.append(given) or grid(*given))
    searcher = make_searcher(chosen)
    for point, suggested in zip(expected, map(searcher.suggest, range(6)), strict=True):
        assert suggested == point
        suggested.clear()
    assert [searcher.suggest(index) for index in range(6)] == expected
    assert len(crossed) == 1


def test_a_metric_that_was_not_finite_and_a_failed_trial_stop_no_searcher():
    for name in ("tpe", "cmaes", "nsga2", "bohb"):
        searcher = make_searcher(recipe(**SEARCHERS[name]))
        run(searcher, 6)
        for index in (6, 7):
            trial = f"t{index:03d}"
            searcher.observe({"kind": "suggested", "trial": trial, "point": searcher.suggest(index)})
            if index == 6:
                metrics = {"eval_accuracy": None, "eval_loss": None}
                searcher.observe({"kind": "result", "trial": trial, "fraction": 1.0, "metrics": metrics})
            searcher.observe({"kind": "completed" if index == 6 else "failed", "trial": trial})
        assert set(searcher.suggest(8)) == set(RANGES)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_several_metrics(name):
    chosen = recipe(**SEARCHERS[name], **TWO)
    assert len(points(run(make_searcher(chosen), 15))) == 15


@pytest.mark.parametrize("name", ["tpe", "cmaes", "bohb"])
def test_results_of_an_earlier_sweep_are_learnt_from(name):
    space = {key: RANGES[key] for key in ("train.learning_rate", "train.weight_decay")}
    chosen = recipe(space, **SEARCHERS[name])
    used = [
        {"point": point, "fraction": 1.0, "metrics": {"eval_accuracy": quality(point)}}
        for point in points(run(make_searcher(recipe(space, 5)), 30))
    ]
    cold, warm = make_searcher(chosen), make_searcher(chosen)
    warm.observe(warmed(used))
    gain = statistics.mean(map(quality, points(run(warm, 10)))) - statistics.mean(map(quality, points(run(cold, 10))))
    assert gain > 0.0


@pytest.mark.parametrize("count", [3, 40])
def test_cmaes_begins_where_the_earlier_sweep_was_good(count):
    """Also with few results, with some of half a trial, and beside a setting of one value."""
    space = {key: RANGES[key] for key in ("train.learning_rate", "train.weight_decay")}
    space["train.global_batch_size"] = {"quniform": [8, 15, 8]}
    chosen = recipe(space, **SEARCHERS["cmaes"])

    def suggestions(best):
        used = []
        for index in range(count):
            rate = best * 1.01**index
            point = {"train.learning_rate": rate, "train.weight_decay": 0.02, "train.global_batch_size": 8}
            metrics = {"eval_accuracy": 1.0 - index / 100}
            used.append({"point": point, "fraction": 0.5 if index % 3 == 1 else 1.0, "metrics": metrics})
        searcher = make_searcher(chosen)
        searcher.observe(warmed(used))
        return [math.log10(point["train.learning_rate"]) for point in points(run(searcher, 5))]

    low, high = suggestions(2e-5), suggestions(5e-4)
    assert statistics.mean(low) < -4.3 and statistics.mean(high) > -3.7, (low, high)


MICRO = "train.micro_batch_size"


@pytest.mark.parametrize("searched", [False, True])
def test_repaired_points_are_learnt_from_as_they_were_suggested(searched):
    """What a repair gives may lie outside the space; CMA-ES then went back to chance, or never left its first generation."""
    space = {key: RANGES[key] for key in ("train.learning_rate", "train.weight_decay")}
    chosen = recipe({**space, MICRO: {"quniform": [4, 8, 4]}} if searched else space, **SEARCHERS["cmaes"])
    searcher, journal = make_searcher(chosen), []

    def tell(**entry):
        journal.append(entry)
        searcher.observe(entry)

    for index in range(30):
        name, point = f"t{index:03d}", searcher.suggest(index)
        repaired = {MICRO: [point.get(MICRO, "auto"), 2]}
        tell(kind="suggested", trial=name, point={**point, MICRO: 2}, repaired=repaired)
        finish(tell, name, point, index, quality)
    assert max(filter(None, generations(searcher, "cma:generation"))) >= 3
    assert all(told.params.keys() == chosen.search.space.keys() for told in searcher._told.values())
    fresh = make_searcher(chosen)
    for entry in journal:
        fresh.observe(entry)
    assert fresh.suggest(30) == searcher.suggest(30)


def test_earlier_points_fit_where_the_space_has_them():
    chosen = recipe({key: RANGES[key] for key in ("train.learning_rate", "train.weight_decay")})
    flat = {"train.learning_rate": 2e-4, "train.weight_decay": 0.01, "train.epochs": 1}
    found = {"train.learning_rate": 2e-4, "train.weight_decay": 0.01}
    assert fitting_point(chosen, flat, {"train.learning_rate"}) == found
    assert fitting_point(chosen, flat | {"train.learning_rate": 5e-3}, {"train.learning_rate"}) is None
    assert fitting_point(chosen, flat, {"train.learning_rate", "train.epochs"}) == found
    assert fitting_point(chosen, flat | {"train.epochs": 3}, {"train.learning_rate", "train.epochs"}) is None


def test_earlier_points_fit_conditions_too():
    chosen = recipe(CONDITIONAL)
    flat = {"train.learning_rate": 2e-4, "transfer.strategy": "full", "train.activation_checkpointing": False}
    assert "transfer.n" not in fitting_point(chosen, flat | {"transfer.n": None}, {"train.learning_rate"})
    assert fitting_point(chosen, flat | {"transfer.strategy": "last_n", "transfer.n": 7}, set()) is None


def test_the_front_is_what_nothing_else_beats_in_everything():
    entries = []
    for name, accuracy, loss in (
        ("t000", 0.9, 0.5),
        ("t001", 0.8, 0.3),
        ("t002", 0.7, 0.4),
        ("t003", 0.9, 0.5),
        ("t004", None, 0.1),
    ):
        entries += [
            {"kind": "suggested", "trial": name, "point": {}},
            {
                "kind": "result",
                "trial": name,
                "fraction": 1.0,
                "step": 1,
                "metrics": {"eval_accuracy": accuracy, "eval_loss": loss},
            },
        ]
    state = SweepState.from_entries(entries)
    assert [trial.trial for trial in state.front(("eval_accuracy", "eval_loss"), ("max", "min"))] == [
        "t000",
        "t003",
        "t001",
    ]
