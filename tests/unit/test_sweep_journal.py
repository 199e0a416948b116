"""The journal: order, single writer, and what it folds to."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from tlcore.errors import StaleWriter, StorageError
from tlcore.storage import open_store
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.storage.keys import journal_key

pytestmark = pytest.mark.unit


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


def clock():
    return datetime(2026, 11, 21, tzinfo=UTC)


def result(trial, fraction, value, step, checkpoint=None):
    return {
        "kind": "result",
        "trial": trial,
        "fraction": fraction,
        "step": step,
        "metrics": {"eval_accuracy": value},
        "checkpoint_step": checkpoint,
    }


def suggested(trial, **point):
    return {"kind": "suggested", "trial": trial, "point": point}


def test_entries_come_back_in_order_with_their_facts(store):
    journal = Journal(store, clock)
    written = [journal.append("suggested", f"t{index:03d}", point={"train.seed": index}) for index in range(12)]
    assert read_journal(store) == written
    assert [entry["n"] for entry in written] == list(range(12))
    assert written[3]["time"] == "2026-11-21T00:00:00+00:00"


def test_a_second_writer_at_the_same_number_is_refused_and_writes_nothing(store):
    first, second = Journal(store, clock), Journal(store, clock)
    first.append("suggested", "t000", point={"train.seed": 0})
    with pytest.raises(StaleWriter, match="another driver"):
        second.append("suggested", "t000", point={"train.seed": 1})
    assert [entry["point"] for entry in read_journal(store)] == [{"train.seed": 0}]


def test_an_overtaken_driver_stops_at_its_next_entry(store):
    old = Journal(store, clock)
    old.append("suggested", "t000", point={})
    new = Journal(store, clock, start=len(read_journal(store)))
    new.append("resumed")
    with pytest.raises(StaleWriter):
        old.append("completed", "t000")


def test_unknown_kinds_are_refused_on_writing_and_passed_over_on_reading(store):
    with pytest.raises(ValueError, match="cloned"):
        Journal(store, clock).append("cloned", "t000")
    state = SweepState.from_entries([suggested("t000"), {"kind": "cloned", "trial": "t000"}])
    assert state.entries == 2
    assert state.trials["t000"].status == "waiting"


def test_not_a_number_is_kept_as_null(store):
    Journal(store, clock).append(
        "result", "t000", step=1, fraction=0.5, metrics={"eval_loss": float("nan")}, rows=[float("inf")]
    )
    assert read_journal(store)[0]["metrics"] == {"eval_loss": None}
    assert read_journal(store)[0]["rows"] == [None]


def test_a_gap_is_named(store):
    journal = Journal(store, clock)
    for index in range(4):
        journal.append("suggested", f"t{index:03d}", point={})
    store.delete([journal_key(2)])
    with pytest.raises(StorageError, match="no entry 2"):
        read_journal(store)


def test_a_malformed_entry_is_named(store):
    store.put(journal_key(0), b"[]")
    with pytest.raises(StorageError, match="00000000"):
        read_journal(store)


def test_fold_follows_a_trial_through_its_states():
    state = SweepState()
    seen = []
    for entry in (
        suggested("t000", **{"train.learning_rate": 1e-4}),
        {"kind": "started", "trial": "t000"},
        result("t000", 0.25, 0.6, 10, 10),
        {"kind": "lost", "trial": "t000", "rank": 1},
        result("t000", 0.5, 0.7, 20, 20),
        {"kind": "stopped", "trial": "t000", "reason": "scheduler"},
    ):
        state.apply(entry)
        seen.append(state.trials["t000"].status)
    trial = state.trials["t000"]
    assert seen == ["waiting", "running", "running", "running", "running", "stopped"]
    assert (trial.fraction, trial.checkpoint_step, trial.losses, trial.reason) == (0.5, 20, {"worker": 1}, "scheduler")
    assert trial.final("eval_accuracy") == 0.7
    assert trial.ended


def test_resume_puts_unfinished_trials_back_to_waiting_and_leaves_the_ended():
    state = SweepState.from_entries(
        [
            suggested("t000"),
            {"kind": "started", "trial": "t000"},
            {"kind": "completed", "trial": "t000"},
            suggested("t001"),
            {"kind": "started", "trial": "t001"},
            {"kind": "finished", "trial": None},
            {"kind": "resumed", "trial": None},
        ]
    )
    assert [trial.trial for trial in state.unfinished()] == ["t001"]
    assert state.trials["t001"].status == "waiting"
    assert (state.resumes, state.finished) == (1, False)


@pytest.mark.parametrize(("mode", "best"), [("max", "t001"), ("min", "t000")])
def test_best_is_by_the_last_report(mode, best):
    entries = [
        suggested("t000"),
        suggested("t001"),
        suggested("t002"),
        result("t000", 0.5, 0.9, 5),
        result("t000", 1.0, 0.5, 10),
        result("t001", 1.0, 0.8, 10),
    ]
    for order in itertools.permutations(entries[:3]):
        state = SweepState.from_entries([*order, *entries[3:]])
        found = state.best("eval_accuracy", mode)
        assert found is not None
        assert found.trial == best


def test_best_prefers_the_deeper_of_equals_and_skips_what_has_no_value():
    state = SweepState.from_entries(
        [
            suggested("t000"),
            suggested("t001"),
            suggested("t002"),
            result("t000", 0.5, 0.8, 5),
            result("t001", 1.0, 0.8, 10),
        ]
    )
    state.apply(result("t002", 1.0, None, 10))
    assert state.best("eval_accuracy", "max").trial == "t001"
    assert SweepState().best("eval_accuracy", "max") is None


def test_losses_are_counted_by_kind_and_old_entries_are_lost_workers():
    entries = [
        suggested("t000"),
        {"kind": "lost", "trial": "t000", "rank": 1},
        {"kind": "lost", "trial": "t000", "rank": 1, "loss": "hang"},
        {"kind": "lost", "trial": "t000", "rank": 1, "loss": "hang"},
        {"kind": "lost", "trial": "t000", "rank": None, "slot": "abc"},
    ]
    assert SweepState.from_entries(entries).trials["t000"].losses == {"worker": 1, "hang": 2, "slot": 1}


def test_what_a_trial_was_adapted_to_adds_up_and_leaves_its_point_alone():
    entries = [
        suggested("t000", **{"train.learning_rate": 1e-4}),
        {"kind": "adapted", "trial": "t000", "changed": {"train.micro_batch_size": [4, 2]}},
        {"kind": "adapted", "trial": "t000", "changed": {"train.micro_batch_size": [2, 1]}},
        {"kind": "adapted", "trial": "t000", "changed": {"deepspeed.zero_stage": [2, 3]}},
    ]
    trial = SweepState.from_entries(entries).trials["t000"]
    assert trial.adapted == {"train.micro_batch_size": 1, "deepspeed.zero_stage": 3}
    assert trial.point == {"train.learning_rate": 1e-4}


def test_a_takeover_is_open_until_the_trial_is_started_and_not_longer():
    taken = {"parent": "t001", "step": 5, "fraction": 0.25, "point": {}, "changed": {}, "metrics": {}}
    took_over, started = {"kind": "took_over", "trial": "t000", **taken}, {"kind": "started", "trial": "t000"}
    state = SweepState.from_entries([suggested("t000"), started, result("t000", 0.25, 0.6, 5, 5)])
    trial, seen = state.trials["t000"], []
    left, resumed = {"kind": "left", "trial": "t000", "step": 7}, {"kind": "resumed", "trial": None}
    for entry in (took_over, resumed, started, left, resumed, result("t000", 0.5, 0.7, 10, 10), took_over):
        state.apply(entry)
        seen.append(trial.just_took_over is not None)
    assert seen == [True, True, False, False, False, False, True]


def test_nodes_are_avoided_until_the_sweep_is_resumed():
    avoided = {"kind": "avoided", "trial": None, "node": "abc", "losses": 3, "trials": ["t000"]}
    assert SweepState.from_entries([avoided]).avoided == ["abc"]
    assert SweepState.from_entries([avoided, {"kind": "resumed", "trial": None}]).avoided == []


def test_a_put_that_is_tried_again_is_the_same_entry(store):
    """Its first attempt may have arrived: then another time of day in it would look like another driver."""
    times = iter([datetime(2026, 11, 21, second=second, tzinfo=UTC) for second in range(9)])

    def twice(put):
        put()
        return put()

    seen = []

    class Watched:
        url = store.url

        def put_if_absent(self, key, data):
            seen.append((key, bytes(data)))
            return True

    Journal(Watched(), lambda: next(times), ask=twice).append("suggested", "t000", point={})
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_copy_stays_as_it_was_whatever_is_folded_later():
    first = [
        {**suggested("t000"), "time": "2026-11-26T10:00:00+00:00"},
        {"kind": "started", "trial": "t000", "workers": 2, "time": "2026-11-26T10:00:00+00:00"},
    ]
    later = [
        {"kind": "lost", "trial": "t000", "loss": "worker"},
        {"kind": "adapted", "trial": "t000", "changed": {"train.micro_batch_size": [4, 2]}},
        {"kind": "avoided", "trial": None, "node": "ab"},
        {"kind": "alive", "trial": None},
    ]
    state = SweepState.from_entries(first)
    copied, plain = state.copy(), SweepState.from_entries(first)
    for entry in later:
        state.apply({**entry, "time": "2026-11-26T11:00:00+00:00"})
    seen = [(each.trials, each.avoided, each.entries, each.account.used()) for each in (copied, plain, state)]
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][3] != seen[2][3], "an account that is shared goes on counting"
