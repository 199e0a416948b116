"""Workers that do not start: how often a slot has them started again, what it says, and what it never starts."""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace
from typing import ClassVar

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, RunningState
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from recipe_cases import changed

from tlcore.errors import CannotFit, CheckpointError, SlotFailed, StorageFull, StorageUnreachable, TrainError
from tlcore.recipe import recipe_from_dict, report_fractions
from tlcore.sweep.cluster.resources import Shape
from tlcore.sweep.slots import group as groups
from tlcore.sweep.slots import slot as slots
from tlcore.sweep.slots.controller import StartWatch, in_words, root_of, suspects
from tlcore.sweep.slots.failures import StartFailed
from tlcore.sweep.slots.group import START_ATTEMPTS, GroupLost, WorkerGroup
from tlcore.sweep.slots.recovery import pause_s
from tlcore.sweep.slots.slot import Slot

pytestmark = pytest.mark.unit

TAKEN = StartFailed("the worker group ended as it was started: RuntimeError: port 4711 is taken", hint="see the log")
REPORT = {"step": 4, "metrics": {}, "checkpoint_step": 4, "samples_per_s": 1.0}


class Asked:
    """An actor whose methods answer at once."""

    def __init__(self, **answers):
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=answer))


class Group:
    """A worker group that does what it is asked, or raises what is next in `faults`."""

    made: ClassVar[list] = []
    faults: ClassVar[deque] = deque()

    def __init__(self, settings):
        self.settings, self.mailbox, self.asked, self.closed = settings, None, [], False
        Group.made.append(self)

    def launch(self):
        pass

    def await_ranks(self, note):
        if self.faults:
            fault = self.faults.popleft()
            if fault is not None:
                raise fault

    def serves(self, shape, avoid):
        return not avoid

    def run(self, command):
        self.asked.append(command["op"])
        if self.faults and command["op"] == "close":
            raise self.faults.popleft()
        return dict(REPORT)

    def run_all(self, command):
        self.asked.append(command["op"])
        return {}

    def close(self, healthy):
        self.closed = True


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A slot with a trial, on groups that start no process; the board notes what it is told."""
    told, avoided, slept = [], [], []
    board = Asked(
        register=lambda slot, mailbox: True, avoided=lambda: list(avoided), tell=lambda note: told.append(note)
    )
    monkeypatch.setattr(Group, "made", [])
    monkeypatch.setattr(Group, "faults", deque())
    monkeypatch.setattr(slots, "WorkerGroup", Group)
    monkeypatch.setattr(slots, "find_board", lambda name: board)
    monkeypatch.setattr(slots, "can_avoid", lambda nodes, avoid, shape: True)
    monkeypatch.setattr(slots, "Cluster", lambda: SimpleNamespace(nodes=list))
    monkeypatch.setattr(slots.time, "sleep", slept.append)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "ab" * 16))
    facts = {"train.global_batch_size": 8, "resources.workers": 2, "failures.max_lost_workers": 2}
    recipe = recipe_from_dict(changed(facts))
    run = {
        "url": str(tmp_path),
        "recipe": recipe.to_dict(),
        "board": "board",
        "scratch": str(tmp_path),
        "session": "no:Session",
        "metrics": [],
        "cluster_has_gpus": False,
    }
    trial = {"trial": "t000", "point": {}, "reached": 0.0, "life": 0, "lost": {}, "adapted": {}, "workers": 2}
    trial["failure"] = None
    slot = Slot.__new__(Slot)  # Tune's own part wants a logger and a directory
    config = {**trial, "run": run}
    slot.setup(config)
    return SimpleNamespace(
        slot=slot, config=config, told=told, avoided=avoided, slept=slept, fractions=report_fractions(recipe)
    )


def test_workers_that_did_not_start_are_started_again_on_the_budget_of_lost_workers(bench):
    Group.faults += [TAKEN, TAKEN]
    assert bench.slot.step()["step"] == 4
    lost = ("lost", "worker", TAKEN.message)
    assert [(note["kind"], note["loss"], note["cause"]) for note in bench.told] == [lost, lost]
    assert [group.closed for group in Group.made] == [True, True, False]
    assert bench.slept == [pause_s(1), pause_s(2)]


def test_workers_that_never_start_fail_the_trial_with_the_cause_and_as_what_it_is(bench):
    Group.faults += [TAKEN] * 3
    with pytest.raises(StartFailed) as end:
        bench.slot.step()
    assert end.value.message == (
        "trial t000 lost workers 3 times, more than failures.max_lost_workers=2; the last time: " + TAKEN.message
    )
    assert end.value.hint == "see the log"
    assert len(bench.told) == len(Group.made) == 3


def test_no_workers_are_started_only_to_end_a_trial(bench):
    """A node that is avoided from now on, say, where the trial's ranks are that have nothing more to do."""
    slot = bench.slot
    slot._reached = bench.fractions[-2] if len(bench.fractions) > 1 else 0.0
    command = slot._command

    def then_avoid(asked):
        answer = command(asked)
        bench.avoided.append("ff")
        return answer

    slot._command = then_avoid
    assert slot.step()["done"]
    (group,) = Group.made
    assert group.asked[-1] == "close"


@pytest.mark.parametrize(("fault", "gone"), [(GroupLost("rank 1 died"), False), (TAKEN, True)])
def test_workers_that_die_with_nothing_left_to_do_take_nothing_with_them(bench, fault, gone):
    slot = bench.slot
    slot._reached = bench.fractions[-2] if len(bench.fractions) > 1 else 0.0
    Group.faults += [None, fault]
    assert slot.step()["done"]
    assert (slot._group is None) is gone
    assert bench.told == []


STORE = StorageUnreachable("the history could not be written", rank=0)
WARNED = {"kind": "warned", "error": "StorageUnreachable", "message": STORE.message, "rank": 0}


def test_a_trial_that_is_complete_stays_so_when_its_session_does_not_close(bench):
    slot = bench.slot
    slot._reached = bench.fractions[-2] if len(bench.fractions) > 1 else 0.0
    Group.faults += [None, STORE]
    report = slot.step()
    assert report["done"]
    assert json.loads(report["report"])["told"]
    assert bench.told == [{**WARNED, "trial": "t000"}]
    assert Group.made[0].closed
    assert slot._group is None


@pytest.mark.parametrize("error", [STORE, StorageFull("no space"), CheckpointError("3 saves failed"), TrainError("no")])
def test_what_a_stopped_trials_session_ends_with_is_told_of_that_trial_and_fails_not_the_next(bench, error):
    slot = bench.slot
    slot._fractions = (0.5, 1.0)
    slot.step()  # and the scheduler stops it there
    Group.faults += [error]
    slot.reset_config({**bench.config, "trial": "t001"})
    Group.faults.append(None)  # its workers come
    assert slot.step()["step"] == 4
    facts = {"error": type(error).__name__, "message": error.message, "rank": error.fields.get("rank")}
    assert bench.told == [{"kind": "warned", **facts, "trial": "t000"}]
    assert [group.asked[:3] for group in Group.made] == [["start", "advance", "close"], ["start", "advance", "close"]]


def test_a_stopped_trials_session_is_closed_before_the_next_one_starts_in_the_same_workers(bench):
    slot = bench.slot
    slot._fractions = (0.5, 1.0)
    slot.step()
    slot.reset_config({**bench.config, "trial": "t001"})
    slot.step()
    assert [group.asked for group in Group.made] == [
        ["start", "advance", "close", "measure", "start", "advance", "close"]
    ]
    assert bench.told == []


# What Ray Train says of a start in vain.


def died():
    return WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")


def test_the_reason_is_taken_out_of_what_ray_wraps_around_it():
    reason = RuntimeError("the address is\nin use")
    task = RayTaskError("connect", "a traceback", reason).as_instanceof_cause()
    assert in_words(root_of(ControllerError(task))) == "RuntimeError: the address is in use"
    failed = died()
    failed.__cause__ = ActorDiedError()
    assert in_words(root_of(ControllerError(failed))).startswith("ActorDiedError: The actor died")
    assert root_of(WorkerGroupError("2 ranks", {1: reason})) is reason
    assert len(in_words(RuntimeError("x" * 10_000))) < 500


def watch(monkeypatch, closed=False):
    told = []
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    return StartWatch(Asked(start_failed=lambda why, nodes: told.append(why), is_closed=lambda: closed)), told


@pytest.mark.parametrize("state", [ReschedulingState, RestartingState])
def test_every_start_in_vain_is_told_with_its_reason(monkeypatch, state):
    seen, told = watch(monkeypatch)
    seen.after_controller_state_update(RunningState(), state(ControllerError(RuntimeError("no"))))
    assert told == ["RuntimeError: no"]


def test_waiting_for_room_is_no_failure(monkeypatch):
    seen, told = watch(monkeypatch)
    for state in (ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2))), RunningState()):
        seen.after_controller_state_update(RunningState(), state)
    assert told == []


@pytest.mark.parametrize("error", [died(), WorkerGroupStartupTimeoutError(2)])
def test_a_group_that_its_slot_has_closed_is_not_started_again(monkeypatch, error):
    seen, _ = watch(monkeypatch, closed=True)
    with pytest.raises(SlotFailed, match="the slot has closed this worker group"):
        seen.after_controller_state_update(RunningState(), ReschedulingState(ControllerError(error)))


def awaited(monkeypatch, failures, alive=True, clock=(0.0,), pending=(False,), placed=(False,), come=()):
    """A group whose ranks do not come, but in the order of `come`, awaited at the times of `clock` and no longer.

    Args:
        pending: whether any group of the shape waits for room, each time that is asked, the last one ever after.
        placed: whether this one has it, likewise.
    """
    found, asked, waits = deque(come), deque(placed), deque(pending)
    times = iter(clock)
    monkeypatch.setattr(groups.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(groups, "waits_for_room", lambda shape: _next(waits))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    group = WorkerGroup.__new__(WorkerGroup)  # its mailbox would be an actor
    group.settings = SimpleNamespace(shape=Shape(2, 1.0, 0.0, "pack"))
    group.generation, group._ranks, group._ended = 0, [], RuntimeError("the address is in use")
    group._thread = SimpleNamespace(is_alive=lambda: alive)
    group.mailbox = Asked(
        wait_complete=lambda after, wait_s: found.popleft() if found else None,
        is_placed=lambda: _next(asked),
        is_stopping=lambda: False,
        is_cancelled=lambda: False,
        start_failures=lambda: failures,
    )
    return group


def test_a_train_run_that_ended_is_a_start_that_failed(monkeypatch):
    group = awaited(monkeypatch, (0, "", []), alive=False, clock=(0.0, 1.0))
    with pytest.raises(StartFailed, match="ended as it was started: RuntimeError: the address is in use"):
        group.await_ranks(lambda waits: None)


def test_ranks_that_die_at_every_start_are_not_waited_for_to_the_end_of_time(monkeypatch):
    group = awaited(monkeypatch, (START_ATTEMPTS, "ImportError: libcudart.so", ["aa"]), clock=(0.0, 1.0))
    with pytest.raises(StartFailed, match=r"did not start 3 times, the last time by ImportError: libcudart\.so") as end:
        group.await_ranks(lambda waits: None)
    assert (end.value.fields["nodes"], end.value.fields["shape"]) == (["aa"], group.settings.shape)


def test_a_start_that_takes_too_long_is_told_with_the_last_thing_known(monkeypatch):
    group = awaited(monkeypatch, (1, "ImportError: libcudart.so", ["aa"]), clock=(0.0, 1.0, 1000.0))
    with pytest.raises(SlotFailed, match="did not start within 900 s; the last time by ImportError") as end:
        group.await_ranks(lambda waits: None)
    assert not isinstance(end.value, StartFailed)


def _next(answers):
    return answers.popleft() if len(answers) > 1 else answers[0]


def test_whether_the_groups_own_workers_wait_for_room_is_told_and_not_whether_others_do(monkeypatch):
    """Others of its shape wait while it starts: its workers are there, and cost what they cost."""
    noted, came = [], (1, [SimpleNamespace(place="its own")])
    waiting = awaited(
        monkeypatch,
        (0, "", []),
        clock=range(20),
        pending=[False, True],
        placed=[False, False, False, True],
        come=[None, None, None, None, came],
    )
    waiting.await_ranks(noted.append)
    assert noted == [True, True, False, False]


def test_a_group_that_has_its_room_and_does_not_start_is_not_excused_by_others_that_wait(monkeypatch):
    group = awaited(monkeypatch, (0, "", []), clock=(0.0, 1.0, 1000.0), pending=[True], placed=[True])
    with pytest.raises(StartFailed, match="did not start within 900 s") as end:
        group.await_ranks(lambda waits: None)
    assert end.value.fields["nodes"] == []


def test_the_controller_tells_when_room_is_asked_for_and_when_it_is_there(monkeypatch):
    told = []
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    seen = StartWatch(Asked(set_placed=lambda *facts: told.append(facts)))
    seen.before_worker_group_start(None)
    assert seen.before_init_train_context(workers(("bb", "10.0.0.2"), ("aa", "10.0.0.1"), ("aa", "10.0.0.1"))) == {}
    assert told == [(False,), (True, ["aa", "bb"])]


def workers(*places):
    return [SimpleNamespace(metadata=SimpleNamespace(node_id=node, node_ip=address)) for node, address in places]


PLACES = [("aa", "10.0.0.1"), ("bb", "10.0.0.2"), ("bb", "10.0.0.2")]


def no_cluster():
    raise AssertionError("where the ranks were is known")


def test_the_node_of_a_worker_that_cannot_be_started_is_found_by_its_rank_or_its_address():
    reason = ImportError("libcudart.so is missing")
    task = RayTaskError("connect", "ray::connect() (pid=7, ip=10.0.0.2, actor_id=ab)", reason).as_instanceof_cause()
    assert suspects(ControllerError(task), PLACES, no_cluster) == ["bb"]
    assert suspects(WorkerGroupError("1 rank", {0: reason}), PLACES, no_cluster) == ["aa"]


def test_a_worker_that_died_before_there_was_a_group_is_found_by_its_address_in_the_cluster():
    failed = died()
    failed.__cause__ = ActorUnavailableError("The actor died unexpectedly\n\tip: 10.0.0.2\n", b"1" * 16)
    assert suspects(ControllerError(failed), [], lambda: PLACES) == ["bb"]
    assert suspects(ControllerError(died()), [], lambda: PLACES) == []


def test_any_node_of_the_group_may_be_to_blame_where_ranks_cannot_reach_each_other_or_nothing_is_said():
    refused = RuntimeError("[gloo/pair.cc:5] Connection refused [10.0.0.1]:4711")
    task = RayTaskError("connect", "ray::connect() (pid=7, ip=10.0.0.2)", refused).as_instanceof_cause()
    assert suspects(ControllerError(task), PLACES, no_cluster) == ["aa", "bb"]
    assert suspects(ControllerError(RuntimeError("no")), PLACES, no_cluster) == ["aa", "bb"]


def test_a_trial_that_cannot_fit_after_all_fails_and_starts_no_workers(bench):
    """It took over a point, or the cluster is smaller than the one before the resume."""
    bench.slot._failure = {"error": "CannotFit", "message": "not run: too large", "hint": "less"}
    with pytest.raises(CannotFit, match="not run: too large") as end:
        bench.slot.step()
    assert end.value.hint == "less"
    assert Group.made == []
