"""One rank's command loop, without Ray: what is performed, what is answered, how errors leave."""

from __future__ import annotations

import pickle

import pytest

from tlcore.data import block_done
from tlcore.errors import CheckpointError, DataError, OutOfMemory
from tlcore.recipe import recipe_from_dict
from tlcore.sweep.slots import worker
from tlcore.sweep.slots.failures import as_error
from tlcore.sweep.slots.mailbox import LEAVE, Stand
from tlcore.sweep.slots.worker import SessionHost, describe_failure, serve

pytestmark = pytest.mark.unit

RECIPE = recipe_from_dict(
    {
        "name": "n",
        "task": "text-classification",
        "model": {"source": "package:x/y"},
        "data": {"train": "train.csv"},
        "storage": "/tmp/store",
        "search": {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": 2},
    }
)


class Report:
    def to_dict(self):
        return {"step": 7}


class FakeSession:
    made: list = []  # noqa: RUF012 (one list for all, on purpose)

    def __init__(self, recipe, run_url, trial, on_progress, resume_step, inherits):
        self.recipe, self.trial, self.resume_step, self.calls = recipe, trial, resume_step, []
        self.inherits = inherits
        FakeSession.made.append(self)

    def advance(self, fraction, commit):
        self.calls.append(("advance", fraction, commit))
        if fraction > 1:
            raise ZeroDivisionError("too far")
        return Report()

    def test(self, step):
        self.calls.append(("test", step))
        return {"test_accuracy": 0.5}

    def examples(self):
        self.calls.append(("examples",))
        return [{"input": "good", "expected": "pos", "label": "pos"}]

    def interrupt(self):
        self.calls.append(("interrupt",))

    def close(self):
        self.calls.append(("close",))


class FakeLink:
    def __init__(self, rank, commands):
        self.rank, self._commands, self.answers, self.failures = rank, commands, {}, {}

    def fetch(self, number):
        return self._commands[number] if number < len(self._commands) else {"op": LEAVE}

    def answer(self, number, value):
        self.answers[number] = value

    def fail(self, number, failure):
        self.failures[number] = failure


@pytest.fixture
def sessions(monkeypatch):
    monkeypatch.setattr(FakeSession, "made", [])
    monkeypatch.setattr(worker, "import_factory", lambda path: {"fake:Session": FakeSession}[path])
    return FakeSession.made


def start(trial, learning_rate=1e-4, resume_step=None):
    return {
        "op": "start",
        "recipe": RECIPE.to_dict(),
        "point": {"train.learning_rate": learning_rate},
        "trial": trial,
        "run_url": "file:///run",
        "resume_step": resume_step,
        "inherits": resume_step is not None,
    }


def advance(fraction):
    return {"op": "advance", "fraction": fraction, "commit": fraction == 0.5}


def run(rank, *commands):
    link = FakeLink(rank, commands)
    serve(link, SessionHost("fake:Session", None))
    return link


def test_a_trial_gets_the_recipe_with_its_point_and_its_step(sessions):
    run(0, start("t004", 3e-4, resume_step=12))
    assert sessions[0].recipe.train.learning_rate == 3e-4
    assert (sessions[0].trial, sessions[0].resume_step, sessions[0].inherits) == ("t004", 12, True)


def test_rank_0_answers_with_the_report_and_the_others_with_nothing(sessions):
    commands = (start("t000"), advance(0.5))
    assert run(0, *commands).answers == {0: None, 1: {"step": 7}}
    assert run(1, *commands).answers == {0: None, 1: None}
    assert sessions[0].calls[0] == ("advance", 0.5, True)


def test_a_started_trial_is_tested_and_shown(sessions):
    commands = (start("t000", resume_step=5), {"op": "test", "step": 5})
    shown = [{"input": "good", "expected": "pos", "label": "pos"}]
    assert run(0, *commands).answers == {0: None, 1: {"metrics": {"test_accuracy": 0.5}, "examples": shown}}
    assert run(1, *commands).answers == {0: None, 1: None}
    assert [session.calls for session in sessions] == [[("test", 5), ("examples",), ("close",)]] * 2
    assert "without a started trial" in run(0, {"op": "test", "step": 5}).failures[0].message


def test_a_session_is_closed_before_the_next_one_starts_and_when_the_rank_leaves(sessions):
    run(0, start("t000"), start("t001"), {"op": "close"}, start("t002"))
    assert [session.calls for session in sessions] == [[("close",)]] * 3


def test_an_error_is_answered_and_the_rank_goes_on_without_the_broken_session(sessions):
    link = run(1, start("t000"), advance(2.0), advance(0.5), start("t001"))
    assert (link.failures[1].rank, link.failures[1].kind) == (1, "ZeroDivisionError")
    assert "too far" in link.failures[1].traceback
    assert "without a started trial" in link.failures[2].message
    assert ("close",) not in sessions[0].calls  # closing could wait for ranks that hang
    assert link.answers == {0: None, 3: None}


def test_a_class_that_cannot_be_imported_is_an_error_of_the_start_command():
    link = FakeLink(0, [start("t000")])
    serve(link, SessionHost("no_such_module:Session", None))
    assert link.failures[0].kind == "ModuleNotFoundError"


def test_errors_of_ours_keep_their_class_and_hint_and_learn_the_rank():
    failure = describe_failure(3, DataError("no column 'text'", hint="set data.text"))
    error = as_error(pickle.loads(pickle.dumps(failure)))  # noqa: S301 (what Ray does between processes)
    assert isinstance(error, DataError)
    assert (error.exit_code, error.hint, error.fields["rank"]) == (2, "set data.text", 3)


def test_other_errors_become_a_train_error_that_names_rank_and_kind():
    error = as_error(describe_failure(1, KeyError("logits")))
    assert type(error).__name__ == "TrainError"
    assert error.message == "rank 1: KeyError: 'logits'"
    assert "KeyError" in error.fields["traceback"]


def raised(error, cause=None):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_other_errors_say_where_they_were_raised_and_at_which_step():
    error = as_error(describe_failure(1, raised(ValueError("bad shape")), 3))
    line = raised.__code__.co_firstlineno + 2
    assert error.message == f"rank 1: ValueError: bad shape (test_sweep_worker.py:{line} raised)"
    assert error.fields["step"] == 3


def test_a_broken_device_is_seen_also_behind_an_error_of_ours_and_memory_comes_first():
    ecc = RuntimeError("CUDA error: uncorrectable ECC error encountered")
    assert describe_failure(1, ecc).broken == "device"
    assert describe_failure(1, raised(CheckpointError("the snapshot failed"), ecc)).broken == "device"
    assert describe_failure(1, RuntimeError("CUDA error: out of memory")).broken is None
    assert describe_failure(1, ValueError("uncorrectable ECC error")).broken is None


def test_running_out_of_memory_travels_as_our_error_with_rank_and_step():
    failure = describe_failure(2, MemoryError("no room"), 7)
    error = as_error(pickle.loads(pickle.dumps(failure)))  # noqa: S301 (what Ray does between processes)
    assert isinstance(error, OutOfMemory)
    assert (error.fields["rank"], error.fields["step"]) == (2, 7)
    assert "rank 2 ran out of host memory at step 7" in error.message


class Looked:
    """A session that looks at its host from inside."""

    step, phase, ticks = 5, "evaluate", 3

    def __init__(self, *args):
        self.seen = []

    def advance(self, fraction, commit):
        self.seen.append(HOST[0].stand())
        return Report()

    def test(self, step):
        self.seen.append(HOST[0].stand())
        return {}

    def examples(self):
        return []

    def close(self):
        pass


HOST = []


def test_a_host_says_where_its_rank_stands_and_that_it_is_idle_between_commands(monkeypatch):
    made = Looked()
    monkeypatch.setattr(worker, "import_factory", lambda path: lambda *args: made)
    HOST[:] = [SessionHost("fake:Session", None)]
    HOST[0].perform(start("t000"))
    assert HOST[0].stand() == Stand(None, "idle")
    HOST[0].perform(advance(0.5))
    HOST[0].perform({"op": "test", "step": 5})
    assert made.seen == [Stand(5, "evaluate", 3)] * 2
    assert HOST[0].step == 5


def test_a_rank_that_reads_data_while_it_starts_is_seen_to_get_on(monkeypatch):
    """Else it would count as hung: the data of one node may take hours to be tokenized, once."""
    stands = []

    def made(*args):
        for _ in range(2):
            block_done()
            stands.append(HOST[0].stand())
        return Looked()

    monkeypatch.setattr(worker, "import_factory", lambda path: made)
    HOST[:] = [SessionHost("fake:Session", None)]
    HOST[0].perform(start("t000"))
    assert [stand.phase for stand in stands] == ["start", "start"]
    assert stands[0].mark != stands[1].mark


def test_a_session_that_runs_and_any_that_follows_is_interrupted(sessions):
    host = SessionHost("fake:Session", None)
    host.leave()  # nothing runs yet
    host.perform(start("t000"))
    assert sessions[0].calls == [("interrupt",)]
    host = SessionHost("fake:Session", None)
    host.perform(start("t001"))
    assert sessions[1].calls == []
    host.leave()
    assert sessions[1].calls == [("interrupt",)]
