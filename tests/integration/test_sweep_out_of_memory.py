"""Out of memory on real DeepSpeed ranks: with a smaller micro-batch and a higher ZeRO stage the trial goes on from its checkpoint,
re-sharded, and ends where the same trial ends that had memory enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from sweep_bench import Notes

from tests.small_model import make_small_bert
from tlcore.checkpoint import read_manifest
from tlcore.recipe import recipe_from_dict
from tlcore.report.runs import read_run, show_json, show_parts
from tlcore.sweep import SweepOptions, run_sweep

pytestmark = [pytest.mark.integration, pytest.mark.long]
DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def without_dropout(model):
    """Its masks are drawn for each micro-batch: with them, another micro-batch is another training."""
    path = model / "config.json"
    config = {**json.loads(path.read_text()), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config))
    return model


def test_a_trial_without_memory_goes_on_with_less_and_ends_as_the_one_with_enough(ray_session, tmp_path):
    rate = {"train.learning_rate": 2e-3}
    recipe = recipe_from_dict(
        {
            "name": "greedy",
            "task": "text-classification",
            "model": {"source": str(without_dropout(make_small_bert(tmp_path / "model")))},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {
                "epochs": 2,
                "global_batch_size": 16,
                "micro_batch_size": 2,
                "activation_checkpointing": True,
                "precision": "fp32",
            },
            "deepspeed": {"zero_stage": 2},
            "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2},
            "checkpoint": {"every_steps": 4},
            "failures": {"on_oom": "adapt"},
            "storage": str(tmp_path / "store"),
            "search": {
                "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-1]}},
                "first": [rate, rate],
                "trials": 2,
                "metric": "eval_loss",
                "mode": "min",
            },
        }
    )
    notes = Notes()
    options = SweepOptions(display=notes, logs=tmp_path / "logs", session="greedy_session:GreedySession")
    outcome = run_sweep(recipe, options)
    assert {trial.trial: trial.status for trial in outcome.trials} == {"t000": "completed", "t001": "completed"}

    first, second = notes.of("adapted")
    assert first["changed"] == {"train.micro_batch_size": [2, 1]}
    assert second["changed"] == {"deepspeed.zero_stage": [2, 3]}
    assert "rank 1 ran out of host memory at step 13, asking for 65536.00 GiB" in first["reason"]
    assert first["step"] >= 8

    reports = {
        trial: [
            (event["step"], event["metrics"]["eval_loss"]) for event in notes.of("result") if event["trial"] == trial
        ]
        for trial in ("t000", "t001")
    }
    assert [step for step, _ in reports["t001"]] == [step for step, _ in reports["t000"]]
    for (_, with_enough), (_, with_less) in zip(reports["t000"], reports["t001"], strict=True):
        assert with_less == pytest.approx(with_enough, rel=1e-4)

    store, last = outcome.run.open(), outcome.trials[1]
    assert read_manifest(store, "t000", outcome.trials[0].checkpoint_step).zero_stage == 2
    assert read_manifest(store, "t001", last.checkpoint_step).zero_stage == 3
    run = read_run(outcome.run)
    assert show_json(run)["trials"][1]["adapted"] == {"train.micro_batch_size": 1, "deepspeed.zero_stage": 3}
    console = Console(width=200, record=True)
    for part in show_parts(run, console):
        console.print(part)
    said = "t001 ran out of memory; it goes with train.micro_batch_size 1, deepspeed.zero_stage 3"
    assert said in console.export_text()
