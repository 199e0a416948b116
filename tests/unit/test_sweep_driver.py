"""What a driver does with the journal of the one before, ahead of any trial: takeovers half done, done, or not possible."""

from __future__ import annotations

import errno
import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from checkpoint_state import State, close, save, wait, writers
from ray.tune.experiment import Trial
from scheduler_bench import recipe

from tlcore.checkpoint import clone_checkpoint, delete_checkpoint, list_manifests, read_manifest
from tlcore.recipe import sample_point
from tlcore.storage import create_run
from tlcore.storage.journal import Journal, read_journal
from tlcore.sweep import driver as drivers
from tlcore.sweep.driver import Driver
from tlcore.sweep.halt import Halt

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 28, tzinfo=UTC)


class Population:
    """A run of two trials of which t000 is the better; what a driver wrote, and what lies in the store when it is gone."""

    def __init__(self, directory, trials=2, **search):
        self.recipe = recipe({"pbt": {"interval": 0.25, "quantile": 0.5}}, trials=trials, **search)
        self.recipe = self.recipe.model_copy(update={"storage": str(directory)})
        self.run = create_run(self.recipe.storage, "n", {"recipe": self.recipe.to_dict()}, NOW, "x")
        self.store = self.run.open()
        self.journal = Journal(self.store, lambda: NOW)
        for number, name in enumerate(("t000", "t001")):
            self.journal.append("suggested", name, point=sample_point(self.recipe, 0, number), of=trials)
            self.journal.append("started", name, slot=name)

    def save(self, trial, *steps):
        ranks = writers(self.store, 1, trial=trial)
        state = State(seed=int(trial[1:]))
        for step in steps:
            save(ranks, state, step)
            wait(ranks, step)
        close(ranks)

    def report(self, trial, value):
        facts = {"fraction": 0.25, "step": 10, "metrics": {"eval_accuracy": value}, "checkpoint_step": 10}
        self.journal.append("result", trial, **facts)

    def reported(self):
        """Both have reported, and t001's takeover is decided."""
        for trial, value in (("t000", 0.9), ("t001", 0.1)):
            self.save(trial, 10)
            self.report(trial, value)

    def took_over(self):
        point = sample_point(self.recipe, 0, 0)
        facts = {"step": 10, "fraction": 0.25, "changed": {}, "metrics": {"eval_accuracy": 0.9}}
        self.journal.append("took_over", "t001", parent="t000", point=point, **facts)

    def clone(self):
        clone_checkpoint(self.store, read_manifest(self.store, "t000", 10), "t001")

    def resumed(self):
        driver = Driver(self.recipe, self.run, "no:Session", ["eval_accuracy"], None, Halt(), lambda: NOW)
        driver._take_up(self.recipe.search.trials)
        return driver

    def kinds(self):
        entries = read_journal(self.store)
        return [entry["kind"] for entry in entries[[entry["kind"] for entry in entries].index("resumed") :]]


@pytest.fixture
def population(tmp_path):
    found = Population(tmp_path)
    found.reported()
    return found


@pytest.mark.parametrize("donor", ["still there", "gone"])
def test_what_a_trial_committed_since_it_took_over_is_its_own(population, donor):
    population.took_over()
    population.clone()
    population.journal.append("started", "t001", slot="t001")
    population.save("t001", 14)
    population.journal.append("left", "t001", step=14)
    if donor == "gone":
        delete_checkpoint(population.store, "t000", 10)
    for _ in range(2):
        assert population.resumed().state.trials["t001"].lineage[-1].parent == "t000"
        assert list_manifests(population.store, "t001") == [10, 14]


def test_a_takeover_that_was_written_and_not_cloned_is_cloned(population):
    population.save("t001", 14)
    population.took_over()
    population.resumed()
    assert list_manifests(population.store, "t001") == [10]
    assert read_manifest(population.store, "t001", 10).parent == read_manifest(population.store, "t000", 10).key


def test_a_trial_whose_donor_was_deleted_before_the_clone_goes_on_from_what_it_has(population):
    population.took_over()
    delete_checkpoint(population.store, "t000", 10)
    driver = population.resumed()
    assert list_manifests(population.store, "t001") == [10]
    assert population.kinds() == ["resumed", "fell_back"]
    told = read_journal(population.store)[-1]
    assert (told["trial"], told["instead"], told["step"]) == ("t001", 10, 10)
    assert "trial t000 has no checkpoint of step 10" in told["reason"]
    assert not driver.state.trials["t001"].ended


def test_what_was_decided_and_not_written_is_done(population):
    driver = population.resumed()
    assert population.kinds() == ["resumed", "took_over"]
    assert read_manifest(population.store, "t001", 10).parent == read_manifest(population.store, "t000", 10).key
    assert driver._seats.seats["t001"].status == Trial.PAUSED


def test_what_was_decided_and_can_be_done_no_more_is_left_and_the_trial_goes_on_as_it_was(population, caplog):
    """So it would have been in a live sweep, also in one that asked, found nothing to take over, and was interrupted then."""
    population.save("t001", 14)
    delete_checkpoint(population.store, "t000", 10)
    mine = sample_point(population.recipe, 0, 1)
    with caplog.at_level(logging.WARNING):
        driver = population.resumed()
    assert caplog.messages == ["trial t001 does not take over trial t000 at step 10: that checkpoint is gone"]
    assert population.kinds() == ["resumed"]
    assert list_manifests(population.store, "t001") == [10, 14]
    seat = driver._seats.seats["t001"]
    assert (seat.config, seat.takeovers, seat.status) == (mine, 0, Trial.PENDING)
    assert driver.state.trials["t001"].point == mine
    again = population.resumed()
    assert again._seats.seats["t001"].config == mine


def test_an_autoscaler_is_asked_for_no_more_trials_than_may_run_at_once(tmp_path):
    waiting = {}
    for number, at_once in enumerate((None, 4, 2, 1)):
        found = Population(tmp_path / str(number), trials=9, at_once=at_once)
        driver = Driver(found.recipe, found.run, "no:Session", [], None, Halt(), lambda: NOW)
        waiting[at_once] = driver._waiting_trials()
    assert waiting == {None: 7, 4: 2, 2: 0, 1: 0}


class Rounds:
    """The watcher's turns: before each, what the test does; after the last one the sweep is over."""

    def __init__(self, *acts):
        self.acts = list(acts)

    def wait(self, seconds):
        if not self.acts:
            return True
        self.acts.pop(0)()
        return False


def test_the_watcher_lives_on_when_something_cannot_be_written(tmp_path, monkeypatch):
    """It alone has a stop told to the slots."""
    found, heard, halt = Population(tmp_path), [], Halt()
    driver = Driver(found.recipe, found.run, "no:Session", [], None, halt, lambda: NOW)
    driver._board_actor = SimpleNamespace(leave=SimpleNamespace(remote=lambda: heard.append("leave")))

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drivers, "_free_orphans", full)
    monkeypatch.setattr(drivers, "ORPHANS_EVERY_S", 0.0)
    driver._watch(Rounds(lambda: None, halt.interrupt))
    assert heard == ["leave"]
