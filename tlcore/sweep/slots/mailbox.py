"""Between a slot and its ranks: one small actor that holds the commands, the answers and the signs of life.

Owns the rules of a worker group's generations. A generation is one set of ranks, known by its placement group; when ranks of
another placement group join, the earlier generation is void: its commands are never handed out again, its answers are dropped,
and its ranks are told to leave. Every rank fetches its own copy of each command by a long poll, so control needs no collective
and a rank that hangs in one holds up nobody's commands.

Knows neither Ray Train nor what a command does. The bookkeeping is `Ledger`, plain and clocked from outside; `Mailbox` wraps
it as an async actor. Called by `group.py` (the slot's side) and `worker.py` (the ranks' side).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from tlcore.sweep.slots.beside import beside_caller
from tlcore.sweep.slots.breakage import Breakage

Verdict = Literal["waiting", "answered", "failed", "lost", "cancelled"]
LEAVE = "leave"


@dataclass(frozen=True)
class RankInfo:
    """One rank as it introduced itself: `node` an address, `node_id` Ray's own name of it, `actor` to probe or kill, `place` its
    group's placement group, `oom_kills` the kernel's count on its node (`kernel.py`)."""

    rank: int
    world_size: int
    node: str
    pid: int
    actor: Any = None
    place: Any = None
    node_id: str | None = None
    oom_kills: int | None = None


@dataclass(frozen=True)
class Stand:
    """Where a rank stands in its command: what its heartbeat carries.

    `step` and `ticks` grow while it gets on; the last two are there once it has not moved for some seconds: whether its innermost
    frame waits for other ranks, and its stack, innermost frame last.
    """

    step: int | None = None
    phase: str = "idle"
    ticks: int = 0
    waits: bool = False
    stack: str = ""

    @property
    def mark(self) -> tuple[int | None, str, int]:
        """What changes when the rank moves."""
        return self.step, self.phase, self.ticks

    @property
    def place(self) -> str:
        """`at step 12 (evaluate)`."""
        return f"at step {self.step} ({self.phase})" if self.step is not None else f"in {self.phase}"


@dataclass(frozen=True)
class RankFailure:
    """An error on one rank. `error` is the exception itself when it is one of ours, else None; `broken` says that a device or the
    way to other ranks is to blame, `where` is the innermost frame, `step` the session's."""

    rank: int
    kind: str
    message: str
    traceback: str
    error: Exception | None = None
    broken: Breakage | None = None
    where: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Status:
    """What the slot sees of one command: `verdict`, and what goes with it."""

    verdict: Verdict
    generation: int
    answers: dict[int, Any] = field(default_factory=dict)
    failures: tuple[RankFailure, ...] = ()
    silent_s: dict[int, float] = field(default_factory=dict)
    stands: dict[int, Stand] = field(default_factory=dict)
    still_s: float = 0.0
    longest_gap_s: float = 0.0


class Movement:
    """Where the ranks of one generation stand, since when none of them has moved, and their longest pause so far."""

    def __init__(self, now_s: float) -> None:
        self.stands: dict[int, Stand] = {}
        self.longest_gap_s = 0.0
        self._moved_s = now_s

    def rest(self, now_s: float) -> None:
        """Something new was asked: what was before it is no pause."""
        self._moved_s = now_s

    def note(self, rank: int, stand: Stand, now_s: float) -> None:
        """Take where a rank stands."""
        before = self.stands.get(rank, Stand())
        self.stands[rank] = stand
        if before.mark == stand.mark:
            return
        if before.phase == stand.phase:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self._moved_s)
        self._moved_s = now_s

    def still_s(self, now_s: float) -> float:
        """Seconds since any rank moved."""
        return now_s - self._moved_s


class Ledger:
    """Who is there, what was asked, who answered. `clock` is monotonic, seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._group = ""
        self._void: set[str] = set()
        self._ranks: dict[int, RankInfo] = {}
        self._heard: dict[int, float] = {}
        self._commands: list[dict[str, Any]] = []
        self._answers: dict[int, dict[int, Any]] = {}
        self._failures: dict[int, list[RankFailure]] = {}
        self._movement = Movement(clock())
        self.generation = 0
        self.start_failures = 0
        self.start_error = ""
        self.start_nodes: list[str] = []
        """Where the workers are that are being started; once that failed, the nodes that it may be due to."""
        self.placed = False
        """Whether the workers that are being started, or run, have their room."""
        self.closed = False
        self.leaving = False
        self.cancelled = False

    @property
    def stopping(self) -> bool:
        """Whether the sweep is being stopped, with time for a last step or without."""
        return self.leaving or self.cancelled

    def join(self, group: str, info: RankInfo) -> bool:
        """Take in a rank; the first one of another group begins a new generation. False: its group is already void."""
        if group in self._void or self.closed:
            return False
        if group != self._group:
            self._begin(group)
        self._ranks[info.rank] = info
        self._heard[info.rank] = self._clock()
        if self.complete():
            self.start_failures, self.start_error = 0, ""
        return True

    def start_failed(self, error: str, nodes: list[str]) -> None:
        """Note why the ranks have to be started again (they died, or could not be started), and which nodes that may be due to."""
        self.start_failures, self.start_error, self.start_nodes = self.start_failures + 1, error, nodes

    def _begin(self, group: str) -> None:
        if self._group:
            self._void.add(self._group)
        self._group = group
        self.generation += 1
        self._ranks, self._heard, self._commands, self._answers, self._failures = {}, {}, [], {}, {}
        self._movement = Movement(self._clock())

    def complete(self) -> bool:
        """Whether every rank of the present generation has joined."""
        return bool(self._ranks) and len(self._ranks) == next(iter(self._ranks.values())).world_size

    def ranks(self) -> list[RankInfo]:
        """The present generation's ranks, by rank."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    def beat(self, group: str, rank: int, stand: Stand | None = None) -> None:
        """Note a sign of life, and where the rank stands."""
        if group == self._group and rank in self._ranks:
            self._heard[rank] = self._clock()
            if stand is not None:
                self._movement.note(rank, stand, self._heard[rank])

    def post(self, generation: int, command: dict[str, Any]) -> int | None:
        """Queue a command for every rank of a generation. Returns its number, or None when the generation is void."""
        if generation != self.generation or self.closed:
            return None
        self._commands.append(command)
        self._movement.rest(self._clock())
        return len(self._commands) - 1

    def command(self, group: str, number: int) -> dict[str, Any] | None:
        """Command `number` for a rank of `group`: itself, the order to leave, or None while there is none."""
        if self.closed or group != self._group:
            return {"op": LEAVE}
        return self._commands[number] if number < len(self._commands) else None

    def answer(self, group: str, rank: int, number: int, value: Any) -> None:
        """Take a rank's result; one of a void generation is dropped."""
        if group == self._group:
            self._heard[rank] = self._clock()
            self._answers.setdefault(number, {})[rank] = value

    def fail(self, group: str, number: int, failure: RankFailure) -> None:
        """Take a rank's error; one of a void generation is dropped."""
        if group == self._group:
            self._heard[failure.rank] = self._clock()
            self._failures.setdefault(number, []).append(failure)

    def status(self, generation: int, number: int) -> Status:
        """Where a command stands. A failure counts before all have answered: the others may hang in a collective."""
        failures = tuple(self._failures.get(number, ()))
        answers = self._answers.get(number, {})
        verdict: Verdict = "waiting"
        if self.cancelled:
            verdict = "cancelled"
        elif generation != self.generation:
            verdict = "lost"
        elif failures:
            verdict = "failed"
        elif len(answers) == len(self._ranks):
            verdict = "answered"
        now = self._clock()
        silent = {rank: now - heard for rank, heard in self._heard.items()}
        moves = self._movement
        return Status(
            verdict,
            self.generation,
            dict(answers),
            failures,
            silent,
            dict(moves.stands),
            moves.still_s(now),
            moves.longest_gap_s,
        )


class Mailbox:
    """The ledger as an async actor: polls wait inside it, so a waiting rank costs nothing."""

    def __init__(self) -> None:
        self._ledger = Ledger(time.monotonic)
        self._changed = asyncio.Condition()

    async def join(self, group: str, info: RankInfo) -> bool:
        return bool(await self._change(lambda: self._ledger.join(group, info)))

    async def start_failed(self, error: str, nodes: list[str]) -> None:
        self._ledger.start_failed(error, nodes)

    async def start_failures(self) -> tuple[int, str, list[str]]:
        """How often the ranks were started in vain since all of them were last there, why the last time, and on which nodes."""
        return self._ledger.start_failures, self._ledger.start_error, self._ledger.start_nodes

    async def set_placed(self, placed: bool, nodes: list[str] | None = None) -> None:
        self._ledger.placed = placed
        if nodes is not None:
            self._ledger.start_nodes = nodes

    async def is_placed(self) -> bool:
        return self._ledger.placed

    async def beat(self, group: str, rank: int, stand: Stand | None = None) -> None:
        self._ledger.beat(group, rank, stand)

    async def post(self, generation: int, command: dict[str, Any]) -> int | None:
        number: int | None = await self._change(lambda: self._ledger.post(generation, command))
        return number

    async def answer(self, group: str, rank: int, number: int, value: Any) -> None:
        await self._change(lambda: self._ledger.answer(group, rank, number, value))

    async def fail(self, group: str, number: int, failure: RankFailure) -> None:
        await self._change(lambda: self._ledger.fail(group, number, failure))

    async def next_command(self, group: str, number: int, wait_s: float) -> dict[str, Any] | None:
        """Long poll of a rank: the command, the order to leave, or None after `wait_s`."""
        await self._until(lambda: self._ledger.command(group, number) is not None, wait_s)
        return self._ledger.command(group, number)

    async def wait_complete(self, after: int, wait_s: float) -> tuple[int, list[RankInfo]] | None:
        """Long poll of the slot: the first complete generation later than `after`, and its ranks; None after `wait_s`."""
        ready = await self._until(
            lambda: self._ledger.stopping or (self._ledger.generation > after and self._ledger.complete()), wait_s
        )
        return (self._ledger.generation, self._ledger.ranks()) if ready and not self._ledger.stopping else None

    async def wait(self, generation: int, number: int, wait_s: float) -> Status:
        """Long poll of the slot: where a command stands, as soon as that is news, at the latest after `wait_s`."""
        await self._until(lambda: self._ledger.status(generation, number).verdict != "waiting", wait_s)
        return self._ledger.status(generation, number)

    async def close(self) -> None:
        """Send every rank away, also those that join later."""
        await self._change(lambda: setattr(self._ledger, "closed", True))

    async def is_closed(self) -> bool:
        return self._ledger.closed

    async def leave(self) -> None:
        """Have the ranks stop at their next step: the sweep is being stopped. Ranks that have not joined yet are not waited for."""
        await self._change(lambda: setattr(self._ledger, "leaving", True))

    async def wait_leaving(self, wait_s: float) -> bool:
        """Long poll of a rank: whether it is to stop at its next step, or its group is closed; False after `wait_s`."""
        return await self._until(lambda: self._ledger.stopping or self._ledger.closed, wait_s)

    async def is_stopping(self) -> bool:
        return self._ledger.stopping

    async def cancel(self) -> None:
        """Wake the slot from whatever it waits for: the sweep is being stopped."""
        await self._change(lambda: setattr(self._ledger, "cancelled", True))

    async def is_cancelled(self) -> bool:
        return self._ledger.cancelled

    async def _change(self, act: Callable[[], Any]) -> Any:
        async with self._changed:
            value = act()
            self._changed.notify_all()
        return value

    async def _until(self, holds: Callable[[], bool], wait_s: float) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(holds), wait_s)
            except TimeoutError:
                return False
        return True


def open_mailbox() -> Any:
    """Start a mailbox beside the caller. It takes no CPU, and dies with the caller."""
    where = beside_caller()
    return ray.remote(Mailbox).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=where).remote()
