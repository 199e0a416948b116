"""Population-based training for real: two ranks a trial, DeepSpeed, real checkpoints; the worse trial takes over the better one."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from sweep_bench import Notes

from tests.small_model import make_small_bert
from tlcore.checkpoint import read_manifest
from tlcore.recipe import recipe_from_dict
from tlcore.report.runs import read_run, show_json, show_parts
from tlcore.storage.journal import read_journal
from tlcore.sweep import SweepOptions, finish_sweep, run_sweep

pytestmark = pytest.mark.integration
DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def test_the_worse_trial_takes_over_the_better_ones_state_and_goes_on(ray_session, tmp_path):
    recipe = recipe_from_dict(
        {
            "name": "population",
            "task": "text-classification",
            "model": {"source": str(make_small_bert(tmp_path / "model"))},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"epochs": 2},
            "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2},
            "transfer": {"strategy": "last_n", "n": 1},
            "storage": str(tmp_path / "store"),
            "search": {
                "space": {
                    "train.learning_rate": {"loguniform": [1e-7, 1.0]},
                    "train.global_batch_size": {"choice": [16, 24, 40]},
                    "train.weight_decay": {"uniform": [0.0, 0.1]},
                    "transfer.n": {"choice": [1, 2]},
                },
                "first": [
                    {"train.learning_rate": 1e-5, "train.global_batch_size": 24, "transfer.n": 1},
                    {"train.learning_rate": 0.5, "train.global_batch_size": 24, "transfer.n": 1},
                ],
                "trials": 2,
                "scheduler": {"pbt": {"interval": 0.4, "quantile": 0.5, "resample": 0.0}},
                "metric": "eval_loss",
                "mode": "min",
            },
        }
    )
    notes = Notes()
    outcome = run_sweep(recipe, SweepOptions(display=notes, logs=tmp_path / "logs"))
    assert {trial.trial: trial.status for trial in outcome.trials} == {"t000": "completed", "t001": "completed"}

    taken = notes.of("took_over")[0]
    assert (taken["trial"], taken["parent"]) == ("t001", "t000")
    donors = [event for event in notes.of("result") if event["trial"] == "t000"]
    assert taken["step"] in {event["step"] for event in donors}
    at_interval = [event for event in donors if event["fraction"] in (0.4, 0.8, 1.0)]
    assert all(event["checkpoint_step"] == event["step"] for event in at_interval)
    assert set(taken["changed"]) >= {"train.learning_rate", "train.global_batch_size", "transfer.n"}

    store, last = outcome.run.open(), outcome.trials[1]
    final = read_manifest(store, "t001", last.checkpoint_step)
    assert final.scalars["legs"][-1] == [taken["step"], last.point["train.global_batch_size"]]
    assert last.final("eval_loss") < next(
        event["metrics"]["eval_loss"] for event in notes.of("result") if event["trial"] == "t001"
    )

    finals = finish_sweep(outcome, tmp_path / "best")
    assert finals is not None and (finals.exported / "model.safetensors").is_file()

    run = read_run(outcome.run)
    assert show_json(run)["trials"][1]["lineage"][0]["parent"] == "t000"
    console = Console(width=200, record=True)
    for part in show_parts(run, console):
        console.print(part)
    assert f"t001 took over t000 at step {taken['step']}" in console.export_text()
    assert read_journal(store) == notes.events
