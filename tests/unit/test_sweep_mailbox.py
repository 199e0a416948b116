"""Generations, commands and answers: the mailbox's rules, clocked by hand."""

from __future__ import annotations

import pytest

from tlcore.sweep.slots.mailbox import LEAVE, Ledger, RankFailure, RankInfo

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    return Ledger(clock)


def join(ledger, group, *ranks, world_size=2):
    return [ledger.join(group, RankInfo(rank, world_size, "node", 100 + rank)) for rank in ranks]


def failure(rank):
    return RankFailure(rank, "ValueError", "no", "trace")


def test_a_generation_is_complete_when_all_ranks_have_joined(ledger):
    join(ledger, "a", 1)
    assert not ledger.complete()
    join(ledger, "a", 0)
    assert ledger.complete()
    assert [info.rank for info in ledger.ranks()] == [0, 1]
    assert ledger.generation == 1


def test_every_rank_gets_its_own_copy_of_each_command_in_order(ledger):
    join(ledger, "a", 0, 1)
    assert ledger.command("a", 0) is None
    assert ledger.post(1, {"op": "start"}) == 0
    assert ledger.post(1, {"op": "advance"}) == 1
    for _ in range(2):
        assert [ledger.command("a", number)["op"] for number in range(2)] == ["start", "advance"]


def test_a_command_is_answered_when_all_ranks_have(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    ledger.answer("a", 1, 0, None)
    assert ledger.status(1, 0).verdict == "waiting"
    ledger.answer("a", 0, 0, {"step": 3})
    assert ledger.status(1, 0).verdict == "answered"
    assert ledger.status(1, 0).answers[0] == {"step": 3}


def test_one_failure_is_enough_while_the_others_hang(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    ledger.fail("a", 0, failure(1))
    status = ledger.status(1, 0)
    assert status.verdict == "failed"
    assert [one.rank for one in status.failures] == [1]


def test_ranks_of_another_group_begin_a_new_generation_and_void_the_old_one(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    join(ledger, "b", 0)
    assert ledger.generation == 2
    assert ledger.status(1, 0).verdict == "lost"
    assert ledger.command("a", 0) == {"op": LEAVE}
    assert ledger.command("b", 0) is None
    assert ledger.post(1, {"op": "advance"}) is None
    assert not ledger.complete()


def test_answers_and_failures_of_a_void_generation_are_dropped(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    join(ledger, "b", 0, 1)
    ledger.post(2, {"op": "start"})
    ledger.answer("a", 0, 0, "late")
    ledger.fail("a", 0, failure(1))
    assert ledger.status(2, 0).verdict == "waiting"
    assert ledger.status(2, 0).answers == {}


def test_a_rank_of_a_void_group_cannot_come_back(ledger):
    join(ledger, "a", 0)
    join(ledger, "b", 0)
    assert join(ledger, "a", 1) == [False]
    assert ledger.generation == 2


def test_a_half_started_group_is_replaced_whole(ledger):
    join(ledger, "a", 0)
    join(ledger, "b", 1)
    assert not ledger.complete()
    join(ledger, "b", 0)
    assert ledger.complete()


def test_closed_sends_everybody_away_also_late_comers(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    ledger.closed = True
    assert ledger.command("a", 0) == {"op": LEAVE}
    assert join(ledger, "b", 0) == [False]
    assert ledger.post(1, {"op": "advance"}) is None


def test_cancelled_wakes_the_slot_whatever_it_waits_for(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    ledger.cancelled = True
    assert ledger.status(1, 0).verdict == "cancelled"


def test_silence_is_counted_from_the_last_sign_of_life(ledger, clock):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    clock.now = 30.0
    ledger.beat("a", 0)
    ledger.beat("other", 1)
    clock.now = 40.0
    assert ledger.status(1, 0).silent_s == {0: 10.0, 1: 40.0}


def test_ranks_that_are_to_leave_still_get_their_commands_and_are_heard(ledger):
    join(ledger, "a", 0, 1)
    ledger.leaving = True
    assert ledger.post(1, {"op": "advance"}) == 0
    for rank in (0, 1):
        assert ledger.command("a", 0) == {"op": "advance"}
        ledger.answer("a", rank, 0, rank)
    assert ledger.status(1, 0).verdict == "answered"
    assert ledger.stopping


def test_what_is_cancelled_is_waited_for_no_more(ledger):
    join(ledger, "a", 0, 1)
    ledger.post(1, {"op": "advance"})
    ledger.cancelled = True
    assert ledger.status(1, 0).verdict == "cancelled"
    assert ledger.stopping


def test_starts_in_vain_are_counted_until_all_ranks_are_there(ledger):
    ledger.start_failed("ImportError: one", [])
    join(ledger, "a", 0)
    ledger.start_failed("ImportError: two", ["aa"])
    assert (ledger.start_failures, ledger.start_error) == (2, "ImportError: two")
    join(ledger, "b", 0, 1)
    assert (ledger.start_failures, ledger.start_error) == (0, "")
