"""The end of a sweep: what is exported, and which test figures are its. The checkpoint is real, made without training."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_text_model import snippets, tiny_recipe, write_rows

from tests.stored_model import store_model
from tlcore.errors import DataError
from tlcore.recipe import Recipe
from tlcore.report.checkpoints import choose_checkpoint
from tlcore.report.runs import read_run, show_json, show_parts
from tlcore.storage import RunRef, create_run
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep.finals import finish_sweep
from tlcore.sweep.outcome import SweepOutcome
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 26, tzinfo=UTC)


FIGURES = {"test_accuracy": 0.125}
EXAMPLES = [{"input": "good film", "expected": "pos", "label": "neg", "score": 0.5}]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path, data__test=str(write_rows(tmp_path / "test.jsonl", snippets(6))))


@pytest.fixture
def run(recipe: Recipe) -> RunRef:
    made = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict()}, NOW, "one")
    store_model(made.open(), build_task(recipe).build_model(from_scratch=False), recipe)
    write(made, "suggested", "t000", point={}, of=1)
    write(made, "result", "t000", step=5, fraction=1.0, metrics={"eval_accuracy": 0.5}, checkpoint_step=5)
    write(made, "completed", "t000")
    write(made, "finished", best="t000")
    return made


def write(run: RunRef, kind: str, trial: str | None = None, **facts: Any) -> None:
    store = run.open()
    Journal(store, lambda: NOW, start=len(read_journal(store))).append(kind, trial, **facts)


def write_figures(run: RunRef, checkpoint: str) -> None:
    """As a driver ends: the figures, and then that it is finished."""
    write(run, "resumed", of=1)
    write(run, "final", "t000", metrics=FIGURES, checkpoint=checkpoint, examples=EXAMPLES)
    write(run, "finished", best="t000")


def outcome_of(run: RunRef, recipe: Recipe) -> SweepOutcome:
    state = SweepState.from_entries(read_journal(run.open()))
    return SweepOutcome(run, recipe, state, state.best("eval_accuracy", "max"), Path(), False)


def finals_of(run: RunRef) -> list[dict[str, Any]]:
    return [entry for entry in read_journal(run.open()) if entry["kind"] == "final"]


def test_the_best_checkpoint_is_exported_and_its_figures_and_answers_are_the_journals(
    run: RunRef, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not loaded here: it may be larger than the memory of this machine."""
    monkeypatch.setattr("tlcore.train.offline.TrainedModel", None)
    write_figures(run, f"{run.url}/trials/t000/step-00000005")
    before = read_journal(run.open())
    found = finish_sweep(outcome_of(run, recipe), tmp_path / "best")
    assert found is not None and found.exported == tmp_path / "best"
    assert (tmp_path / "best" / "model.safetensors").is_file()
    assert (found.checkpoint, found.metrics, found.examples) == (finals_of(run)[0]["checkpoint"], FIGURES, EXAMPLES)

    write(run, "resumed", of=1)
    write(run, "finished", best="t000")
    assert finish_sweep(outcome_of(run, recipe), tmp_path / "best") == found
    assert read_journal(run.open())[:-2] == before


def test_journalled_figures_are_found_also_where_the_run_was_moved(run: RunRef, recipe: Recipe) -> None:
    write_figures(run, f"s3://before/{run.name}/{run.run_id}/trials/t000/step-00000005")
    found = finish_sweep(outcome_of(run, recipe), None)
    assert found is not None and (found.metrics, found.examples) == (FIGURES, EXAMPLES)


def test_figures_that_an_earlier_version_wrote_have_no_answers(run: RunRef, recipe: Recipe) -> None:
    """They were taken after the end, in the driver, and the answers given anew each time."""
    write(run, "final", "t000", metrics=FIGURES, checkpoint=f"{run.url}/trials/t000/step-00000005")
    found = finish_sweep(outcome_of(run, recipe), None)
    assert found is not None and (found.metrics, found.examples) == (FIGURES, [])


def test_figures_of_another_checkpoint_are_not_those_of_this_one(run: RunRef, recipe: Recipe) -> None:
    for place in ("t000/step-00000004", "t001/step-00000005"):
        write(run, "final", place[:4], metrics={"test_accuracy": 2.0}, checkpoint=f"{run.url}/trials/{place}")
    found = finish_sweep(outcome_of(run, recipe), None)
    assert found is not None and (found.metrics, found.examples) == ({}, [])


def test_without_figures_the_model_is_exported_all_the_same(run: RunRef, recipe: Recipe, tmp_path: Path) -> None:
    """The test data was bad: the outcome says so, and who shows it raises that once the rest is said."""
    error = DataError("test.jsonl has no column 'label'")
    found = finish_sweep(replace(outcome_of(run, recipe), untested=error), tmp_path / "best")
    assert found is not None and (found.metrics, found.exported) == ({}, tmp_path / "best")


def test_while_trials_are_left_the_test_examples_are_not_touched(run: RunRef, recipe: Recipe, tmp_path: Path) -> None:
    """The budget ended it: the best model so far is exported, and figures of an earlier end are not this one's."""
    write_figures(run, f"{run.url}/trials/t000/step-00000005")
    write(run, "resumed", of=2)
    write(run, "finished", best="t000", reason="budget", limit="budget.hours")
    found = finish_sweep(outcome_of(run, recipe), tmp_path / "best")
    assert found is not None and found.exported == tmp_path / "best"
    assert (found.metrics, found.examples) == ({}, [])


@pytest.mark.parametrize(
    ("search", "later", "chosen"),
    [
        ({}, 0.5, 5),
        ({"metric": "eval_loss"}, 0.5, 10),
        ({}, 0.75, 10),
        ({}, None, 5),
        ({"metric": ["eval_accuracy", "eval_f1"], "mode": ["max", "max"]}, 0.5, 10),
    ],
)
def test_an_overfitted_trial_gives_its_best_checkpoint_and_everything_names_that_one(
    tmp_path: Path, search: dict[str, Any], later: float | None, chosen: int
) -> None:
    """Steps 5 and 10 of one trial; 10 is worse, equal, or was not evaluated."""
    test = str(write_rows(tmp_path / "test.jsonl", snippets(6)))
    recipe = tiny_recipe(tmp_path, data__test=test, **{f"search__{key}": value for key, value in search.items()})
    run = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict(), "kind": "train"}, NOW, "one")
    model = build_task(recipe).build_model(from_scratch=False)
    write(run, "suggested", "t000", point={}, of=1)
    for step, accuracy in ((5, 0.75), (10, later)):
        measured = {} if accuracy is None else dict.fromkeys(("eval_accuracy", "eval_f1", "eval_loss"), accuracy)
        store_model(run.open(), model, recipe, step=step, metrics=measured)
        reported = measured or {"eval_accuracy": 0.5, "eval_loss": 0.5}
        write(run, "result", "t000", step=step, fraction=step / 10, metrics=reported, checkpoint_step=step)
    write(run, "completed", "t000")
    write(run, "finished", best="t000")
    for before in (True, False):  # the figures are taken, and nothing changes by it
        shown = read_run(run)
        checkpoint = f"{run.url}/trials/t000/step-{chosen:08d}"
        console = Console(file=io.StringIO(), width=500)
        words = {5: "checkpoint of step 5 of 10, the best of this trial", 10: "its newest checkpoint"}[chosen]
        assert f"{words}: {checkpoint}" in [str(part) for part in show_parts(shown, console)]
        assert show_json(shown)["checkpoint"] == checkpoint
        assert choose_checkpoint(recipe.name, recipe.storage)[1].step == chosen
        assert choose_checkpoint(f"{recipe.name}/{run.run_id}/t000", recipe.storage)[1].step == chosen
        assert choose_checkpoint(f"{run.url}/t000", "")[1].step == chosen
        if before:
            write_figures(run, checkpoint)
            found = finish_sweep(outcome_of(run, recipe), tmp_path / "best")
            assert found is not None and (found.checkpoint, found.step, found.last_step) == (checkpoint, chosen, 10)
            assert found.metrics == FIGURES


def test_without_a_destination_nothing_is_exported(run: RunRef, recipe: Recipe, tmp_path: Path) -> None:
    write_figures(run, f"{run.url}/trials/t000/step-00000005")
    before = sorted(tmp_path.iterdir())
    found = finish_sweep(outcome_of(run, recipe), None)
    assert found is not None and found.exported is None and found.metrics
    untested = replace(outcome_of(run, recipe), recipe=tiny_recipe(tmp_path))
    found = finish_sweep(untested, None)
    assert found is not None and (found.exported, found.metrics) == (None, {})
    assert found.checkpoint == f"{run.url}/trials/t000/step-00000005"
    assert sorted(tmp_path.iterdir()) == before
