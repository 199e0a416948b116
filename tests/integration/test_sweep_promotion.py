"""Survivors of a rung go on re-sharded on more workers: real DeepSpeed ranks, and every survivor wants the whole cluster."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rank_server import start
from ray_fixtures import CPUS
from rich.console import Console
from sweep_bench import Notes

from tests.small_model import make_small_bert
from tlcore.checkpoint import read_manifest
from tlcore.recipe import recipe_from_dict
from tlcore.report.runs import read_run, show_parts
from tlcore.storage.journal import read_journal
from tlcore.sweep import SweepOptions, run_sweep
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay

pytestmark = pytest.mark.integration
DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"
RUNGS = (0.25, 0.5, 1.0)


def make_recipe(directory):
    """Equal trials: each is as good as the others, so all of them pass every rung, whoever comes first."""
    return recipe_from_dict(
        {
            "name": "promoted",
            "task": "text-classification",
            "model": {"source": str(directory / "model")},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"epochs": 2, "global_batch_size": 8, "learning_rate": 1e-3},
            "deepspeed": {"zero_stage": 2},
            "resources": {"gpus_per_worker": 0, "cpus_per_worker": CPUS / 2},
            "storage": str(directory / "store"),
            "search": {
                "space": {"train.weight_decay": {"choice": [0.01, 0.02]}},
                "first": [{"train.weight_decay": 0.01}] * 2,
                "trials": 2,
                "scheduler": {"asha": {"workers": [1, 2, 2]}},
                "metric": "eval_loss",
                "mode": "min",
            },
        }
    )


def without_dropout(model):
    """Two ranks drop out other activations than one does, and so have another loss."""
    path = model / "config.json"
    nothing = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | nothing))


@pytest.fixture(scope="module")
def promoted(ray_session, tmp_path_factory):
    directory = tmp_path_factory.mktemp("promotion")
    without_dropout(make_small_bert(directory / "model"))
    notes = Notes()
    recipe = make_recipe(directory)
    outcome = run_sweep(recipe, SweepOptions(display=notes, logs=directory / "logs"))
    alone = start("ranks_alone", [{"world": 1, "cases": [{"recipe": recipe.to_dict()}]}], directory / "alone")
    return SimpleNamespace(recipe=recipe, outcome=outcome, notes=notes, alone=alone[0][0])


def of(notes, trial, kind):
    return [event for event in notes.of(kind) if event["trial"] == trial]


def test_all_survivors_come_to_their_end_though_each_wants_all_there_is(promoted):
    assert {trial.trial: trial.status for trial in promoted.outcome.trials} == {
        "t000": "completed",
        "t001": "completed",
    }
    for trial in ("t000", "t001"):
        kinds = [event["kind"] for event in promoted.notes.events if event["trial"] == trial]
        assert kinds[:5] == ["suggested", "started", "result", "paused", "started"]
        assert [event["workers"] for event in of(promoted.notes, trial, "started")] == [1, 2]


def test_the_second_survivor_is_served_by_the_first_ones_group(promoted):
    grown = {event["group"] for event in promoted.notes.of("result") if event["fraction"] > 0.25}
    small = {event["group"] for event in promoted.notes.of("result") if event["fraction"] == 0.25}
    assert len(grown) == 1
    assert not grown & small


def test_the_save_at_the_rung_is_committed_and_the_next_ones_are_of_more_ranks(promoted):
    store = promoted.outcome.run.open()
    for trial in ("t000", "t001"):
        at_rung, *later = of(promoted.notes, trial, "result")
        assert at_rung["checkpoint_step"] == at_rung["step"]
        assert [event["fraction"] for event in later] == list(RUNGS[1:])
        manifest = read_manifest(store, trial, later[-1]["checkpoint_step"])
        assert manifest.world_size == 2
        assert manifest.scalars.get("legs") is None, "another world size is no other batch"


def test_the_loss_goes_on_as_it_does_on_one_worker(promoted):
    alone = promoted.alone
    assert [report["fraction"] for report in alone] == list(RUNGS)
    assert len({report["loss"] for report in alone}) == len(alone), "equal losses prove nothing"
    for trial in ("t000", "t001"):
        for here, there in zip(of(promoted.notes, trial, "result"), alone, strict=True):
            assert (here["step"], here["total_steps"]) == (there["step"], there["total_steps"])
            assert here["loss"] == pytest.approx(there["loss"], rel=2e-4)
            assert here["metrics"]["eval_loss"] == pytest.approx(there["metrics"]["eval_loss"], rel=2e-4)


def test_the_journal_says_all_that_was_decided(promoted):
    seats = make_seats(promoted.recipe, None)
    replayed = Replay(seats, read_journal(promoted.outcome.run.open()))
    assert (replayed.stopped, replayed.pending, seats.get_live_trials()) == (set(), [], set())


def test_the_table_is_without_workers_where_all_have_the_same_in_the_end(promoted):
    console = Console(width=200, file=io.StringIO(), record=True)
    for part in show_parts(read_run(promoted.outcome.run), console):
        console.print(part)
    assert "t001" in console.export_text()
    assert {row.workers for row in read_run(promoted.outcome.run).rows()} == {2}
