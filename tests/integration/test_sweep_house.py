"""What a sweep leaves in memory and in the store: groups that grow are replaced, fresh processes on demand, a byte budget met."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hoarding_session import LEFT_BYTES
from ray_fixtures import CPUS
from sweep_bench import Notes, leftovers, make_recipe, options, read_trace

from tlcore.checkpoint import list_manifests, read_manifest, verify
from tlcore.checkpoint import spent as spent_module
from tlcore.storage.journal import read_journal
from tlcore.sweep import run_sweep

pytestmark = pytest.mark.integration
RATES = [5e-4, 6e-4, 7e-4]
PLAIN = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": CPUS}
"""One trial at a time: all of them in one slot."""


def recipe_for(directory, resources=None, **changes):
    recipe = make_recipe(directory, RATES, resources={**PLAIN, **(resources or {})}, **changes)
    search = recipe.search.model_copy(update={"scheduler": type(recipe.search.scheduler)()})
    return recipe.model_copy(update={"search": search})


def processes(directory):
    """Process of each trial, in order."""
    return [line["pid"] for line in read_trace(directory) if line["event"] == "start"]


@pytest.mark.long
def test_a_group_that_keeps_too_much_is_replaced_between_trials_and_the_journal_says_why(ray_session, tmp_path):
    notes = Notes()
    recipe = recipe_for(tmp_path, {"slot_growth_bytes": LEFT_BYTES // 2})
    run_sweep(recipe, replace(options(tmp_path, notes), session="hoarding_session:HoardingSession"))
    first, second, third = processes(tmp_path)
    assert first == second != third
    said = [event["group_replaced"] for event in notes.of("result") if "group_replaced" in event]
    assert len(said) == 1
    assert "rank 0 holds" in said[0]
    assert [event["trial"] for event in notes.of("result") if "group_replaced" in event] == ["t002"]
    assert leftovers(read_trace(tmp_path), CPUS) == []


@pytest.mark.long
def test_process_isolation_gives_every_trial_fresh_processes(ray_session, tmp_path):
    run_sweep(recipe_for(tmp_path, {"isolation": "process"}), options(tmp_path, Notes()))
    assert len(set(processes(tmp_path))) == len(processes(tmp_path)) == 3


def test_a_byte_budget_holds_in_the_store_when_a_sweep_has_ended(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(spent_module, "SENT_LATELY_S", 0.0)
    recipe = recipe_for(tmp_path, budget={"bytes": 16})
    outcome = run_sweep(recipe, replace(options(tmp_path, Notes()), session="stub_session:StubSession"))
    store = outcome.run.open()
    kept = {trial: list_manifests(store, trial) for trial in ("t000", "t001", "t002")}
    assert kept[outcome.best.trial] != []
    assert sum(map(len, kept.values())) < 3
    assert [
        each for trial, steps in kept.items() for s in steps for each in verify(store, read_manifest(store, trial, s))
    ] == []
    pruned = [entry for entry in read_journal(store) if entry["kind"] == "pruned"]
    assert pruned != []
    assert pruned[-1]["over_bytes"] == 0
    assert sum(each.size_bytes for each in store.list("cas/")) <= 16
