"""The driver's signs of life, and what it has used; clocks are moved by hand."""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError
from rich.console import Console

from tlcore.errors import StaleWriter, TrainError
from tlcore.report.live import LineDisplay
from tlcore.report.view import SweepView
from tlcore.storage import open_store
from tlcore.storage.account import ALIVE_EVERY_S, Usage
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep.cluster.resources import Node, Shape
from tlcore.sweep.halt import Halt
from tlcore.sweep.recorder import JournalCallback, Recorder
from tlcore.sweep.slots.failures import StartFailed

pytestmark = pytest.mark.unit


class World:
    def __init__(self, directory):
        self.now_s, self.store = 0.0, open_store(str(directory))
        self.recorder = Recorder(Journal(self.store, self.time), SweepState(), None, lambda: self.now_s)

    def time(self):
        return datetime(2026, 11, 26, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def kinds(self):
        return [entry["kind"] for entry in read_journal(self.store)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "run")


def test_a_driver_that_says_nothing_else_says_that_it_lives(world):
    world.recorder.record("suggested", "t000", point={})
    world.now_s += ALIVE_EVERY_S - 1
    world.recorder.sign_of_life()
    assert world.kinds() == ["suggested"]
    world.now_s += 1
    world.recorder.sign_of_life()
    world.recorder.sign_of_life()
    assert world.kinds() == ["suggested", "alive"]
    world.now_s += ALIVE_EVERY_S / 2
    world.recorder.record("started", "t000", slot="a", workers=2)
    world.now_s += ALIVE_EVERY_S / 2
    world.recorder.sign_of_life()
    assert world.kinds() == ["suggested", "alive", "started"]


def test_a_driver_that_was_replaced_learns_it_by_its_sign_of_life(world):
    world.recorder.record("suggested", "t000", point={})
    Journal(world.store, world.time, start=1).append("resumed")
    world.now_s += ALIVE_EVERY_S
    with pytest.raises(StaleWriter):
        world.recorder.sign_of_life()
    assert isinstance(world.recorder.error, StaleWriter)


def test_what_was_used_counts_up_to_now(world):
    world.recorder.record("started", "t000", slot="a", workers=2)
    assert world.recorder.used(world.time() + timedelta(hours=3)) == Usage(3, 6, None)


@pytest.mark.parametrize(("report", "asked"), [({}, 1), ({"told": True}, 1), ({"told": False}, 0)])
def test_the_board_is_asked_before_a_report_whose_trial_told_it_something(world, report, asked):
    """And not otherwise: asking costs as much as the report."""
    told = [{"kind": "lost", "trial": "t000", "rank": 1, "loss": "hang"}]
    fetched = []

    def fetch():
        fetched.append(told)
        return told

    world.recorder.notes = fetch
    world.recorder.record("suggested", "t000", point={})
    facts = {"step": 1, "fraction": 0.5, "metrics": {}, "checkpoint_step": 1}
    world.recorder.result("t000", {**facts, **report})
    assert len(fetched) == asked
    assert world.kinds() == ["suggested", *["lost"] * asked, "result"]
    assert "told" not in read_journal(world.store)[-1]


def test_what_the_last_save_took_stands_in_the_journal(world):
    took = {
        "stall_s": 0.1, "save_bytes_per_s": 5e6, "save_bytes_new": 3, "save_bytes_reused": 0, "save_retries": 2,
    }  # fmt: skip
    world.recorder.record("suggested", "t000", point={})
    world.recorder.result("t000", {"step": 1, "fraction": 0.5, "metrics": {}, "checkpoint_step": 1, **took})
    entry = read_journal(world.store)[-1]
    assert {name: entry[name] for name in took} == took


class Gone(io.StringIO):
    """What `| head` leaves of the standard output."""

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("what", ["an event", "progress"])
def test_a_sweep_that_nobody_reads_any_more_goes_on_and_says_so_once(world, caplog, what):
    view = SweepView("r", "eval_accuracy", "max", 2)
    world.recorder.record("suggested", "t000", point={})
    view.apply({"kind": "suggested", "trial": "t000", "point": {}})
    world.recorder.display = LineDisplay(view, Console(file=Gone()))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            if what == "an event":
                world.recorder.record("started", "t000", slot="a", workers=2)
            else:
                world.recorder.progress({"t000": {"step": 3, "checkpoint_step": 3}})
    assert world.recorder.display is None
    assert caplog.messages == ["the sweep can be shown no more, and goes on: [Errno 32] Broken pipe"]
    assert world.kinds() == ["suggested", *["started"] * (2 if what == "an event" else 0)]


# What every trial would meet.

SHAPE = Shape(1, 1.0, 0.0, "pack")
NOT_STARTED = StartFailed("no libcudart", nodes=["aa"], shape=SHAPE)
KEY_ERROR = TrainError("rank 0: KeyError: 'x' (mine.py:3 forward)", rank=0, step=None)


def failing(world, error, count, nodes=()):
    """What becomes of `count` trials that end one after the other by `error`: the sweep's error after each of them."""
    halt, seen = Halt(), []
    callback = JournalCallback(world.recorder, halt, None, dict, lambda trial: None, lambda: nodes)
    for number in range(count):
        name = f"t00{number}"
        world.recorder.record("suggested", name, point={"train.learning_rate": number})
        callback.on_trial_error(0, [], SimpleNamespace(trial_id=name, failure=RayTaskError("step", "", error)))
        seen.append(halt.error)
    return seen


def node(name):
    return Node({"CPU": 2.0}, {"ray.io/node-id": name})


def test_workers_that_do_not_start_end_the_sweep_once_no_node_is_left_to_try(world):
    assert failing(world, NOT_STARTED, 3, [node("aa"), node("bb")]) == [None, None, None]
    entries = [entry for entry in read_journal(world.store) if entry["kind"] == "failed"]
    assert [entry["nodes"] for entry in entries] == [["aa"]] * 3


def test_workers_that_start_on_none_of_the_nodes_end_the_sweep(world):
    first, second = failing(world, NOT_STARTED, 2, [node("aa")])
    assert first is None
    assert isinstance(second, StartFailed)


def test_the_third_trial_that_ends_by_the_same_exception_ends_the_sweep(world):
    *before, third = failing(world, KEY_ERROR, 3)
    assert before == [None, None]
    assert (type(third), third.exit_code, third.message) == (TrainError, 1, KEY_ERROR.message)


def test_no_exception_ends_a_sweep_in_which_a_trial_was_seen_further(world):
    world.recorder.progress({"t009": {"step": 20, "checkpoint_step": None}})
    assert failing(world, KEY_ERROR, 4) == [None] * 4
