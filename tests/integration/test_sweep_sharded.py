"""Each scheduler and each searcher on real trials: two DeepSpeed ranks at stage 2, checkpoints that are cut by rank.

ASHA, PBT and random search have tests of their own on such trials (`test_sweep_promotion.py`, `test_sweep_pbt.py`), and every pair
has one on stub workers (`test_sweep_pairs.py`).
"""

from __future__ import annotations

import math

import pytest
from sweep_bench import Notes
from test_sweep_pairs import BOHB, BRACKETS, CMAES, GRID, NSGA2, PBT, SPACE, TPE, TWO
from test_sweep_pbt import DATA

from tests.small_model import make_small_bert
from tlcore.checkpoint import read_manifest, verify
from tlcore.recipe import recipe_from_dict
from tlcore.storage.journal import read_journal
from tlcore.sweep import SweepOptions, run_sweep
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay

pytestmark = [pytest.mark.integration, pytest.mark.long]

SHARDED = {
    "hyperband-tpe": (TPE, {"hyperband": BRACKETS}),
    "bohb-bohb": (BOHB, {"bohb": BRACKETS}),
    "median-cmaes": (CMAES, {"median": {"min_trials": 2}}),
    "none-grid": ("grid", "none"),
    "none-nsga2": (NSGA2, "none"),
    "pb2-random": ("random", {"pb2": PBT}),
}


def make_recipe(directory, algorithm, scheduler, **search):
    return recipe_from_dict(
        {
            "name": "sharded",
            "task": "text-classification",
            "model": {"source": str(make_small_bert(directory / "model"))},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"epochs": 2, "global_batch_size": 24},
            "deepspeed": {"zero_stage": 2},
            "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2},
            "storage": str(directory / "store"),
            "search": {
                "space": GRID if algorithm == "grid" else SPACE,
                "algorithm": algorithm,
                "scheduler": scheduler,
                "trials": 4,
                "metric": "eval_loss",
                "mode": "min",
                **search,
            },
        }
    )


@pytest.mark.parametrize("pair", SHARDED)
def test_a_sweep_of_sharded_trials_ends_as_its_journal_says(ray_session, tmp_path, pair):
    recipe = make_recipe(tmp_path, *SHARDED[pair], **(TWO if "nsga2" in pair else {}))
    notes = Notes()
    outcome = run_sweep(recipe, SweepOptions(display=notes, logs=tmp_path / "logs"))
    assert outcome.complete, outcome.errors
    assert len(outcome.trials) == 4
    assert {trial.status for trial in outcome.trials} <= {"completed", "stopped"}
    store, done = outcome.run.open(), [trial for trial in outcome.trials if trial.status == "completed"]
    assert done
    steps = max(entry["step"] for entry in notes.of("result"))
    for trial in done:
        manifest = read_manifest(store, trial.trial, trial.checkpoint_step)
        assert (manifest.step, manifest.world_size, manifest.common["zero_stage"]) == (steps, 2, 2)
        assert verify(store, manifest) == []
        assert math.isfinite(trial.final("eval_loss"))
    if recipe.search.scheduler.brackets is not None:
        lives = [entry["trial"] for entry in notes.of("started")]
        assert len(lives) > len(set(lives)), "no trial was taken up again after it waited"
    if recipe.search.scheduler.population is not None:
        assert notes.of("took_over")
    seats = make_seats(recipe, None)
    replayed = Replay(seats, read_journal(store))
    assert (replayed.stopped, replayed.pending, seats.get_live_trials()) == (set(), [], set())
