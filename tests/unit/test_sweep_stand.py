"""Where a rank stands: movement in the mailbox, and the look at a thread that stands still."""

from __future__ import annotations

import threading
from traceback import FrameSummary

import pytest

from tlcore.sweep.slots.mailbox import Movement, Stand
from tlcore.sweep.slots.stand import STILL_S, Lookout, waits_for_others

pytestmark = pytest.mark.unit


def test_movement_of_any_rank_counts_and_a_heartbeat_alone_does_not():
    moves = Movement(0.0)
    moves.note(0, Stand(1, "train"), 10.0)
    moves.note(1, Stand(1, "train"), 12.0)
    moves.note(0, Stand(1, "train"), 20.0)
    assert moves.still_s(30.0) == 18.0
    moves.note(1, Stand(2, "train"), 31.0)
    assert moves.still_s(31.0) == 0.0


def test_batches_of_an_evaluation_are_movement_and_a_stack_is_none():
    moves = Movement(0.0)
    moves.note(0, Stand(8, "evaluate", 1), 1.0)
    moves.note(0, Stand(8, "evaluate", 2), 5.0)
    moves.note(0, Stand(8, "evaluate", 2, True, "a.py:1 f"), 9.0)
    assert moves.still_s(9.0) == 4.0


def test_the_longest_pause_is_between_moves_of_one_phase():
    moves = Movement(0.0)
    moves.note(0, Stand(None, "start"), 1.0)
    moves.note(0, Stand(0, "first step"), 100.0)
    moves.note(0, Stand(1, "train"), 200.0)
    moves.note(0, Stand(2, "train"), 207.0)
    moves.note(0, Stand(3, "train"), 209.0)
    assert moves.longest_gap_s == 7.0


def test_a_new_command_begins_anew():
    moves = Movement(0.0)
    moves.note(0, Stand(1, "train"), 1.0)
    moves.rest(50.0)
    assert moves.still_s(51.0) == 1.0


class Waiter:
    """A thread that stands in `lost_in_thought` until it is let go."""

    def __init__(self):
        self._over, self._inside = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.lost_in_thought, daemon=True)

    def lost_in_thought(self):
        self._inside.set()
        self._over.wait(60)

    def __enter__(self):
        self.thread.start()
        self._inside.wait(10)
        return self

    def __exit__(self, *_):
        self._over.set()
        self.thread.join()


@pytest.mark.parametrize(("step", "phase", "seen"), [(3, "train", True), (None, "idle", False)])
def test_the_stack_of_a_thread_is_looked_at_once_it_stands_still(step, phase, seen):
    now = [0.0]
    with Waiter() as waiter:
        lookout = Lookout(lambda: Stand(step, phase), waiter.thread.ident, lambda: now[0])
        assert lookout.look().stack == ""
        now[0] = STILL_S - 0.1
        assert lookout.look().stack == ""
        now[0] = STILL_S
        found = lookout.look()
    assert ("lost_in_thought" in found.stack) is seen


def test_moving_again_forgets_the_stack():
    now, stand = [0.0], [Stand(3, "train")]
    with Waiter() as waiter:
        lookout = Lookout(lambda: stand[0], waiter.thread.ident, lambda: now[0])
        lookout.look()
        now[0] = STILL_S + 1
        assert lookout.look().stack
        stand[0] = Stand(4, "train")
        assert lookout.look().stack == ""


@pytest.mark.parametrize(
    ("file", "line", "waits"),
    [
        ("/site-packages/torch/distributed/distributed_c10d.py", "work = group.allreduce()", True),
        ("/site-packages/torch/cuda/__init__.py", "return torch._C._cuda_synchronize()", True),
        ("/site-packages/deepspeed/runtime/zero/stage3.py", "norm = total_norm.item()", True),
        ("/site-packages/deepspeed/runtime/engine.py", "get_accelerator().synchronize()", True),
        ("my_loss.py", "time.sleep(60)", False),
        ("my_loss.py", "items = sum(items)", False),
    ],
)
def test_a_rank_waits_for_others_in_a_collective_or_for_a_device_that_has_one_queued(file, line, waits):
    outer = FrameSummary("/tlcore/train/stepper.py", 73, "run", line="loss.item()")
    assert waits_for_others([outer, FrameSummary(file, 1, "f", line=line)]) == waits
