"""What a run without Ray does once it has trained: its best checkpoint is tested. Training is stood in for; the rest is real."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_text_model import snippets, tiny_recipe, write_rows

from tests.stored_model import store_model
from tlcore.errors import DataError, OutOfMemory, RequestError
from tlcore.recipe import Recipe
from tlcore.storage import newest_run, open_store
from tlcore.storage.journal import read_journal
from tlcore.tasks import build_task
from tlcore.train.local import run_local
from tlcore.train.progress import Report

pytestmark = pytest.mark.unit

EXAMPLES = [{"input": "good film", "expected": "pos", "label": "neg"}]


class Session:
    """Reports at steps 5 and 10, the first with the better metric, and commits a checkpoint at each; `fault` befalls the test."""

    made: list[tuple[int | None, int]]
    fault: Any
    accuracies: tuple[float, float]

    def __init__(self, recipe: Recipe, url: str, trial: str, note: Any, resume_step: int | None) -> None:
        self.recipe, self.url, self.closed = recipe, url, False
        self.step = 10 if resume_step is None else resume_step
        Session.made.append((resume_step, self.step))

    def is_past(self, fraction: float) -> bool:
        return False

    def advance(self, fraction: float) -> Report:
        self.step += 5
        if self.step > 10:
            raise MemoryError("no room")
        metrics = {"eval_accuracy": Session.accuracies[self.step // 5 - 1]}
        model = build_task(self.recipe).build_model(from_scratch=False)
        store_model(open_store(self.url), model, self.recipe, step=self.step, metrics=metrics)
        return Report(self.step, 10, fraction, 0.5, 1.0, self.step, metrics)

    def save(self, wait: bool) -> str:
        return f"{self.url}/trials/t000/step-{self.step:08d}"

    def test(self, step: int) -> dict[str, float]:
        assert step == self.step
        if Session.fault is not None:
            Session.fault()
        return {"test_accuracy": step / 10}

    def examples(self) -> list[dict[str, Any]]:
        return EXAMPLES

    def interrupt(self) -> None:
        raise AssertionError("nothing is left to stop at a step")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("tlcore.train.local.prepare_process", lambda threads: None)
    monkeypatch.setattr("tlcore.train.session.TrialSession", Session)
    monkeypatch.setattr("tlcore.train.local.report_fractions", lambda recipe: (0.5, 1.0))
    Session.made, Session.fault, Session.accuracies = [], None, (0.75, 0.5)
    return tiny_recipe(tmp_path, data__test=str(write_rows(tmp_path / "test.jsonl", snippets(6))))


def journal_of(recipe: Recipe) -> list[dict[str, Any]]:
    return read_journal(newest_run(recipe.storage, recipe.name).open())


@pytest.mark.parametrize(("accuracies", "best"), [((0.75, 0.5), 5), ((0.5, 0.75), 10)])
def test_the_best_checkpoint_is_tested_before_the_end_and_restored_where_the_ranks_hold_another_one(
    recipe: Recipe, accuracies: tuple[float, float], best: int
) -> None:
    Session.accuracies = accuracies
    outcome = run_local(recipe)
    assert (outcome.metrics, outcome.untested) == ({"eval_accuracy": accuracies[1]}, None)
    assert Session.made == [(0, 0)] + ([(best, best)] if best != 10 else [])
    entries = journal_of(recipe)
    assert [entry["kind"] for entry in entries] == [
        *("suggested", "started", "result", "result", "completed"),
        *("testing", "final", "finished"),
    ]
    assert (entries[5]["step"], entries[5]["workers"]) == (best, 1)
    assert (entries[6]["metrics"], entries[6]["examples"]) == ({"test_accuracy": best / 10}, EXAMPLES)
    assert entries[6]["checkpoint"] == f"{outcome.run.url}/trials/t000/step-{best:08d}"


def test_bad_test_data_ends_no_run_that_has_trained(recipe: Recipe) -> None:
    def bad() -> None:
        raise DataError("test.jsonl has no column 'label'")

    Session.fault = bad
    outcome = run_local(recipe)
    assert isinstance(outcome.untested, DataError) and outcome.checkpoint is not None
    assert [entry["kind"] for entry in journal_of(recipe)][4:] == ["completed", "testing", "finished"]


def test_neither_does_a_test_for_which_there_is_no_memory(recipe: Recipe) -> None:
    def full() -> None:
        raise MemoryError("no room")

    Session.fault = full
    outcome = run_local(recipe)
    assert isinstance(outcome.untested, OutOfMemory) and outcome.untested.fields["step"] == 5
    assert [entry["kind"] for entry in journal_of(recipe)][4:] == ["completed", "testing", "finished"]


def test_memory_that_runs_out_while_it_trains_is_told_as_that(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcore.train.local.report_fractions", lambda recipe: (0.5, 0.75, 1.0))
    with pytest.raises(OutOfMemory, match="rank 0 ran out of host memory at step 15") as raised:
        run_local(recipe)
    assert isinstance(raised.value.__cause__, MemoryError)


def test_a_run_that_ended_before_its_figures_takes_them_when_resumed_and_nothing_else(recipe: Recipe) -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    Session.fault = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_local(recipe)
    assert [entry["kind"] for entry in journal_of(recipe)][4:] == ["completed", "testing"]

    Session.fault = None
    outcome = run_local(recipe, resume=True)
    assert outcome.metrics == {}
    assert [entry["kind"] for entry in journal_of(recipe)][6:] == ["resumed", "testing", "final", "finished"]
    with pytest.raises(RequestError, match="is completed: nothing is left to resume"):
        run_local(recipe, resume=True)


def test_without_test_data_there_is_nothing_to_take(recipe: Recipe) -> None:
    plain = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": None})})
    assert run_local(plain).untested is None
    assert [entry["kind"] for entry in journal_of(plain)][4:] == ["completed", "finished"]
