"""What one trial may still lose, and what it runs with since memory ran out.

Owns the spending of a trial's budgets and its milder settings; the order of those is `recipe/milder.py`'s, the kinds and limits
are `failures.py`'s. Each loss and each adaptation is told before the trial goes on, or is ended by the error that this raises.
Held by `slot.py`, one for each trial, and by `examination.py`; starts nothing.

A searcher is not told of adaptations: the global batch stays, so that the metric, which alone it searches by, is that of the point.
What they cost is time. A trial for which they do not suffice fails, and that it is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tlcore.errors import (
    OutOfMemory,
    RecipeError,
    RequestError,
    StorageThrottled,
    StorageUnreachable,
    WorkerLost,
)
from tlcore.recipe import Point, Recipe, plan_batch
from tlcore.recipe.milder import milder, with_settings
from tlcore.recipe.space import flat
from tlcore.sweep.slots.failures import LossKind, StartFailed, exhausted, overspent
from tlcore.sweep.slots.group import GroupLost

LONGEST_PAUSE_S: Final = 20.0
MICRO_BATCH: Final = "train.micro_batch_size"
MENDABLE: Final = (GroupLost, StartFailed, OutOfMemory, RequestError, StorageUnreachable, StorageThrottled)
"""What a command may raise that need not be the end."""


class Tell(Protocol):
    """Where losses and adaptations are told; durable enough to find its way into the journal when this returns."""

    def __call__(self, kind: str, **facts: Any) -> None:
        """Take one entry of the journal: its kind and facts."""


def pause_s(times: int) -> float:
    """Seconds to wait before a store is asked, or workers are started, again for the `times`-th time."""
    return min(LONGEST_PAUSE_S, 2.0**times)


@dataclass(frozen=True)
class Again:
    """How a lost command is repeated, after its trial was started again: in another worker group if `anew`, after a pause."""

    anew: bool = False
    pause_s: float = 0.0


class Recovery:
    """One trial's.

    Args:
        recipe: with the trial's point applied.
        lost: losses so far by kind, as the journal has them.
        adapted: settings that the trial was given before, besides its point; what does not go with the point any more (it took over
            a point of another batch size) is left out.
        tell: called before the trial goes on.

    `recipe` and `adapted` are what the trial runs with now.
    """

    def __init__(
        self, trial: str, recipe: Recipe, lost: Mapping[str, int], adapted: Mapping[str, Any], tell: Tell
    ) -> None:
        self._trial, self._tell = trial, tell
        self._lost = dict(lost)
        self._plain = recipe
        self._proven: Point = {}
        self._untried: Point = {}
        self._refused: set[str] = set()
        self._error: OutOfMemory | None = None
        self._queued = False
        self._not_started: set[str] = set()
        self.adapted = _that_stand(recipe, adapted)
        self.recipe = with_settings(recipe, self.adapted)

    def mend(self, error: Exception, step: int | None) -> Again:
        """What is to be done about one of `MENDABLE`; `recipe` and `adapted` may be others then. The trial is to go on from `step`.
        Raises what ends it where it is not to go on."""
        if isinstance(error, GroupLost):
            self.lost(error.loss, error.cause, error.rank, step, error.nodes)
            return Again()
        if isinstance(error, StartFailed):  # what took the port or the memory may be gone after a pause
            return Again(anew=True, pause_s=pause_s(self.not_started(error, step)))
        if isinstance(error, OutOfMemory):  # the other ranks wait in a collective for the one that ran out
            self.adapt(error, step)
        elif isinstance(error, RequestError):
            self.take_back(error, step)
        elif isinstance(error, StorageUnreachable | StorageThrottled):
            times = self.lost("storage", error.message, error.fields.get("rank"), step)
            return Again(anew=True, pause_s=pause_s(times))
        return Again(anew=True)

    def room(self, waits: bool) -> None:
        """Tell when the workers begin to wait for room, and when they have it: the time between costs nothing."""
        if waits != self._queued:
            self._queued = waits
            self._tell("queued" if waits else "placed")

    def lost(self, kind: LossKind, cause: str, rank: int | None, step: int | None, nodes: Sequence[str] = ()) -> int:
        """Count a loss, for which one of `nodes` is to blame, if any; the trial is to go on from `step`. Returns how many of this
        kind there were.

        Raises WorkerLost, TrialHung or SweepError when the recipe allows no more.
        """
        count = self._lost[kind] = self._lost.get(kind, 0) + 1
        where = {"node": None, "nodes": list(nodes)} if len(nodes) > 1 else {"node": nodes[0] if nodes else None}
        self._tell("lost", rank=rank, cause=cause, step=step, loss=kind, **where)
        if overspent(self.recipe, self._lost, kind):
            raise exhausted(self.recipe, self._trial, kind, count, cause, rank, step)
        return count

    def not_started(self, error: StartFailed, step: int | None) -> int:
        """Count workers that did not start as a lost one. Raises, where the recipe allows no more, what tells these from others; it
        has every node on which that happened."""
        nodes = error.fields.get("nodes", ())
        self._not_started.update(nodes)
        try:
            return self.lost("worker", error.message, None, step, nodes)
        except WorkerLost as spent:
            fields = {**error.fields, **spent.fields, "nodes": sorted(self._not_started)}
            raise StartFailed(spent.message, hint=error.hint, **fields) from error

    def adapt(self, error: OutOfMemory, step: int | None) -> None:
        """Take the next milder settings; the trial is to go on from `step`. Raises the error, with advice, where the recipe does
        not want that or nothing milder is left."""
        changes = self._next(self.recipe)
        if changes is None or self.recipe.failures.on_oom == "fail":
            raise _advised(error, self.recipe, changes)
        self._proven, self._untried, self._error = self.adapted, changes, error
        self._run_with({**self.adapted, **changes}, error, step)

    def started(self) -> None:
        """The trial could be started with its present settings."""
        self._untried = {}

    def take_back(self, refusal: RequestError, step: int | None) -> None:
        """The last adaptation is one that the trial cannot start with (a model without activation checkpointing): take the one
        after it instead. Raises the refusal where it is none of our doing."""
        if not self._untried or self._error is None:
            raise refusal
        self._refused |= set(self._untried)
        changes = self._next(with_settings(self._plain, self._proven))
        if changes is None:
            raise _advised(self._error, self.recipe, None)
        self._untried = changes
        self._run_with({**self._proven, **changes}, self._error, step)

    def _next(self, recipe: Recipe) -> Point | None:
        """The next milder settings that were not refused."""
        steps = ({key: new for key, new in step.items() if key not in self._refused} for step in milder(recipe))
        return next((step for step in steps if step), None)

    def _run_with(self, adapted: Point, error: OutOfMemory, step: int | None) -> None:
        before = _settings(self.recipe)
        self.adapted, self.recipe = adapted, with_settings(self._plain, adapted)
        now = _settings(self.recipe)
        self._tell(
            "adapted",
            changed={key: [before[key], now[key]] for key in now if now[key] != before[key]},
            reason=error.message,
            rank=error.fields.get("rank"),
            step=step,
            asked_bytes=error.fields.get("asked_bytes"),
        )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting; the micro-batch as it comes out where it is auto."""
    return {**flat(recipe), MICRO_BATCH: plan_batch(recipe, recipe.resources.workers).micro_batch_size}


def _that_stand(recipe: Recipe, adapted: Mapping[str, Any]) -> Point:
    for settings in (adapted, {key: value for key, value in adapted.items() if key != MICRO_BATCH}):
        try:
            with_settings(recipe, settings)
        except RecipeError:
            continue
        return dict(settings)
    return {}


def _advised(error: OutOfMemory, recipe: Recipe, changes: Point | None) -> OutOfMemory:
    if changes is None:
        hint = (
            "the smallest micro-batch, recomputed activations, sharding and offload do not help: give more workers "
            "(resources.workers), shorter inputs or a smaller model"
        )
    else:
        before = _settings(recipe)
        said = ", ".join(f"{key} to {value} (it is {before[key]})" for key, value in changes.items())
        hint = f"set {said}, or failures.on_oom to adapt, which does that by itself and goes on from the checkpoint"
    return OutOfMemory(error.message, hint=hint, **error.fields)
