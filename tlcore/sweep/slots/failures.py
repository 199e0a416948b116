"""What a failure is, and what it costs: pure decisions over what was seen.

Owns the kinds of losses and the budget of each, which of several ranks' errors is the cause of the others, when ranks count as hung
and which of them is behind, which node is avoided, and when an error that every trial would meet ends the whole sweep. Starts
nothing and asks nobody; clocks and counts are arguments. `group.py` sees losses, `slot.py` spends the budgets, `board.py` holds the
record of nodes, `recorder.py` asks about the sweep.

Budgets are of one trial and by kind, so that a node that comes and goes does not eat what is meant for a hung collective. What a
trial has lost is in the journal (`lost`), so a resumed sweep has the rest of its budgets and not new ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tlcore.errors import (
    BucketMissing,
    DataError,
    ModelError,
    SlotFailed,
    StorageDenied,
    SweepError,
    TlcoreError,
    TrainError,
    TrialHung,
    WorkerLost,
)
from tlcore.sweep.slots.mailbox import RankFailure, RankInfo, Stand

if TYPE_CHECKING:  # the board loads this module, and needs no recipe
    from tlcore.recipe import Recipe

LossKind = Literal["worker", "node", "hang", "storage"]

PATIENCE: Final[Mapping[str, float]] = {
    "start": 6.0,
    "first step": 3.0,
    "save": 3.0,
    "close": 3.0,
    "test data": 6.0,
    "examples": 3.0,
}
"""Phases in which nothing is counted that moves (reading data and a model, compiling, waiting for a store), and how many times as
long they may take."""
GAP_FACTOR: Final = 3.0
AVOID_AFTER: Final = 3
AVOID_FACTOR: Final = 3.0
SAME_ERRORS: Final = 2
SAME_EXCEPTIONS: Final = 3


class StartFailed(SlotFailed):
    """A worker group ended as it was started, or started again; the next one may not."""


@dataclass(frozen=True)
class Budget:
    """How often one kind of loss may befall a trial: the setting that says so, and words for the message."""

    setting: str
    happened: str
    hint: str


BUDGETS: Final[dict[LossKind, Budget]] = {
    "worker": Budget(
        "max_lost_workers",
        "lost workers",
        "see the node's memory and system log; raise failures.max_lost_workers where processes come and go",
    ),
    "node": Budget(
        "max_lost_nodes",
        "lost nodes",
        "see `ray status`; raise failures.max_lost_nodes where nodes are taken back often",
    ),
    "hang": Budget(
        "max_hangs",
        "hung",
        "the stack says where the rank stands; raise failures.hang_minutes if it was only slow",
    ),
    "storage": Budget(
        "max_storage", "met storage trouble", "see that the store answers; raise failures.max_storage to wait longer"
    ),
}


def overspent(recipe: Recipe, lost: Mapping[str, int], kind: LossKind) -> bool:
    """Whether losses of this kind, the present one counted, are more than the recipe allows."""
    most: int = getattr(recipe.failures, BUDGETS[kind].setting)
    return lost.get(kind, 0) > most


def exhausted(
    recipe: Recipe, trial: str, kind: LossKind, count: int, cause: str, rank: int | None, step: int | None
) -> TlcoreError:
    """The error that ends a trial whose budget is spent."""
    budget = BUDGETS[kind]
    most = getattr(recipe.failures, budget.setting)
    errors: dict[LossKind, type[TlcoreError]] = {"hang": TrialHung, "storage": SweepError}
    return errors.get(kind, WorkerLost)(
        f"trial {trial} {budget.happened} {count} times, more than failures.{budget.setting}={most}; the last time: {cause}",
        hint=budget.hint,
        trial=trial,
        rank=rank,
        step=step,
    )


# Errors of ranks.


def first_cause(failures: Sequence[RankFailure]) -> RankFailure:
    """The failure that the others follow from: an error of ours, else a broken device, else any other error. That ranks lost touch
    with each other is what every failure looks like from the other ranks, and so the cause only where there is nothing else."""

    def order(failure: RankFailure) -> int:
        if failure.broken == "link":
            return 3
        return 1 if failure.broken == "device" else 0 if failure.error is not None else 2

    return min(failures, key=order)


def as_error(failure: RankFailure) -> TlcoreError:
    """A rank's error as an exception that names the rank; the class, and so the exit code, is the rank's own."""
    own = failure.error
    if isinstance(own, TlcoreError):
        own.fields.setdefault("rank", failure.rank)
        own.fields.setdefault("traceback", failure.traceback)
        return own
    where = f" ({failure.where})" if failure.where else ""
    return TrainError(
        f"rank {failure.rank}: {failure.kind}: {failure.message}{where}",
        hint="the traceback is in the worker's log",
        rank=failure.rank,
        step=failure.step,
        traceback=failure.traceback,
    )


# Hangs.


def hang_limit_s(stands: Iterable[Stand], hang_s: float, longest_gap_s: float) -> float:
    """Seconds without a move of any rank after which they count as hung.

    Longer while a rank is in a phase in which nothing moves that could be counted, and never less than three times the longest
    pause between two steps (or two batches of an evaluation) that these ranks have shown.
    """
    patience = max((PATIENCE.get(stand.phase, 1.0) for stand in stands), default=1.0)
    return max(hang_s * patience, GAP_FACTOR * longest_gap_s)


@dataclass(frozen=True)
class Behind:
    """The rank that the others wait for, as far as can be told, and a sentence about it."""

    rank: int | None
    cause: str


def who_is_behind(
    ranks: Sequence[RankInfo], stands: Mapping[int, Stand], silent: Iterable[int], still_s: float
) -> Behind:
    """Name the rank behind: one that does not answer, else one that waits in no collective, else the one with the least done.

    Ranks in the same step are told apart by their stacks: whoever waits inside torch.distributed is not the cause.
    """
    dumb = set(silent)
    infos = {info.rank: info for info in ranks}

    def order(rank: int) -> tuple[bool, bool, int, int]:
        stand = stands.get(rank, Stand())
        return rank not in dumb, stand.waits, -1 if stand.step is None else stand.step, stand.ticks

    first = min(infos, key=order)
    if len(infos) > 1 and all(stands.get(rank, Stand()).waits for rank in infos) and len(set(map(order, infos))) == 1:
        places = "; ".join(_stands(infos[rank], stands, dumb) for rank in infos)
        return Behind(None, f"nothing moved for {still_s:.0f} s, and every rank waits for the others: {places}")
    cause = f"nothing moved for {still_s:.0f} s: {_stands(infos[first], stands, dumb)}"
    others = [rank for rank in infos if rank != first]
    return Behind(first, f"{cause}; {_others(others, stands, dumb)}" if others else cause)


def _stands(info: RankInfo, stands: Mapping[int, Stand], dumb: set[int]) -> str:
    stand = stands.get(info.rank, Stand())
    name = f"rank {info.rank} (pid {info.pid} on {info.node})"
    if info.rank in dumb:
        return f"{name} does not answer, last seen {stand.place}"
    where = f", in {stand.stack}" if stand.stack else ""
    return f"{name} is {stand.place}{where}"


def _others(ranks: Sequence[int], stands: Mapping[int, Stand], dumb: set[int]) -> str:
    told = []
    for rank in ranks:
        stand = stands.get(rank, Stand())
        how = "does not answer" if rank in dumb else "waits in a collective" if stand.waits else "is"
        told.append(f"rank {rank} {how} {stand.place}")
    return ", ".join(told)


# Nodes.


class NodeRecord:
    """Losses by node, over all trials of a sweep; says when one node fails so much more often than others that it is avoided.

    A node is avoided after `AVOID_AFTER` losses of workers that it did not share with the others: as many as `AVOID_FACTOR` times
    what the other nodes had on average. Whether the sweep can do without it is asked when workers are placed.
    """

    def __init__(self) -> None:
        self._losses: dict[str, list[str]] = {}
        self._avoided: dict[str, None] = {}

    @property
    def avoided(self) -> list[str]:
        """Ids of nodes that get no more workers, in the order in which that was decided."""
        return list(self._avoided)

    def note(self, trial: str, node: str | None, nodes: Iterable[str]) -> dict[str, Any] | None:
        """Count a loss on `node`, one of the live `nodes`. Returns the facts when it is avoided from now on."""
        if node is None or node in self._avoided:
            return None
        losses = self._losses.setdefault(node, [])
        losses.append(trial)
        others = [len(self._losses.get(each, ())) for each in nodes if each != node and each not in self._avoided]
        if not others or len(losses) < max(AVOID_AFTER, AVOID_FACTOR * sum(others) / len(others)):
            return None
        self._avoided[node] = None
        return {"node": node, "losses": len(losses), "trials": sorted(set(losses))}


# Errors of the request.

_CONCERNS: Final[dict[type[TlcoreError], tuple[str, ...]]] = {
    DataError: ("task", "data."),
    ModelError: ("task", "model.", "transfer."),
    StorageDenied: (),
    BucketMissing: (),
}
"""Errors whose cause lies in these settings alone."""
_NUMBERS: Final = re.compile(r"\bt\d{3,}\b|rank \d+")
_NAMES: Final = re.compile(r"\b[0-9a-f-]{8,}|\d+")
"""Of actors, processes, ports and nodes, in what Ray says of ranks that did not start; sizes and lines, in other people's words."""


class Failed(NamedTuple):
    """A trial that failed: its point, the error's class and message, and the trial's step then, where that is known."""

    point: Mapping[str, Any]
    error: str
    message: str
    step: int | None = None


def is_hopeless(
    error: TlcoreError,
    point: Mapping[str, Any],
    earlier: Sequence[Failed],
    furthest: int = 0,
    elsewhere: bool = False,
) -> bool:
    """Whether every trial would fail as this one did, none having reported yet.

    An error of the request: at once where no setting that the search varies can have caused it; else once `SAME_ERRORS` trials with
    different points ended with the same words. That workers could not be started counts as well, no trial of theirs having been
    begun, once there is no node left to try.

    An exception that is not ours (the model's own code, say): once `SAME_EXCEPTIONS` trials with different points ended with the
    same class, words and innermost function, numbers aside, and no trial, also of those that still run, has got further than these.

    Args:
        error: what ended the trial.
        point: the trial's.
        earlier: trials that failed before.
        furthest: the newest step that any trial was seen at.
        elsewhere: whether trials could be placed on nodes on which none has failed to start.
    """
    if type(error) is TrainError:
        same = [each for each in earlier if _says_the_same(each, error, _NAMES) and each.point != point]
        steps = [error.fields.get("step") or 0, *(each.step or 0 for each in same)]
        return len(same) + 1 >= SAME_EXCEPTIONS and furthest <= max(steps)
    if error.exit_code != 2 and not isinstance(error, SlotFailed):
        return False
    if isinstance(error, SlotFailed) and elsewhere:
        return False
    concerns = next((keys for kind, keys in _CONCERNS.items() if isinstance(error, kind)), None)
    if concerns is not None and not any(key.startswith(concerns) for key in point if concerns):
        return True
    changing = _NAMES if isinstance(error, SlotFailed) else _NUMBERS
    same = [each for each in earlier if _says_the_same(each, error, changing) and each.point != point]
    return len(same) + 1 >= SAME_ERRORS


def _says_the_same(earlier: Failed, error: TlcoreError, changing: re.Pattern[str]) -> bool:
    said = type(error).__name__, changing.sub("", error.message)
    return said == (earlier.error, changing.sub("", earlier.message))
