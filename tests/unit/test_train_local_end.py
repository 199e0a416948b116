"""The end of `train --local`: the model that a run on Ray would leave. Training is stood in for by checkpoints that are there, and
what the ranks measured by an entry of the journal."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_text_model import snippets, tiny_recipe, write_rows
from trained_text_model import load

from tests.stored_model import store_model
from tlcore import cli
from tlcore.commands.running import JOB_VARIABLE
from tlcore.errors import DataError, TlcoreError
from tlcore.storage import create_run
from tlcore.storage.journal import Journal
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 26, tzinfo=UTC)
EXAMPLES = [{"input": "good film", "expected": "pos", "label": "neg", "score": 0.5}]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`tlcore train --local` of a run whose checkpoint of step 5 was better than that of step 10; exit code and what was said."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tlcore.engine.process.prepare_process", lambda threads=1: None)
    given = tiny_recipe(tmp_path, data__test=str(write_rows(tmp_path / "test.jsonl", snippets(6))))
    ended: dict[str, Any] = {}
    untested: TlcoreError | None = None

    def run_local(recipe: Any, *, resume: bool, on_event: Any, on_progress: Any) -> Any:
        made = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict(), "kind": "train"}, NOW, "one")
        journal = Journal(made.open(), lambda: NOW)
        model = build_task(recipe).build_model(from_scratch=False)
        journal.append("suggested", "t000", point={})
        for step, accuracy in ((5, 0.75), (10, 0.5)):
            metrics = {"eval_accuracy": accuracy}
            store_model(made.open(), model, recipe, step=step, metrics=metrics)
            journal.append("result", "t000", step=step, fraction=step / 10, metrics=metrics, checkpoint_step=step)
        journal.append("completed", "t000")
        if untested is None:
            facts = {"checkpoint": f"{made.url}/trials/t000/step-00000005", "examples": EXAMPLES}
            journal.append("final", "t000", metrics={"test_accuracy": 0.75}, **facts)
        journal.append("finished", None, best="t000", **ended)
        return SimpleNamespace(run=made, interrupted=False, exhausted=None, untested=untested)

    def call(error: TlcoreError | None = None, **reason: str) -> tuple[int, str, str]:
        nonlocal untested
        untested = error
        ended.update(reason)
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(given.to_dict()))
        monkeypatch.setitem(sys.modules, "tlcore.train.local", SimpleNamespace(TRIAL="t000", run_local=run_local))
        code = cli.main(["train", str(file), "--local"])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_best_checkpoint_is_exported_and_its_figures_are_shown_also_by_rank_0_of_several(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks have gone by then: a group with them would wait for ever."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, out, err = train()
    assert (code, err) == (0, "")
    assert "best model exported to " in out
    assert "/runs/tiny/best\n  checkpoint of step 5 of 10, the best of this trial\n" in out
    load(tmp_path / "runs" / "tiny" / "best")
    assert "on the test data: test_accuracy 0.7500" in out
    assert "'good film' -> neg 0.500 (expected pos)" in out


def test_without_test_figures_the_model_and_the_table_are_there_and_then_the_error(train: Any, tmp_path: Path) -> None:
    code, out, err = train(DataError("test.jsonl has no column 'label'"))
    assert (code, err) == (2, "tlcore: test.jsonl has no column 'label'\n")
    assert "1 of 1 trial ended" in out
    assert "best model exported to " in out
    load(tmp_path / "runs" / "tiny" / "best")


def test_in_a_job_the_line_that_exports_it_is_said(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    _, out, _ = train()
    assert "/trials/t000/step-00000005 DIR\n" in out and "best model as files: tlcore export file://" in out
    assert not (tmp_path / "runs").exists()


def test_where_its_budget_ended_it_the_best_so_far_is_exported_and_there_are_no_figures(
    train: Any, tmp_path: Path
) -> None:
    code, out, _ = train(reason="budget", limit="budget.hours")
    assert code == 0
    assert (tmp_path / "runs" / "tiny" / "best" / "model.safetensors").is_file()
    assert "data.test: not touched" in out
