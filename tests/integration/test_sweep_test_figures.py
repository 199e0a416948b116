"""The best trial's test figures, taken by real ranks at ZeRO-3 when the sweep has ended, once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ray_fixtures import CPUS
from sweep_bench import Notes, leftovers

from tests.small_model import make_small_bert
from tlcore.errors import DataError
from tlcore.recipe import recipe_from_dict
from tlcore.report.runs import read_run
from tlcore.sweep import SweepOptions, finish_sweep, run_sweep

pytestmark = pytest.mark.integration
DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def test_the_best_checkpoint_is_tested_by_workers_such_as_trained_it_and_once(ray_session, tmp_path, capfd):
    """First with test data that turns bad while it trains: that costs the figures and not the sweep, and a resume takes them."""
    test = Path(shutil.copy(DATA, tmp_path / "test.csv"))
    recipe = recipe_from_dict(
        {
            "name": "tested",
            "task": "text-classification",
            "model": {"source": str(make_small_bert(tmp_path / "model"))},
            "data": {
                "train": str(DATA),
                "validation": 0.2,
                "test": str(test),
                "labels": ["negative", "positive"],
                "max_length": 16,
            },
            "train": {"epochs": 1, "global_batch_size": 24},
            "deepspeed": {"zero_stage": 3},
            "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2},
            "storage": str(tmp_path / "store"),
            "search": {
                "space": {"train.learning_rate": {"loguniform": [1e-6, 1e-2]}},
                "first": [{"train.learning_rate": 2e-3}, {"train.learning_rate": 1e-6}],
                "trials": 2,
                "metric": "eval_loss",
                "mode": "min",
            },
        }
    )

    def spoil(event):
        if event["kind"] == "completed":
            test.write_text("text,stars\ngood,5\n")

    def run(resume, act=None):
        notes = Notes(act)
        return run_sweep(recipe, SweepOptions(resume=resume, display=notes, logs=tmp_path / "logs")), notes

    capfd.readouterr()
    outcome, notes = run(resume=False, act=spoil)
    assert isinstance(outcome.untested, DataError) and "'label'" in outcome.untested.message
    assert outcome.complete
    assert [event["kind"] for event in notes.events][-2:] == ["testing", "finished"]
    assert leftovers([], CPUS) == []
    assert finish_sweep(outcome, None).metrics == {}

    shutil.copy(DATA, test)
    outcome, notes = run(resume=True)
    assert outcome.untested is None
    assert [event["kind"] for event in notes.events] == ["resumed", "testing", "final", "finished"]
    assert leftovers([], CPUS) == []
    finals = finish_sweep(outcome, tmp_path / "best")
    assert (finals.exported / "model.safetensors").is_file()
    assert read_run(outcome.run).final == finals.metrics
    used = read_run(outcome.run).view.used()
    assert used.worker_hours > 0
    assert capfd.readouterr() == ("", "")

    from tlcore.train.offline import TrainedModel

    trained = TrainedModel(finals.checkpoint)
    assert finals.metrics == pytest.approx(trained.evaluate("test"), abs=1e-4)
    asked = trained.task.examples("test", 2)
    shown = [(example["input"], example["expected"]) for example in finals.examples]
    assert shown == asked
    for example, answer in zip(finals.examples, trained.predict([given for given, _ in asked]), strict=True):
        assert example["label"] == answer["label"]
        assert example["score"] == pytest.approx(answer["score"], abs=1e-4)

    outcome, notes = run(resume=True)
    assert [event["kind"] for event in notes.events] == ["resumed", "finished"]
    assert finish_sweep(outcome, None).metrics == finals.metrics
