"""What runs in the processes that the kill bench kills: ranks that save without a pause, collections, clones.

Owns the loops and what they tell their killer. Imports torch and the store's client when it is preloaded into the fork server and
opens no store there: the client's threads do not survive a fork. Called through `server.py`.

A rank trains a made-up state (`state.py`) in torch tensors under a real gloo group, one barrier per step, and saves after
every step. Everything it does with the store passes through `WatchedStore`, which tells each request's begin and end through the
pipe, so that the killer knows which stage of a save it hits. What was told before the kill is in the pipe after it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any, Final

from tlcore.engine.process import prepare_process

prepare_process()

import obstore  # noqa: E402, F401 (loaded before the fork, used after it)
import torch  # noqa: E402 (the process must be settled first)
import torch.distributed as dist  # noqa: E402

from jobs.bench.kill import state as kill_state  # noqa: E402
from tlcore.checkpoint import (  # noqa: E402
    CheckpointReader,
    CheckpointWriter,
    Claim,
    Manifest,
    Piece,
    Retention,
    SaveReport,
    WriterSettings,
    claim_attempt,
    clone_checkpoint,
    gc,
    newest_intact,
    read_manifest,
)
from tlcore.checkpoint.settings import SnapshotKind  # noqa: E402
from tlcore.engine.state import Interval, to_piece  # noqa: E402
from tlcore.errors import CheckpointError, StaleWriter  # noqa: E402
from tlcore.storage import ObjectStore, open_store  # noqa: E402

GC_GRACE_S: Final = 2 * 3600.0
CLONES: Final = 12
STEP_S: Final = 0.005
"""Forward and backward, which take no state: without them `skip` drops hundreds of saves a second."""
_PR_SET_PDEATHSIG = 1
_WAIT_CHANCE = 0.1
_MOST_STEPS = 100_000

Tell = Callable[..., None]


@dataclass(frozen=True)
class Doom:
    """A rank's own death: `delay_s` after it has come to `stage` for the `nth` time. A killer that hears of a stage through a pipe
    is too late for those that last a millisecond. With `lag_s` that request first waits so long, as one that has to be repeated.
    With SIGSTOP it is cut off instead, until its killer lets it go on."""

    rank: int
    stage: str
    nth: int
    delay_s: float
    lag_s: float = 0.0
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Life:
    """One start of a trial's ranks. `goes_back`: continue from the checkpoint before the newest. `keep_last` 0: no retention.

    `rendezvous` is a file of gloo's, fresh in each life. `bears_failures`: failed saves are told and survived (store kills).
    """

    url: str
    trial: str
    number: int
    world_size: int
    snapshot: SnapshotKind
    keep_last: int
    rendezvous: str
    goes_back: bool = False
    bears_failures: bool = False
    doom: Doom | None = None


class WatchedStore:
    """A store that tells the begin and end of every request; in all else the one it wraps."""

    def __init__(self, inner: ObjectStore, tell: Tell) -> None:
        self._inner, self._tell = inner, tell

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def watched(*arguments: Any, **named: Any) -> Any:
            stage = stage_of(name, arguments[0] if arguments else "")
            self._tell("begin", stage)
            try:
                return found(*arguments, **named)
            finally:
                self._tell("end", stage)

        return watched


def stage_of(method: str, subject: Any) -> str:
    """The stage of a save that a request of the store belongs to; `subject` is its key, keys or prefix."""
    if method == "delete":
        return "delete"
    if not method.startswith("put"):
        return "look"
    key = str(subject)
    for part, stage in (("cas/", "put"), ("/MANIFEST.json", "commit"), ("/writers/", "claim"), ("/rank-", "index")):
        if part in key:
            return stage
    return "other"


def run_rank(life: Life, rank: int, wire: Connection) -> None:
    """Save step after step until killed, or until the group or the trial is lost."""
    tell = begin(wire)
    if life.doom is not None and life.doom.rank == rank:
        tell = doomed(tell, life.doom)
    try:
        _save_for_ever(life, rank, tell)
    except StaleWriter:
        tell("stale")
    except CheckpointError as error:
        tell("failed", 0, error.message.replace("\n", " "))
    except RuntimeError as error:
        tell("orphan", 0, str(error).partition("\n")[0])  # gloo: another rank is gone


def doomed(tell: Tell, doom: Doom) -> Tell:
    """`tell` of a process that ends as its doom says."""
    signs = {"snapshot": ("save", None), "hash": ("saved", None)}
    sign = signs.get(doom.stage, ("begin", doom.stage))
    left = itertools.count(doom.nth - 1, -1)

    def die() -> None:
        time.sleep(doom.lag_s + doom.delay_s)
        os.kill(os.getpid(), doom.signal)

    def tell_and_die(word: str, subject: str | int = 0, text: str = "") -> None:
        tell(word, subject, text)
        if sign in ((word, None), (word, subject)) and next(left) == 0:
            threading.Thread(target=die, daemon=True).start()
            time.sleep(doom.lag_s)

    return tell_and_die


def _save_for_ever(life: Life, rank: int, tell: Tell) -> None:
    store: Any = WatchedStore(open_store(life.url), tell)
    if life.world_size > 1:
        rendezvous = f"file://{life.rendezvous}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=life.world_size)
    claim, parent = _take_up(life, rank, store, tell)
    state = LiveState(life, rank)
    if parent is not None:
        tell("restored", parent.step, state.restore_fault(store, parent))
    settings = WriterSettings(snapshot=life.snapshot, chunk_bytes=kill_state.CHUNK_BYTES, connections=4)
    keep = Retention(store, life.trial, life.keep_last, 1, "score", "max") if rank == 0 and life.keep_last else None
    first = 1 + (parent.step if parent else 0)
    with CheckpointWriter(
        store, life.trial, rank, life.world_size, claim.attempt, settings, parent, claim=claim.text
    ) as writer:
        for step in range(first, first + _MOST_STEPS):
            time.sleep(STEP_S)
            writer.before_update()
            state.update(step)
            tell("save", step)
            writer.save(step, state.pieces, kill_state.common(life.trial, life.number, step) if rank == 0 else None)
            tell("saved", step)
            _note(life, keep, _ended(writer, life, step), claim.attempt, tell)


def _take_up(life: Life, rank: int, store: ObjectStore, tell: Tell) -> tuple[Claim, Manifest | None]:
    """Claim the trial and find the checkpoint to continue from, as rank 0 of a session does; the others are told."""
    claim, found = Claim(0, ""), None
    if rank == 0:
        claim = claim_attempt(store, life.trial)
        found = newest_intact(store, life.trial, chunks=False).manifest
        if found is not None and life.goes_back:
            found = newest_intact(store, life.trial, chunks=False, excluding=[found.step]).manifest or found
    agreed = torch.tensor([claim.attempt, found.step if found else 0])
    if life.world_size > 1:
        dist.broadcast(agreed, 0)
    attempt, step = agreed.tolist()
    tell("attempt", attempt)
    return Claim(attempt, claim.text), read_manifest(store, life.trial, step) if step else None


def _ended(writer: CheckpointWriter, life: Life, step: int) -> list[SaveReport]:
    """Saves that ended; at some steps, the same on all ranks, this one is waited for."""
    if not life.bears_failures and random.Random(f"{life.number}/{step}").random() < _WAIT_CHANCE:
        return writer.wait(step)
    return writer.poll()


def _note(life: Life, keep: Retention | None, reports: list[SaveReport], attempt: int, tell: Tell) -> None:
    """Acknowledge what was committed, and on rank 0 let retention follow, as training does."""
    for report in reports:
        if report.outcome == "failed" and not life.bears_failures:
            raise CheckpointError(report.error)
        tell(report.outcome, report.step, str(attempt) if report.committed else report.error.replace("\n", " "))
        if keep is not None and report.committed:
            keep.after_commit(report.step)


class LiveState:
    """This rank's share of the state in torch tensors, overwritten at every step as an optimizer does."""

    def __init__(self, life: Life, rank: int) -> None:
        self._life = life
        self._intervals = [
            Interval(row.parameter, row.state, row.start, torch.empty(row.end - row.start, dtype=_dtype(row.dtype)))
            for row in kill_state.rows_of(rank, life.world_size)
        ]
        self.pieces = [_host_piece(each) for each in self._intervals]
        for piece in self.pieces:
            piece.data[:] = kill_state.content(piece.row, life.trial, life.number, 0)

    def update(self, step: int) -> None:
        """The optimizer's step: every byte but the frozen ones changes. Raises RuntimeError when the group has lost a rank."""
        for piece in self.pieces:
            if not piece.immutable:
                piece.data[:] = kill_state.content(piece.row, self._life.trial, self._life.number, step)
        if self._life.world_size > 1:
            dist.barrier()

    def restore_fault(self, store: ObjectStore, parent: Manifest) -> str:
        """Read this rank's share of the parent, written at any world size; what is wrong with it, empty when nothing."""
        CheckpointReader(store, parent).read_into(self.pieces)
        life, trial = parent.scalars["life"], self._life.trial
        faults = [kill_state.wrong_bytes(each.row, each.data, trial, life, parent.step) for each in self.pieces]
        return next(filter(None, faults), "")


def _host_piece(interval: Interval) -> Piece:
    """As training makes it; of a tensor in host memory it is always a `Piece`, whose bytes can be written."""
    piece = to_piece(interval, immutable=interval.state == "frozen")
    assert isinstance(piece, Piece), f"{interval.parameter}/{interval.state} is not in host memory"
    return piece


def run_gc(url: str, wire: Connection) -> None:
    """Collect, with a clock set so far ahead that everything unnamed is old; no save may run beside it."""
    tell = begin(wire)
    store: Any = WatchedStore(open_store(url), tell)
    report = gc(store, now=datetime.now(UTC) + timedelta(seconds=2 * GC_GRACE_S), grace_s=GC_GRACE_S)
    tell("collected", report.deleted)


def run_clones(url: str, donor: str, step: int, prefix: str, wire: Connection) -> None:
    """Clone one checkpoint into `CLONES` trials, `<prefix>0`, `<prefix>1`, ..."""
    tell = begin(wire)
    store: Any = WatchedStore(open_store(url), tell)
    source = read_manifest(store, donor, step)
    for number in range(CLONES):
        clone_checkpoint(store, source, f"{prefix}{number}")
        tell("committed", number)


def begin(wire: Connection) -> Tell:
    """Die when the fork server does, leave Ctrl-C to the killer, and give the way to tell it things."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = wire.fileno()

    def tell(word: str, subject: str | int = 0, text: str = "") -> None:
        # One short write: lines of several threads do not mix, and a killed process leaves no half line.
        os.write(descriptor, f"{word}\t{subject}\t{text[:300]}\n".encode())

    return tell


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found
