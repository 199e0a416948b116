"""How long a sweep that stops waits for what runs; the clock is moved by hand."""

from __future__ import annotations

import pickle

import pytest

from tlcore.errors import DataError
from tlcore.remote.submit import STOP_WAIT_S
from tlcore.sweep.halt import GRACE_S, TEAR_DOWN_S, Halt
from tlcore.sweep.slots.group import LEAVE_S
from tlcore.train.budget import Exhausted

pytestmark = pytest.mark.unit

LIMIT = Exhausted("budget.hours", 1, 1)


class World:
    def __init__(self):
        self.now, self.busy, self.closed = 100.0, True, False
        self.halt = Halt(lambda: self.now)
        self.halt.is_busy = lambda: self.busy
        self.halt.take_no_more = lambda: setattr(self, "closed", True)


@pytest.fixture
def world():
    return World()


def test_nothing_stops_unasked(world):
    assert not world.halt.asked
    assert not world.halt.stop_all()
    assert not world.halt.at_once
    assert not world.closed


@pytest.mark.parametrize("ask", [lambda halt: halt.interrupt(), lambda halt: halt.exhaust(LIMIT)])
def test_what_runs_may_end_its_step_and_nothing_more_starts(world, ask):
    ask(world.halt)
    assert not world.halt.stop_all()
    assert world.closed
    assert not world.halt.at_once
    world.busy = False
    assert world.halt.stop_all()


def test_what_does_not_end_in_time_is_stopped_where_it_is_and_then_torn_down(world):
    world.halt.interrupt()
    world.now += GRACE_S
    assert world.halt.at_once
    assert not world.halt.stop_all()
    world.now += TEAR_DOWN_S
    assert world.halt.stop_all()


def test_a_second_reason_does_not_begin_the_wait_anew(world):
    world.halt.exhaust(LIMIT)
    world.now += GRACE_S - 1
    world.halt.interrupt()
    assert not world.halt.at_once
    world.now += 1
    assert world.halt.at_once


def test_an_error_that_every_trial_would_meet_stops_all_at_once(world):
    world.halt.fail(DataError("no column 'text'"))
    assert world.halt.at_once
    assert world.halt.stop_all()


def test_the_first_error_and_the_first_limit_count(world):
    world.halt.fail(DataError("first"))
    world.halt.fail(DataError("second"))
    world.halt.exhaust(LIMIT)
    world.halt.exhaust(Exhausted("budget.worker_hours", 1, 1))
    assert world.halt.error.message == "first"
    assert world.halt.exhausted is LIMIT


def test_tune_can_pickle_it(world):
    pickle.dumps(world.halt)


def test_a_stopped_job_has_the_time_for_all_of_it():
    assert STOP_WAIT_S > GRACE_S + TEAR_DOWN_S + 2 * LEAVE_S
