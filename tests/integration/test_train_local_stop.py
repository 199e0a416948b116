"""Training without Ray that is stopped, by a signal or by its budget, and taken up again.

One gloo rank in this process, a real DeepSpeed engine, a directory as the store.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.small_model import make_small_bert
from tlcore.engine.process import prepare_process
from tlcore.errors import TrainError
from tlcore.recipe import recipe_from_dict
from tlcore.report.runs import read_run
from tlcore.storage import newest_run
from tlcore.storage.journal import read_journal
from tlcore.train.local import run_local

pytestmark = pytest.mark.integration

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model. Every run makes a process group of its own, and DeepSpeed must not go on with the one before."""
    prepare_process()
    return make_small_bert(tmp_path_factory.mktemp("model"))


def recipe(model: Path, directory: Path, **budget: float):
    return recipe_from_dict(
        {
            "name": "stopped",
            "task": "text-classification",
            "model": {"source": str(model)},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"global_batch_size": 16, "epochs": 2},
            "search": {"scheduler": {"asha": {"grace": 0.5, "reduction": 2}}},
            "budget": budget,
            "storage": f"file://{directory}",
        }
    )


def reports(run):
    wanted = ("step", "fraction", "metrics")
    return [{key: entry[key] for key in wanted} for entry in read_journal(run.open()) if entry["kind"] == "result"]


def test_a_signal_ends_the_step_commits_it_and_the_resume_measures_what_the_whole_run_does(model, tmp_path):
    whole = run_local(recipe(model, tmp_path / "whole"))

    def interrupt(facts):
        if facts["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    outcome = run_local(recipe(model, tmp_path / "pieced"), on_progress=interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    entries = read_journal(outcome.run.open())
    assert (outcome.interrupted, outcome.exhausted) == (True, None)
    assert [entry["kind"] for entry in entries] == ["suggested", "started", "left", "interrupted"]
    step = entries[2]["step"]
    assert 5 < step <= 10
    assert outcome.checkpoint.endswith(f"step-{step:08d}")

    again = run_local(recipe(model, tmp_path / "pieced"), resume=True)
    assert not again.interrupted
    assert read_journal(again.run.open())[5]["from_step"] == step
    assert reports(again.run) == reports(whole.run)
    assert read_run(again.run).view.used().worker_hours > 0


def test_the_command_leaves_the_best_checkpoint_as_a_model_and_the_test_figures_are_its_own(
    model, tmp_path, monkeypatch, capsys
):
    from tlcore import cli

    given = recipe(model, tmp_path / "store").to_dict()
    given["data"]["test"] = shutil.copy(DATA, tmp_path / "test.csv").as_posix()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "recipe.yaml", "--local"]) == 0
    out, _ = capsys.readouterr()
    assert f"best model exported to {tmp_path}/runs/stopped/best" in out
    assert (tmp_path / "runs" / "stopped" / "best" / "model.safetensors").is_file()
    [final] = [
        entry for entry in read_journal(newest_run(given["storage"], "stopped").open()) if entry["kind"] == "final"
    ]
    assert final["metrics"]["test_accuracy"] > 0
    assert cli.main(["evaluate", "stopped", "--storage", given["storage"], "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f"checkpoint: {final['checkpoint']}\n"
    assert json.loads(out)["test_accuracy"] == pytest.approx(final["metrics"]["test_accuracy"])


def test_a_budget_that_ends_it_before_its_first_report_is_an_error_and_a_higher_one_goes_on(model, tmp_path):
    with pytest.raises(TrainError, match=r"before its first report: budget\.worker_hours=1e-09"):
        run_local(recipe(model, tmp_path, worker_hours=1e-9))
    higher = run_local(recipe(model, tmp_path, worker_hours=1e3, price_per_worker_hour=2), resume=True)
    assert (higher.interrupted, higher.exhausted) == (False, None)
    kinds = [entry["kind"] for entry in read_journal(higher.run.open())]
    assert kinds[:5] == ["suggested", "started", "left", "finished", "resumed"]
    used = read_run(higher.run).view.used()
    assert 0 < used.cost < 2 * used.worker_hours  # the first part had no price


def test_a_budget_that_ends_it_after_a_report_keeps_what_was_found(model, tmp_path):
    now = [datetime(2026, 11, 26, tzinfo=UTC)]

    def spend(event):
        if event["kind"] == "result":
            now[0] += timedelta(hours=6)

    stopped = recipe(model, tmp_path, hours=5)
    outcome = run_local(stopped, on_event=spend, clock=lambda: now[0])
    assert (outcome.exhausted.setting, outcome.exhausted.used, outcome.interrupted) == ("budget.hours", 6, False)
    assert [report["fraction"] for report in reports(outcome.run)] == [0.5]
    run = read_run(outcome.run)
    assert (run.view.state.ended_by, run.view.used().hours) == ("budget", 6)
