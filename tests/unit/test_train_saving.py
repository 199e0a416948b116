"""What a recipe's checkpoint section becomes for the writer, how a session counts its saves, and what it makes of failed ones."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from checkpoint_state import State, restored, same
from memory_store import MemoryStore
from recipe_cases import changed

from tlcore.checkpoint import SaveReport, claim_attempt, list_manifests, next_attempt, read_manifest, verify
from tlcore.errors import CheckpointError, StaleWriter, StorageFull, StorageUnreachable
from tlcore.recipe import recipe_from_dict
from tlcore.train.group import process_group
from tlcore.train.progress import Progress, Report
from tlcore.train.saving import Saver, SaveTotals, writer_settings

pytestmark = pytest.mark.unit


def settings(ranks_on_host: int, **section):
    recipe = recipe_from_dict(changed({f"checkpoint.{name}": value for name, value in section.items()}))
    return writer_settings(recipe, ranks_on_host)


@pytest.mark.parametrize(
    ("asked", "ranks", "each"), [("auto", 1, 32), ("auto", 2, 16), ("auto", 8, 4), ("auto", 16, 4), (3, 8, 3)]
)
def test_ranks_of_a_host_share_its_connections(asked, ranks, each):
    assert settings(ranks, connections=asked).connections == each


def test_the_section_reaches_the_writer():
    found = settings(1, snapshot="lazy", memory_bytes=1 << 30)
    assert (found.snapshot, found.memory_bytes) == ("lazy", 1 << 30)
    assert settings(1).memory_bytes is None


def test_totals_count_every_kind_of_end():
    totals = SaveTotals()
    totals.add(SaveReport(1, "committed", 0.5, 3.0, upload_s=2.0, bytes_new=100, bytes_reused=7, retries=1, repeated=2))
    totals.add(SaveReport(2, "uploaded", 0.25, 3.0, upload_s=1.0, bytes_new=50))
    totals.add(SaveReport(4, "failed", 0.0, 1.0, error="away"))
    assert totals.to_dict() == {
        "saves": 2, "failed": 1, "stall_s": 0.75, "bytes_new": 150, "bytes_reused": 7, "upload_s": 3.0,
        "retries": 3,
    }  # fmt: skip
    assert totals.last_to_dict() == {
        "stall_s": 0.25, "save_bytes_per_s": 50.0, "save_bytes_new": 50, "save_bytes_reused": 0, "save_retries": 0,
    }  # fmt: skip


def test_the_last_save_is_told_whole_and_by_the_names_of_progress_and_report():
    totals = SaveTotals()
    assert totals.last_to_dict() == {}
    totals.add(SaveReport(1, "committed", 0.5, 3.0, upload_s=2.0, bytes_new=100, bytes_reused=7, retries=1, repeated=2))
    last = totals.last_to_dict()
    assert (last["save_bytes_new"], last["save_bytes_reused"], last["save_retries"]) == (100, 7, 3)
    for told in (Progress, Report):
        assert set(last) <= {field.name for field in fields(told)}


def test_a_writer_keeps_as_many_of_its_best_as_are_kept_of_all_trials():
    """The best of all may all be this trial's."""
    recipe = recipe_from_dict(changed({"checkpoint.keep_best_overall": 3, "checkpoint.keep_last": 1}))
    store, model = MemoryStore(), Trained()
    saver = Saver(store, "t000", recipe, {}, 0, 1, None)
    for step, value in enumerate((0.5, 0.9, 0.1, 0.8, 0.7, 0.2, 0.3), 1):
        saver.save(model, step, {}, {recipe.search.metric: value})
        saver.wait()
    saver.close()
    assert list_manifests(store, "t000") == [2, 4, 5, 7]


# -- saves that fail -----------------------------------------------------------------------------------------------------


class Trained:
    """What a saver asks of a model, over a made-up state."""

    stage, precision = 1, "fp32"

    def __init__(self) -> None:
        self.state = State()
        self.parameters = self.state.common()["parameters"]

    def pieces(self):
        return self.state.pieces(0, 1)

    def scalars(self):
        return {"optimizer_steps": 7}


class Trial:
    """A saver of one rank, and the store that it writes to."""

    def __init__(self, **failures) -> None:
        self.store, self.model, self.begun = MemoryStore(), Trained(), 0
        recipe = recipe_from_dict(changed({f"failures.{name}": value for name, value in failures.items()}))
        self.saver = Saver(self.store, "t000", recipe, {}, 0, 1, None)

    def save(self, step: int = 7) -> None:
        self.begun += 1
        self.saver.save(self.model, step, {"seed": 1}, {"eval_accuracy": 0.5})

    def await_background(self) -> None:
        """Return when every save so far has ended."""
        self.saver._writer._background.submit(bool).result(60)

    def fail(self, times: int, error: Exception, kind: str = "put", part: str = "cas/") -> None:
        """Have the store refuse that many of these requests, then answer."""
        left = [error] * times

        def refuse(asked: str, key: str) -> None:
            if left and asked == kind and part in key:
                raise left.pop()

        self.store.before = refuse

    def fail_saves(self, times: int) -> None:
        """Have so many saves fail, each at its last request."""
        self.fail(times, StorageFull("no space left"), "put_if_absent", "MANIFEST")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("tlcore.train.saving.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("tlcore.checkpoint.patience.FIRST_PAUSE_S", 0.001)


@pytest.fixture(scope="module", autouse=True)
def alone():
    with process_group():
        yield


def test_the_history_has_what_every_save_took():
    trial = Trial()
    trial.fail(1, StorageUnreachable("a broken connection"))
    trial.save(7)
    trial.saver.wait()
    trial.save(8)
    trial.saver.wait()
    trial.saver.close()
    keys = trial.store.keys("trials/t000/history/")
    first, second = (told for told in map(json.loads, map(trial.store.get, keys)) if told["kind"] == "save")
    for told in (first, second):
        assert {"stall_s", "bytes_new", "bytes_reused", "bytes_per_s", "retries", "repeated"} <= set(told)
    assert (first["retries"], first["bytes_reused"]) == (1, 0)
    assert first["bytes_per_s"] == pytest.approx(first["bytes_new"] / first["upload_s"])
    assert (second["bytes_new"], second["bytes_per_s"]) == (0, None)
    assert second["bytes_reused"] == first["bytes_new"]


@pytest.mark.parametrize(("kind", "part"), [("put", "cas/"), ("put", "rank-0000"), ("put_if_absent", "MANIFEST")])
def test_a_failed_save_that_is_waited_for_is_begun_again(kind, part):
    """At a trial's end one refused request was the trial's failure for good."""
    trial = Trial()
    trial.fail(1, StorageFull("no space left"), kind, part)
    trial.save()
    assert trial.saver.wait(trial.save) == trial.saver.committed_step == 7
    manifest = read_manifest(trial.store, "t000", 7)
    assert (trial.begun, manifest.attempt, manifest.metrics) == (2, 2, {"eval_accuracy": 0.5})
    assert verify(trial.store, manifest) == []
    assert same(restored(trial.store, trial.model.state, step=7)[0], trial.model.state)
    assert (trial.saver.totals.saves, trial.saver.totals.failed) == (1, 1)
    trial.save(8)
    assert trial.saver.wait() == 8
    trial.saver.close()


def test_what_the_failed_save_had_sent_is_not_sent_again():
    trial = Trial()
    trial.fail_saves(1)
    trial.save()
    trial.saver.wait(trial.save)
    chunks = [key for kind, key in trial.store.requests if kind == "put" and key.startswith("cas/")]
    assert len(chunks) == len(set(chunks)) > 1
    trial.saver.close()


def test_a_manifest_whose_answer_was_lost_is_replaced_by_a_whole_one():
    trial = Trial()
    refuse = [StorageFull("no space left")]

    def after_the_manifest(kind, key):
        if refuse and kind == "list" and "/writers/" in key and trial.store.keys("trials/t000/step-00000007/MANIFEST"):
            raise refuse.pop()

    trial.store.before = after_the_manifest
    trial.save()
    assert trial.saver.wait(trial.save) == 7
    trial.saver.close()
    manifest = read_manifest(trial.store, "t000", 7)
    assert manifest.attempt == 2
    assert verify(trial.store, manifest) == []


def test_an_earlier_failure_is_none_once_the_newest_save_is_committed():
    trial = Trial()
    trial.fail_saves(1)
    trial.save(6)
    trial.save(7)
    assert trial.saver.wait() == 7
    assert trial.begun == 2
    assert list_manifests(trial.store, "t000") == [7]
    trial.saver.close()


def test_a_failure_noticed_before_the_wait_is_not_forgotten():
    trial = Trial()
    trial.fail_saves(1)
    trial.save()
    trial.await_background()
    trial.saver.poll()
    assert trial.saver.totals.failed == 1
    trial.save()
    assert trial.saver.wait(trial.save) == 7
    assert list_manifests(trial.store, "t000") == [7]
    trial.saver.close()


@pytest.mark.parametrize("most", [0, 2])
def test_saves_that_fail_in_a_row_are_borne_as_the_recipe_says(most):
    trial = Trial(max_storage=most)
    trial.fail_saves(most + 1)
    trial.save()
    with pytest.raises(
        CheckpointError, match=f"t000: {most + 1} saves in a row failed, the last at step 7: no space left"
    ):
        trial.saver.wait(trial.save)
    assert trial.begun == most + 1
    trial = Trial(max_storage=most)
    trial.fail_saves(most)
    trial.save()
    assert trial.saver.wait(trial.save) == 7
    trial.saver.close()


def test_a_failed_save_that_nobody_begins_again_is_raised():
    trial = Trial()
    trial.fail_saves(1)
    trial.save()
    with pytest.raises(CheckpointError, match="the save of step 7 failed: no space left"):
        trial.saver.wait()


def test_a_store_that_takes_no_claim_either_counts_as_a_failed_save():
    trial = Trial(max_storage=3)
    trial.fail(100, StorageUnreachable("away"), "put_if_absent", "t000/step")
    away, tries = trial.store.before, []

    def refuse(kind, key):
        if kind == "put_if_absent" and key.endswith("writers/0002"):
            tries.append(key)
            if len(tries) == 5:  # one more than the requests of one try
                trial.store.before = lambda kind, key: None
            raise StorageUnreachable("away")
        away(kind, key)

    trial.store.before = refuse
    trial.save()
    assert trial.saver.wait(trial.save) == 7
    assert (trial.begun, len(tries)) == (2, 5)
    trial.saver.close()


def test_a_writer_that_another_one_has_followed_begins_nothing_again():
    """Else a process thought dead, whose save fails, would take the trial back from its successor."""
    trial = Trial()
    trial.fail_saves(1)
    trial.save()
    trial.await_background()
    claim_attempt(trial.store, "t000")
    with pytest.raises(StaleWriter, match="attempt 2 owns the trial, not attempt 1"):
        trial.saver.wait(trial.save)
    assert next_attempt(trial.store, "t000") == 3


def test_more_failures_in_a_row_than_allowed_end_the_training_between_reports():
    trial = Trial(max_storage=1)
    trial.fail_saves(2)
    for step in (1, 2):
        trial.save(step)
    trial.await_background()
    with pytest.raises(CheckpointError, match="2 saves in a row failed, the last at step 2: no space left"):
        trial.saver.poll()
