"""What a population or a pause sees of a trial's saves: only what is committed, and that for as long as it may be taken over.

The slot, the order of training, saving and reporting, the writer and its retention, and the schedulers are the real ones, over a
directory; a made-up state stands for the model, and a worker group is a session in this process.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import ray
from checkpoint_state import State
from ray.tune.experiment import Trial
from scheduler_bench import Live, recipe

from tlcore.checkpoint import list_manifests, newest_step, read_manifest, verify
from tlcore.storage import open_store
from tlcore.storage.keys import manifest_key
from tlcore.storage.local import LocalObjectStore
from tlcore.storage.urls import LocalPlace
from tlcore.sweep.schedule.seats import decide
from tlcore.sweep.schedule.takeover import can_clone, make_own
from tlcore.sweep.slots import slot as slots
from tlcore.sweep.slots.group import GroupLost
from tlcore.sweep.slots.slot import POINTER, REPORT, Slot
from tlcore.train.cadence import ends_interval
from tlcore.train.divergence import LossWatch
from tlcore.train.group import process_group
from tlcore.train.saving import Saver
from tlcore.train.session import TrialSession

pytestmark = pytest.mark.unit
STEPS = 100


class Killed(BaseException):
    """The process that asked the store is no more."""


class Held(LocalObjectStore):
    """A directory as one process sees it: the commit of `step` waits for `go`, and nothing is written once it was killed."""

    def __init__(self, directory):
        super().__init__(LocalPlace(directory))
        self.step, self.dead = None, False
        self.reached, self.go = threading.Event(), threading.Event()

    def put(self, key, data):
        self._hold(key)
        super().put(key, data)

    def put_if_absent(self, key, data):
        self._hold(key)
        return super().put_if_absent(key, data)

    def _hold(self, key):
        if self.step is not None and key == manifest_key("t000", self.step):
            self.reached.set()
            assert self.go.wait(60), "the test never let the commit go on"
        if self.dead:
            raise Killed


class Trained:
    """What a saver asks of a model, over a made-up state."""

    stage, precision = 1, "fp32"

    def __init__(self):
        self.state = State(frozen_elements=0)
        self.parameters = self.state.common()["parameters"]

    def pieces(self):
        return self.state.pieces(0, 1)

    def scalars(self):
        return {}


class Session(TrialSession):
    """A trial that gets better with every step."""

    def __init__(self, store, chosen, trial, resume_step):
        parent = read_manifest(store, trial, resume_step) if resume_step else None
        self.recipe, self.run_url, self.trial, self.rank, self.world_size = chosen, store.url, trial, 0, 1
        self.order = SimpleNamespace(step_at=lambda fraction: round(fraction * STEPS), total_steps=STEPS)
        self.model, self.step, self.ticks = Trained(), parent.step if parent else 0, 0
        self._saver = Saver(store, trial, chosen, {}, 0, 1, parent)
        self._loss, self._samples_per_s, self._fell_back = 0.5, 1.0, []
        self._watch = LossWatch(chosen, trial)
        self._prepared, self._leaves = True, False

    def train_step(self):
        self.step += 1
        self.model.state.change()

    def _agree_to_leave(self):
        pass

    def _look(self):
        self._saver.poll()

    def _evaluate(self):
        return {"eval_accuracy": self.step / STEPS, "eval_loss": 1 - self.step / STEPS}

    def _position(self):
        return {}


class Group:
    """A worker group of one rank, in this process."""

    def __init__(self, bench):
        self.bench, self.mailbox, self.session = bench, None, None

    def launch(self):
        pass

    def await_ranks(self, *note):
        pass

    def serves(self, shape, avoid):
        return True

    def run(self, command):
        try:
            return self._run(command)
        except Killed:
            raise GroupLost("rank 0 was killed") from None

    def _run(self, command):
        if command["op"] == "start":
            self.bench.process = Held(self.bench.directory)
            chosen = self.bench.live.recipe
            self.session = Session(self.bench.process, chosen, command["trial"], command["resume_step"])
        elif self.bench.process.dead:
            raise Killed
        elif command["op"] == "advance":
            return self.session.advance(command["fraction"], command["commit"]).to_dict()
        return None

    def run_all(self, command):
        return {}

    def close(self, healthy):
        self.bench.process.dead = True
        self.bench.process.go.set()
        self.session._saver.abandon()


class Sweep(Live):
    """Seats whose takeovers are of real checkpoints, as the driver does them."""

    def take_over(self, seat, donor, propose):
        decided = decide(seat, donor, propose)
        if decided is None or not can_clone(self.store, decided):
            return None
        make_own(self.store, decided)
        return super().take_over(seat, donor, lambda: decided.point)


class Bench:
    """A sweep and the slot of its first trial. `process` is the store as that trial's process has it now."""

    def __init__(self, directory, scheduler, **more):
        self.directory = directory
        self.live = Sweep(recipe(scheduler, **more))
        self.store = self.live.store = open_store(directory.as_uri())
        self.process = None
        for number in range(self.live.recipe.search.trials):
            self.live.add(f"t{number:03d}")
            self.live.start(f"t{number:03d}")
        run = {"url": self.store.url, "recipe": self.live.recipe.to_dict(), "board": "", "scratch": str(directory)}
        run |= {"session": "", "metrics": [], "cluster_has_gpus": False}
        trial = {"trial": "t000", "point": self.live.seats.seats["t000"].config, "failure": None, "reached": 0.0}
        self.slot = Slot.__new__(Slot)  # Tune's own part wants a logger and a directory
        self.slot.setup({**trial, "life": 0, "lost": {}, "adapted": {}, "workers": 1, "run": run})

    def step(self, told=True):
        """The first trial goes on to its next report; returns that, and what the scheduler says where it is told."""
        report = json.loads(self.slot.step()[REPORT])
        return report, self.live.result("t000", report) if told else None

    def saved_step(self):
        """As `step`; returns once the save is committed and what is not to be kept has gone."""
        report, decision = self.step()
        self.slot._group.session._saver.wait()
        return report, decision

    def hold(self, step):
        """Have the commit of that step wait."""
        self.process.step = step

    def kill(self):
        """End the process of the first trial, whatever it is waiting for."""
        self.process.dead = True
        self.process.go.set()

    def steps(self, trial="t000"):
        return list_manifests(self.store, trial)

    def taken(self):
        return [
            (entry["trial"], entry["step"], entry["fraction"])
            for entry in self.live.journal
            if entry["kind"] == "took_over"
        ]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Makes a bench of a scheduler's settings."""
    made = []
    board = SimpleNamespace(
        register=SimpleNamespace(remote=lambda slot, mailbox: True),
        avoided=SimpleNamespace(remote=list),
        tell=SimpleNamespace(remote=lambda note: None),
    )
    monkeypatch.setattr(slots, "find_board", lambda name: board)
    monkeypatch.setattr(slots, "WorkerGroup", lambda settings: Group(made[-1]))
    monkeypatch.setattr(slots, "Growth", lambda most: SimpleNamespace(judge=lambda ranks: None))
    monkeypatch.setattr(slots, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "ab" * 16))

    def make(scheduler, **more):
        made.append(Bench.__new__(Bench))
        made[-1].__init__(tmp_path, scheduler, **more)
        return made[-1]

    with process_group():
        yield make
        for each in made:
            each.slot.cleanup()


def population(bench, trials=3):
    """Ten epochs, so that three reports and their saves lie between two intervals."""
    return bench({"pbt": {"interval": 0.4, "quantile": 0.5}}, epochs=10, trials=trials)


def test_a_donor_that_is_some_saves_ahead_is_taken_over_where_it_was_compared(bench):
    """Its writer kept the last two saves and the best one: what it had committed at the interval was gone."""
    world = population(bench)
    for _ in range(7):
        world.saved_step()
    assert world.steps() == [40, 60, 70]
    world.live.report("t001", 0.4, 0.1)
    assert world.taken() == [("t001", 40, 0.4)]
    assert verify(world.store, read_manifest(world.store, "t001", 40)) == []
    # the donor is through with its next interval, and the driver has not heard of it
    report, _ = world.step(told=False)
    assert (report["checkpoint_step"], world.steps()) == (80, [40, 70, 80])
    world.live.report("t002", 0.4, 0.05)
    assert ("t002", 40, 0.4) in world.taken()
    world.live.result("t000", report)
    world.saved_step()
    assert world.steps() == [80, 90]


def test_what_may_be_taken_over_stays_so_after_a_resume(bench):
    world = population(bench)
    for _ in range(5):
        world.saved_step()
    world.kill()
    assert world.live.resumed().seats.offered() == world.live.seats.offered() == {("t000", 40)}
    for _ in range(2):
        world.saved_step()  # in a process that was restored at 50
    assert world.steps() == [40, 60, 70]
    world.live.report("t001", 0.4, 0.1)
    assert world.taken() == [("t001", 40, 0.4)]


def test_of_a_donor_that_has_ended_nothing_is_on_offer(bench):
    world = population(bench)
    for _ in range(10):
        world.step()
    assert world.live.status("t000") == Trial.TERMINATED
    assert world.live.seats.offered() == set()
    world.live.report("t001", 0.4, 0.1)
    assert world.taken() == []


def test_a_save_between_two_intervals_is_not_offered_though_it_is_committed():
    """Its writer would not keep it: a report after a restore may name its own step as committed."""
    live = Live(recipe({"pbt": {"interval": 0.4, "quantile": 0.5}}, epochs=10, trials=2))
    live.add("t000")
    live.start("t000")
    for fraction in (0.4, 0.5):
        live.report("t000", fraction, 0.5)
    assert live.seats.offered() == {("t000", 400)}


def test_where_an_interval_ends_is_told_by_the_step():
    def ends(scheduler):
        chosen = recipe(scheduler, epochs=10, trials=2)
        return [step for step in range(101) if ends_interval(chosen, step, lambda fraction: round(100 * fraction))]

    assert ends({"pbt": {"interval": 0.4}}) == ends({"pb2": {"interval": 0.4}}) == [40, 80]
    assert ends({"asha": {"grace": 0.5}}) == []


def test_a_population_never_sees_a_save_that_was_reported_and_not_committed(bench):
    """An epoch's report does not wait for its save. The process is killed in between."""
    world = population(bench)
    for _ in range(4):
        world.saved_step()
    world.hold(50)
    report, _ = world.step()
    assert world.process.reached.wait(60)
    assert (report["step"], report["checkpoint_step"]) == (50, 40)
    world.live.report("t001", 0.4, 0.1)
    world.kill()
    world.live.report("t002", 0.4, 0.05)
    assert world.taken() == [("t001", 40, 0.4), ("t002", 40, 0.4)]
    assert newest_step(world.store, "t000") == 40
    report, _ = world.saved_step()  # again from 40
    assert (report["step"], world.steps()[-1]) == (60, 60)


def test_a_population_hears_of_an_interval_only_when_it_is_committed(bench):
    world = population(bench)
    for _ in range(7):
        world.saved_step()
    world.hold(80)
    with ThreadPoolExecutor(1) as pool:
        stepping = pool.submit(world.slot.step)
        assert world.process.reached.wait(60)
        assert not stepping.done()
        world.live.report("t001", 0.4, 0.1)
        world.kill()
        report = json.loads(stepping.result(60)[REPORT])  # of another process, from 70 on
    assert world.taken() == [("t001", 40, 0.4)]
    assert (report["step"], report["checkpoint_step"]) == (80, 80)
    assert read_manifest(world.store, "t000", 80).attempt == 2
    world.live.result("t000", report)
    assert ("t000", 80) in world.live.seats.offered()


def test_a_trial_is_paused_only_where_it_is_committed_and_its_pointer_says_so(bench, tmp_path):
    world = bench({"bohb": {"brackets": 3, "reduction": 2}}, epochs=8, trials=4, algorithm="bohb")
    report, decision = world.saved_step()
    assert (report["step"], decision) == (12, "CONTINUE")
    world.hold(25)
    with ThreadPoolExecutor(1) as pool:
        stepping = pool.submit(world.slot.step)  # to the rung at a quarter
        assert world.process.reached.wait(60)
        assert not stepping.done()
        assert world.live.status("t000") == Trial.RUNNING
        assert world.steps() == [12]
        assert pointer(world, tmp_path) == {"fraction": 0.125, "step": None}
        world.kill()
        report = json.loads(stepping.result(60)[REPORT])  # of another process, from 12 on
    assert (report["step"], report["checkpoint_step"]) == (25, 25)
    assert world.live.result("t000", report) == "PAUSE"
    assert pointer(world, tmp_path) == {"fraction": 0.25, "step": 25}
    found = read_manifest(world.store, "t000", 25)
    assert (found.attempt, verify(world.store, found)) == (2, [])


def test_a_pause_after_a_report_that_did_not_wait_goes_on_from_what_is_committed(bench, tmp_path):
    """A trial that is put aside between rungs, its save under way: its process ends, and it is taken up again elsewhere."""
    world = bench({"bohb": {"brackets": 3, "reduction": 2}}, epochs=8, trials=4, algorithm="bohb")
    world.saved_step()
    world.saved_step()
    world.hold(38)
    report, _ = world.step()
    assert world.process.reached.wait(60)
    assert (report["step"], report["checkpoint_step"]) == (38, 25)
    assert pointer(world, tmp_path) == {"fraction": 0.375, "step": 25}
    world.kill()
    report, _ = world.saved_step()
    assert (report["step"], world.steps()) == (50, [25, 50])


def pointer(world, directory):
    """What Tune gets for a trial that it puts aside."""
    world.slot.save_checkpoint(str(directory))
    found = json.loads((directory / POINTER).read_text())
    return {key: found[key] for key in ("fraction", "step")}
