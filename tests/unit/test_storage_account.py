"""Hours, worker-hours and cost of a run, folded from journals whose times are written by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tlcore.storage.account import Account, Usage
from tlcore.storage.journal import SweepState

pytestmark = pytest.mark.unit

START = datetime(2026, 11, 26, tzinfo=UTC)


def at(hours, kind, trial=None, **facts):
    return {"kind": kind, "trial": trial, "time": (START + timedelta(hours=hours)).isoformat(), **facts}


def used(*entries, now=None):
    account = Account()
    for entry in entries:
        account.apply(entry)
    return account.used(None if now is None else START + timedelta(hours=now))


def test_an_empty_journal_has_used_nothing():
    assert used() == used(now=5) == Usage(0, 0, None)


def test_each_trial_counts_its_own_workers_while_it_holds_them():
    entries = [
        at(0, "suggested", "t000"),
        at(1, "started", "t000", workers=2),
        at(1, "started", "t001", workers=4),
        at(2, "result", "t000"),
        at(3, "completed", "t000"),
        at(4, "stopped", "t001"),
        at(5, "finished"),
    ]
    assert used(*entries) == Usage(5, 2 * 2 + 3 * 4, None)


@pytest.mark.parametrize("kind", ["paused", "took_over", "left", "stopped", "completed", "failed"])
def test_a_trial_lets_its_workers_go_when_it(kind):
    assert used(at(0, "started", "t0", workers=3), at(1, kind, "t0"), at(4, "alive")).worker_hours == 3


def test_a_lost_rank_frees_no_workers_and_a_lost_slot_does():
    start = at(0, "started", "t0", workers=2)
    assert used(start, at(1, "lost", "t0", rank=1), at(2, "alive")).worker_hours == 4
    assert used(start, at(1, "lost", "t0", rank=None, slot="a"), at(2, "alive")).worker_hours == 2


def test_a_promoted_trial_counts_the_workers_of_each_rung():
    entries = [
        at(0, "started", "t0", workers=1),
        at(1, "paused", "t0"),
        at(3, "started", "t0", workers=4),
        at(4, "completed", "t0"),
    ]
    assert used(*entries).worker_hours == 1 + 4


def test_time_without_a_driver_is_not_counted():
    stopped = [at(0, "started", "t0", workers=2), at(1, "left", "t0"), at(1, "interrupted")]
    again = [at(10, "resumed"), at(11, "started", "t0", workers=2), at(12, "completed", "t0"), at(12, "finished")]
    assert used(*stopped, *again) == Usage(1 + 2, 2 + 2, None)


def test_a_killed_driver_counts_up_to_its_last_sign_of_life():
    killed = [at(0, "started", "t0", workers=2), at(1, "result", "t0"), at(2, "alive")]
    assert used(*killed, at(10, "resumed")) == Usage(2, 4, None)
    assert used(*killed, at(10, "resumed"), now=10.5) == Usage(2.5, 4, None)


def test_only_the_driver_that_lives_is_counted_up_to_now():
    running = [at(0, "started", "t0", workers=2), at(1, "result", "t0")]
    assert used(*running, now=3) == Usage(3, 6, None)
    assert used(*running, at(2, "left", "t0"), at(2, "interrupted"), now=9) == Usage(2, 4, None)


def test_a_clock_that_goes_back_takes_nothing_back():
    entries = [
        at(5, "started", "t0", workers=1),
        at(6, "result", "t0"),
        at(4, "result", "t0"),
        at(4, "completed", "t0"),
    ]
    assert used(*entries, now=0) == Usage(1, 1, None)
    other_machine = [at(-3, "resumed"), at(-3, "started", "t0", workers=1), at(-2, "completed", "t0")]
    assert used(*entries, *other_machine) == Usage(2, 2, None)


def test_cost_is_by_the_price_at_the_time():
    entries = [
        at(0, "started", "t0", workers=2, price=3),
        at(1, "left", "t0"),
        at(1, "interrupted"),
        at(2, "resumed"),
        at(2, "started", "t0", workers=2, price=1),
    ]
    assert used(*entries, now=4) == Usage(3, 6, 2 * 3 + 4 * 1)


def test_the_test_figures_and_entries_without_a_time_count_nothing():
    entries = [{"kind": "suggested", "trial": "t0"}, at(0, "started", "t0", workers=1), at(1, "completed", "t0")]
    assert used(*entries, at(1, "finished"), at(9, "final", "t0"), now=10) == Usage(1, 1, None)


def test_a_journal_that_names_no_workers_tells_no_worker_hours():
    assert used(at(0, "started", "t0"), at(1, "completed", "t0")) == Usage(1, 0, None)


def test_the_folded_sweep_has_the_account_and_says_what_ended_it():
    entries = [
        {**at(0, "suggested", "t0"), "point": {}},
        at(0, "started", "t0", workers=2),
        at(1, "left", "t0", step=7),
        at(1, "finished", reason="budget", limit="budget.hours"),
    ]
    state = SweepState.from_entries(entries)
    assert (state.finished, state.ended_by, state.trials["t0"].status) == (True, "budget", "waiting")
    assert [trial.trial for trial in state.unfinished()] == ["t0"]
    assert state.account.used() == Usage(1, 2, None)
    state.apply(at(3, "resumed"))
    assert (state.finished, state.ended_by) == (False, "")
    state.apply(at(4, "finished", best="t0"))
    assert (state.finished, state.ended_by) == (True, "")


def test_the_workers_that_take_the_test_figures_before_the_end_count():
    trained = [at(0, "started", "t0", workers=1), at(1, "completed", "t0")]
    tested = [at(1, "testing", "t0", workers=2, price=5), at(3, "final", "t0"), at(4, "finished")]
    assert used(*trained, *tested) == Usage(4, 1 + 4, 20)
    assert used(*trained, tested[0], at(2, "interrupted")) == Usage(2, 1 + 2, 10)


def test_workers_that_wait_for_room_cost_nothing_until_they_have_it():
    entries = [at(0, "started", "t0", workers=8, price=2), at(0, "queued", "t0")]
    assert used(*entries, now=2.5) == Usage(2.5, 0, 0)
    entries += [at(3, "placed", "t0")]
    assert used(*entries, at(4, "completed", "t0"), at(5, "finished")) == Usage(5, 8, 16)


def test_workers_that_died_with_their_node_cost_nothing_until_there_is_room_for_others():
    entries = [at(0, "started", "t0", workers=2), at(1, "lost", "t0", rank=0, loss="node"), at(1, "queued", "t0")]
    assert used(*entries, at(9, "placed", "t0"), at(10, "completed", "t0")).worker_hours == 2 + 2


@pytest.mark.parametrize("kind", ["left", "failed", "stopped"])
def test_a_trial_that_ends_while_it_waits_for_room_holds_nothing_afterwards(kind):
    entries = [at(0, "started", "t0", workers=2), at(0, "queued", "t0"), at(1, kind, "t0"), at(2, "placed", "t0")]
    assert used(*entries, now=9).worker_hours == 0


def test_who_waited_for_room_when_the_driver_was_killed_holds_nothing_in_the_next_one():
    entries = [at(0, "started", "t0", workers=2), at(0, "queued", "t0"), at(1, "alive"), at(5, "resumed")]
    assert used(*entries, at(6, "placed", "t0"), now=9).worker_hours == 0
    assert used(*entries, at(6, "started", "t0", workers=2), now=9).worker_hours == 6
