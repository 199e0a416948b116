"""Each scheduler and each searcher on a real Tune with stub trials: what they decide is done, and a second driver sees the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweep_bench import Notes, read_trace, write_inputs

from tlcore.checkpoint import read_manifest
from tlcore.recipe import recipe_from_dict
from tlcore.storage.journal import SweepState, read_journal
from tlcore.sweep import SweepOptions, run_sweep
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay

pytestmark = pytest.mark.integration

SPACE = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "train.weight_decay": {"uniform": [0.0, 0.1]}}
GRID = {"train.learning_rate": {"grid": [1e-5, 1e-4, 3e-4, 1e-3]}}
BRACKETS = {"brackets": 2, "reduction": 2}
PBT = {"interval": 0.34, "quantile": 0.5}
TPE, CMAES, NSGA2 = ({"optuna": {"sampler": sampler, "startup": 2}} for sampler in ("tpe", "cmaes", "nsga2"))
BOHB = {"bohb": {"random_share": 0.0}}
TWO = {"metric": ["eval_accuracy", "eval_loss"], "mode": ["max", "min"]}

SHORT = {
    "hyperband-tpe": (TPE, {"hyperband": BRACKETS}),
    "bohb-bohb": (BOHB, {"bohb": BRACKETS}),
}
"""What stays in `make test`; PBT has a test on sharded trials there."""
SEARCHERS = {"random": "random", "grid": "grid", "tpe": TPE, "cmaes": CMAES, "bohb": BOHB, "nsga2": NSGA2}
OTHERS = {
    "none": ("none", ("random", "grid", "tpe", "cmaes", "nsga2")),
    "asha": ("asha", ("random", "grid", "tpe", "cmaes", "bohb")),
    "median": ({"median": {"min_trials": 2}}, ("random", "grid", "tpe", "cmaes")),
    "hyperband": ({"hyperband": BRACKETS}, ("random", "grid", "cmaes", "bohb")),
    "pbt": ({"pbt": PBT}, ("random",)),
    "pbt in step": ({"pbt": {**PBT, "synchronous": True}}, ("random",)),
    "pb2": ({"pb2": PBT}, ("random",)),
}
LONG = {
    f"{name}-{searcher}": (SEARCHERS[searcher], scheduler)
    for name, (scheduler, searchers) in OTHERS.items()
    for searcher in searchers
}
PAIRS = [*SHORT, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]


def make_recipe(directory, algorithm, scheduler, **search):
    inputs = write_inputs(Path(directory))
    return recipe_from_dict(
        {
            "name": "pair",
            "task": "text-classification",
            "model": {"source": str(inputs / "model")},
            "data": {"train": str(inputs / "train.csv")},
            "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 4},
            "storage": str(Path(directory) / "store"),
            "search": {
                "space": GRID if algorithm == "grid" else SPACE,
                "first": first_points(algorithm, scheduler),
                "algorithm": algorithm,
                "scheduler": scheduler,
                "trials": 4,
                **search,
            },
        }
    )


def first_points(algorithm, scheduler):
    """One trial at a time: the better one of the first deep bracket waits first, and so is taken up again."""
    rates = [3e-4, 1e-5] if "bohb" in scheduler else [1e-4, 1e-4, 3e-4, 1e-5] if "hyperband" in scheduler else []
    return [] if algorithm == "grid" else [{"train.learning_rate": rate} for rate in rates]


def options(directory, notes, resume=False):
    return SweepOptions(resume=resume, display=notes, logs=Path(directory) / "logs", session="stub_session:StubSession")


@pytest.mark.parametrize("pair", PAIRS)
def test_pair(ray_session, tmp_path, pair):
    algorithm, scheduler = (SHORT | LONG)[pair]
    recipe = make_recipe(tmp_path, algorithm, scheduler, **(TWO if "nsga2" in pair else {}))
    notes = Notes()
    outcome = run_sweep(recipe, options(tmp_path, notes))
    assert outcome.complete
    assert len(outcome.trials) == recipe.search.trials
    assert all(trial.ended for trial in outcome.trials)
    assert any(trial.status == "completed" for trial in outcome.trials)
    groups = {event["group"] for event in notes.of("result")}
    assert len(groups) <= 4, "slots were not kept warm"
    starts = [line for line in read_trace(tmp_path) if line["event"] == "start"]
    if recipe.search.scheduler.brackets is not None:
        assert notes.of("paused")
        assert notes.of("stopped")
        if algorithm != "grid":
            assert [line for line in starts if line["step"] > 0], "no trial was taken up again after it waited"
    if recipe.search.scheduler.population is not None:
        _check_takeovers(outcome, notes, starts)
    _check_replay(recipe, outcome)


def _check_takeovers(outcome, notes, starts):
    store = outcome.run.open()
    taken = notes.of("took_over")
    assert taken
    for entry in taken:
        began = [line for line in starts if line["trial"] == entry["trial"] and line["inherits"]]
        assert any(
            line["step"] == entry["step"] and line["point"] == entry["point"]["train.learning_rate"] for line in began
        ), entry
    for trial in outcome.trials:
        if trial.lineage:
            assert read_manifest(store, trial.trial, trial.checkpoint_step).step == 24


def _check_replay(recipe, outcome):
    """The journal says all that the scheduler decided, and a second driver has nothing left to decide."""
    seats = make_seats(recipe, None)
    replayed = Replay(seats, read_journal(outcome.run.open()))
    assert (replayed.stopped, replayed.pending) == (set(), [])
    assert not seats.get_live_trials()


@pytest.mark.long
def test_a_population_runs_so_many_at_a_time_as_the_recipe_says(ray_session, tmp_path):
    recipe = make_recipe(tmp_path, "random", {"pbt": PBT}, at_once=2)
    small = recipe.resources.model_copy(update={"cpus_per_worker": 1})  # there is room for all four
    outcome = run_sweep(recipe.model_copy(update={"resources": small}), options(tmp_path, Notes()))
    assert [trial.status for trial in outcome.trials] == ["completed"] * 4
    state, running = SweepState(), []
    for entry in read_journal(outcome.run.open()):
        state.apply(entry)
        running.append(sum(trial.status == "running" for trial in state.trials.values()))
    assert max(running) == 2


def test_a_sweep_is_warmed_by_an_earlier_one(ray_session, tmp_path):
    first = run_sweep(make_recipe(tmp_path, "random", "none", trials=3), options(tmp_path, Notes()))
    notes = Notes()
    run_sweep(make_recipe(tmp_path, TPE, "none", trials=1, **{"from": "pair"}), options(tmp_path, notes))
    (warmed,) = notes.of("warmed")
    assert (warmed["source"], len(warmed["used"]), warmed["unused"]) == (first.run.url, 3, 0)
    assert json.dumps(warmed)
