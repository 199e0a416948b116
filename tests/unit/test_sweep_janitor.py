"""The driver's house-keeping on a run in a directory: what it deletes, pins, journals, and leaves to others."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest
from checkpoint_state import State, close, save, wait, writers
from tiny_text_model import tiny_recipe
from typer.testing import CliRunner

from tlcore.checkpoint import CheckpointRef, list_manifests, read_manifest, verify
from tlcore.checkpoint import spent as spent_module
from tlcore.checkpoint.prune import OtherRuns
from tlcore.cli import app
from tlcore.errors import StaleWriter
from tlcore.storage import RunRef, create_run
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep.janitor import Janitor
from tlcore.sweep.recorder import Recorder

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 26, tzinfo=UTC)


class House:
    """A run with trials t000 (stopped), t001 (completed, best) and t002 (running), three checkpoints each."""

    def __init__(self, directory, budget=None, stopped=None, offered=tuple, **kept):
        recipe = tiny_recipe(directory)
        checkpoint = recipe.checkpoint.model_copy(update={"keep_stopped": stopped, **kept})
        self.recipe = recipe.model_copy(
            update={"checkpoint": checkpoint, "budget": recipe.budget.model_copy(update={"bytes": budget})}
        )
        self.run = create_run(self.recipe.storage, "tiny", {"recipe": self.recipe.to_dict()}, NOW, "x")
        self.store = self.run.open()
        self.recorder = Recorder(Journal(self.store, lambda: NOW), SweepState(), None)
        recorder = self.recorder
        self.janitor = Janitor(
            self.recipe, self.run, recorder.snapshot, recorder.record, recorder.next_number, offered=offered
        )
        self.recorder.listeners.append(self.janitor.on_entry)
        for number in range(3):
            self.train(f"t{number:03d}", number)
        self.recorder.record("stopped", "t000", reason="scheduler")
        self.recorder.record("completed", "t001")

    def train(self, trial, seed):
        state, ranks = State(seed=seed), writers(self.store, 1, trial=trial)
        self.recorder.record("suggested", trial, point={}, of=3)
        self.recorder.record("started", trial, slot="s")
        for step in (1, 2, 3):
            state.change()
            metrics = {"eval_accuracy": seed % 2 / 2 + step / 10}
            save(ranks, state, step, metrics=metrics)
            wait(ranks, step)
            facts = {"step": step, "fraction": step / 3, "metrics": metrics, "checkpoint_step": step}
            self.recorder.record("result", trial, **facts)
        close(ranks)

    def steps(self):
        return [list_manifests(self.store, f"t{number:03d}") for number in range(3)]

    def bytes(self):
        return sum(each.size_bytes for each in self.store.list("cas/"))

    def pruned(self):
        return [entry for entry in read_journal(self.store) if entry["kind"] == "pruned"]


@pytest.fixture(autouse=True)
def sent_long_ago(monkeypatch):
    monkeypatch.setattr(spent_module, "SENT_LATELY_S", 0.0)


def test_by_default_nothing_goes_and_nothing_is_written(tmp_path):
    house = House(tmp_path)
    house.janitor.run_once()
    assert house.steps() == [[1, 2, 3]] * 3
    assert house.pruned() == []


def test_a_byte_budget_is_met_in_the_store_at_once_and_the_journal_says_what_went(tmp_path):
    house = House(tmp_path, budget=1)
    before = house.bytes()
    house.janitor.run_once()
    assert house.steps() == [[], [3], [3]]
    (entry,) = house.pruned()
    assert [each[:2] for each in entry["checkpoints"]] == [
        [trial, step] for trial, steps in (("t000", (1, 2, 3)), ("t001", (1, 2)), ("t002", (1, 2))) for step in steps
    ]
    assert entry["freed_bytes"] == before - house.bytes() > 0
    assert entry["kept_bytes"] == house.bytes()
    assert entry["over_bytes"] == house.bytes() - 1
    assert not [found for t in ("t001", "t002") for found in verify(house.store, read_manifest(house.store, t, 3))]


def test_a_budget_that_cannot_be_met_is_said_once(tmp_path, caplog):
    house = House(tmp_path, budget=1)
    with caplog.at_level(logging.WARNING):
        house.janitor.run_once()
        house.janitor.run_once()
    assert [record.message for record in caplog.records if "budget.bytes is 1" in record.message] != []
    assert len(caplog.records) == len(house.pruned()) == 1


def test_a_budget_that_is_kept_takes_no_more_than_it_must(tmp_path):
    everything = House(tmp_path / "a").bytes() if (tmp_path / "a").mkdir() is None else 0
    (tmp_path / "b").mkdir()
    house = House(tmp_path / "b", budget=everything - 1)
    house.janitor.run_once()
    assert house.steps() == [[2, 3], [1, 2, 3], [1, 2, 3]]
    assert house.bytes() < everything


def test_donors_and_what_other_runs_name_stay(tmp_path):
    house = House(tmp_path, budget=1)
    house.janitor.pin("t000", 2)
    named = {"model": {"source": str(CheckpointRef(house.run.url, "t000", 1))}}
    create_run(house.recipe.storage, "other", {"recipe": named}, NOW, "y")
    house.janitor.run_once()
    assert house.steps() == [[1, 2], [3], [3]]
    house.janitor.unpin("t000", 2)
    house.janitor.run_once()
    assert house.steps() == [[1], [3], [3]]


def test_what_may_be_taken_over_stays_and_a_pass_asks_for_it_anew(tmp_path):
    offered = [{("t002", 1)}]
    house = House(tmp_path, budget=1, offered=lambda: offered[0])
    house.janitor.run_once()
    assert house.steps() == [[], [3], [1, 3]]
    offered[0] = set()
    house.janitor.run_once()
    assert house.steps() == [[], [3], [3]]


def test_the_best_of_all_trials_stay_also_where_they_are_one_trials_and_the_others_go_once_it_ended(tmp_path):
    house = House(tmp_path, keep_last=1, keep_best_overall=2)
    house.janitor.run_once()
    assert house.steps() == [[3], [2, 3], [1, 2, 3]]
    assert {entry[2] for entry in house.pruned()[0]["checkpoints"]} == {"not among the best of all trials"}


def test_what_another_run_is_made_of_is_read_once_and_a_new_run_is_seen(tmp_path, monkeypatch):
    house, read = House(tmp_path, budget=1), []
    identity = RunRef.identity
    monkeypatch.setattr(RunRef, "identity", lambda run: (read.append(run.name), identity(run))[1])
    named = [{"model": {"source": str(CheckpointRef(house.run.url, "t000", step))}} for step in (1, 2)]
    create_run(house.recipe.storage, "first", {"recipe": named[0]}, NOW, "y")
    others = OtherRuns(house.run)
    assert [others.named() for _ in range(3)] == [{("t000", 1)}] * 3
    create_run(house.recipe.storage, "second", {"recipe": named[1]}, NOW, "z")
    assert [others.named() for _ in range(3)] == [{("t000", 1), ("t000", 2)}] * 3
    assert read == ["first", "second"]


def test_another_drivers_run_is_left_alone(tmp_path):
    house = House(tmp_path, budget=1)
    Journal(house.store, lambda: NOW, start=house.recorder.next_number()).append("resumed", of=3)
    with pytest.raises(StaleWriter, match="resumed elsewhere"):
        house.janitor.run_once()
    assert house.steps() == [[1, 2, 3]] * 3


def test_the_thread_makes_a_pass_after_a_trials_end_and_leaves_with_the_sweep(tmp_path):
    house = House(tmp_path, stopped=1)
    with house.janitor.at_work():
        for _ in range(600):
            if house.pruned():
                break
            house.janitor._over.wait(0.05)
    assert house.steps() == [[3], [1, 2, 3], [1, 2, 3]]


def test_gc_prunes_a_sweep_that_has_ended_and_says_what_a_dry_run_would(tmp_path):
    house = House(tmp_path, stopped=0)
    words = ["checkpoints", "gc", house.run.url]
    assert "t000" not in CliRunner().invoke(app, words).output  # its driver may be at work
    house.recorder.record("completed", "t002")
    house.recorder.record("finished", best="t001")
    said = CliRunner().invoke(app, [*words, "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "t000 step 1: would be deleted, its trial ended early" in said.output
    assert house.steps() == [[1, 2, 3]] * 3
    assert "t000 step 3: deleted" in CliRunner().invoke(app, words).output
    assert house.steps() == [[], [1, 2, 3], [1, 2, 3]]
