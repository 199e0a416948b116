"""What runs in every rank of a slot's worker group: fetch a command, drive the trial's session, answer.

Owns the commands (`start`, `advance`, `test`, `close`, `measure`) and how a rank's error travels; not the training, which a session
class does (`tlcore.train.TrialSession`, or another class of the same shape named by its import path). A rank outlives its trials:
what is imported and connected stays, the session is made anew for each. After an error the rank keeps fetching, since whether
the group can go on is for the slot to say. Started by Ray Train (`group.py`), which has set up the torch process group.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import PurePath
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from tlcore.data import blocks_done
from tlcore.engine.exhausted import as_out_of_memory
from tlcore.engine.process import prepare_process
from tlcore.engine.resident import measure
from tlcore.errors import OutOfMemory, TlcoreError
from tlcore.recipe import apply_point, recipe_from_dict
from tlcore.sweep.slots.board import ProgressFeed
from tlcore.sweep.slots.breakage import breakage
from tlcore.sweep.slots.kernel import oom_kills
from tlcore.sweep.slots.mailbox import LEAVE, RankFailure, RankInfo, Stand
from tlcore.sweep.slots.stand import Lookout

HEARTBEAT_S = 2.0
IDLE = "idle"
POLL_S = 20.0


class Session(Protocol):
    """One trial on one rank; every call is made on all ranks.

    Where it has them, `step`, `phase` (a word) and `ticks` (a count that grows while it gets on within a step) are read by the
    heartbeat's thread: they tell a slow rank from one that hangs.
    """

    def advance(self, fraction: float, commit: bool = False) -> Any:
        """Train to a fraction of the trial's own epochs, evaluate, begin to save, and with `commit` wait until that is
        committed or has failed; a report with `to_dict()`. One that was interrupted says so, and what it has is committed."""

    def interrupt(self) -> None:
        """Have `advance`, under way or next, stop at its next step; called on one rank, from another thread."""

    def test(self, step: int) -> dict[str, float]:
        """Metrics on the test examples, of the checkpoint at `step`, from which the session was started."""

    def examples(self) -> list[dict[str, Any]]:
        """A few test examples with the model's answers, as JSON has them. This and `test` are asked of the product's own session
        alone (`sweep/examination.py`)."""

    def close(self) -> None:
        """Give everything back."""


SessionFactory = Callable[..., Session]


def import_factory(path: str) -> SessionFactory:
    """The session class at `package.module:name`."""
    module, _, name = path.partition(":")
    factory: SessionFactory = getattr(importlib.import_module(module), name)
    return factory


class SessionHost:
    """Performs commands on one rank. Holds at most one session.

    Args:
        session: import path of what makes a session from (recipe, run_url, trial, on_progress, resume_step, inherits).
            Imported with the first trial, so that a failing import is an error of that command, with its rank and traceback.
        feed: takes the rank's progress on its way to the board; None on ranks that do not report.
    """

    def __init__(self, session: str, feed: Callable[[str], Callable[[Any], None]] | None) -> None:
        self._path = session
        self._feed = feed
        self._session: Session | None = None
        self._op = IDLE
        self._leaving = False

    def stand(self) -> Stand:
        """Where this rank is now; for any thread."""
        session, op = self._session, self._op
        if session is None or op not in {"advance", "test"}:
            # in `start` data are read and tokenized, which for large ones takes hours once on a node
            return Stand(None, op, blocks_done() if op == "start" else 0)
        return Stand(getattr(session, "step", None), getattr(session, "phase", op), getattr(session, "ticks", 0))

    def perform(self, command: dict[str, Any]) -> Any:
        """Do one command and return its plain answer."""
        self._op = command["op"]
        try:
            return self._perform(command)
        finally:
            self._op = IDLE

    def _perform(self, command: dict[str, Any]) -> Any:
        op = command["op"]
        if op == "start":
            return self._start(command)
        if op == "close":
            return self.close()
        if op == "measure":
            self.close()
            return asdict(measure())
        if self._session is None:
            raise RuntimeError(f"command {op!r} without a started trial")
        if op == "advance":
            return self._session.advance(command["fraction"], command["commit"]).to_dict()
        if op == "test":
            metrics = self._session.test(command["step"])
            return {"metrics": metrics, "examples": self._session.examples()}
        raise ValueError(f"unknown command {op!r}")

    def _start(self, command: dict[str, Any]) -> None:
        self.close()
        recipe = apply_point(recipe_from_dict(command["recipe"]), command["point"])
        trial = command["trial"]
        on_progress = self._feed(trial) if self._feed is not None else None
        self._session = import_factory(self._path)(
            recipe, command["run_url"], trial, on_progress, command["resume_step"], command["inherits"]
        )
        if self._leaving:
            self._session.interrupt()

    def leave(self) -> None:
        """Have the session, and any that follows, stop at its next step; called from another thread."""
        self._leaving = True
        session = self._session
        if session is not None:
            session.interrupt()

    def close(self) -> None:
        """End the session, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def step(self) -> int | None:
        """The session's step, where there is a session that has one."""
        return getattr(self._session, "step", None)

    def drop(self) -> None:
        """Forget the session after an error: closing it might wait for ranks that hang."""
        self._session = None


def describe_failure(rank: int, error: BaseException, step: int | None = None) -> RankFailure:
    """A rank's error in a form that any process can read; errors of ours travel as themselves, and whatever says that memory ran
    out travels as OutOfMemory. A broken device or link is named as such also where ours was raised from it."""
    text = "".join(traceback.format_exception(error))
    own = error if isinstance(error, TlcoreError) else as_out_of_memory(error, rank, step)
    message = own.message if own is not None else str(error)
    broken = None if isinstance(own, OutOfMemory) else breakage(error)
    return RankFailure(rank, type(error).__name__, message, text, own, broken, _innermost(error), step)


def _innermost(error: BaseException) -> str:
    """`my_model.py:12 forward`: where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else ""


class Link:
    """One rank's end of the mailbox: joins, beats in the background, fetches, answers."""

    def __init__(self, mailbox: Any, rank: int, world_size: int) -> None:
        context, place = ray.get_runtime_context(), ray.util.get_current_placement_group()
        self._mailbox, self._group, self.rank = mailbox, place.id.hex(), rank
        self._info = RankInfo(
            rank,
            world_size,
            ray.util.get_node_ip_address(),
            os.getpid(),
            context.current_actor,
            place,
            context.get_node_id(),
            oom_kills(),
        )
        self._over = threading.Event()
        self._lookout: Lookout | None = None

    def join(self, stand: Callable[[], Stand]) -> bool:
        """Introduce this rank and start the heartbeat, which tells where the calling thread stands. False: the group is void,
        leave."""
        if not ray.get(self._mailbox.join.remote(self._group, self._info)):
            return False
        self._lookout = Lookout(stand, threading.get_ident(), time.monotonic)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return True

    def fetch(self, number: int) -> dict[str, Any]:
        """Command `number`, waiting for it as long as it takes."""
        while True:
            command: dict[str, Any] | None = ray.get(self._mailbox.next_command.remote(self._group, number, POLL_S))
            if command is not None:
                return command

    def answer(self, number: int, value: Any) -> None:
        """Hand in the result of a command."""
        ray.get(self._mailbox.answer.remote(self._group, self.rank, number, value))

    def fail(self, number: int, failure: RankFailure) -> None:
        """Hand in the error that a command ended with."""
        ray.get(self._mailbox.fail.remote(self._group, number, failure))

    def watch(self, leave: Callable[[], None]) -> None:
        """Call `leave`, in a thread of its own, as soon as the sweep is being stopped."""
        threading.Thread(target=self._await_leaving, args=(leave,), name="leaving", daemon=True).start()

    def _await_leaving(self, leave: Callable[[], None]) -> None:
        with suppress(RayError):  # the mailbox is gone: so are the commands
            while not self._over.is_set():
                if ray.get(self._mailbox.wait_leaving.remote(POLL_S)):
                    leave()
                    return

    def close(self) -> None:
        """Stop the heartbeat."""
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._mailbox.beat.remote(self._group, self.rank, self._lookout.look() if self._lookout else None)


def serve(link: Link, host: SessionHost) -> None:
    """Perform commands in order until told to leave."""
    number = 0
    while (command := link.fetch(number))["op"] != LEAVE:
        try:
            value = host.perform(command)
        except Exception as error:  # noqa: BLE001 (the rank's edge: whatever went wrong is the slot's to judge)
            failure = describe_failure(link.rank, error, host.step)
            print(failure.traceback, file=sys.stderr, flush=True)  # noqa: T201 (to the worker's own log file)
            host.drop()
            link.fail(number, failure)
        else:
            link.answer(number, value if link.rank == 0 or command["op"] == "measure" else None)
        number += 1
    host.close()


def worker_loop(config: dict[str, Any]) -> None:
    """Ray Train's `train_loop_per_worker`. `config`: mailbox (actor), session (import path), board (name or None)."""
    import ray.train

    prepare_process(int(os.environ["OMP_NUM_THREADS"]))
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    link = Link(config["mailbox"], rank, world_size)
    feed = ProgressFeed(config["board"], time.monotonic) if rank == 0 and config["board"] else None
    host = SessionHost(config["session"], feed.for_trial if feed else None)
    if not link.join(host.stand):
        return
    if rank == 0:
        link.watch(host.leave)
    try:
        serve(link, host)
    finally:
        link.close()
