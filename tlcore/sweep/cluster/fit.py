"""Whether a point of the space can run on this cluster, and what to change where it cannot.

Owns the verdict on one point: its batch divides, a trial of its shape can be placed, and each worker's memory suffices; and the
milder settings that would mend it (`recipe/milder.py`), in order, the first that fits. What is needed is estimated in a process of
its own (`train/estimate.py`), so that the driver loads no torch; points that differ in nothing that matters share one verdict. A
quantity that nobody knows makes no verdict: `fits` is None and `reason` says what is unknown.

Does not own what a sweep does about it (`runner.py` before, `search.py` at each suggestion). Also called by `planning.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tlcore.errors import CannotFit, CannotPlace, RecipeError, RequestError, TlcoreError
from tlcore.recipe import Point, Recipe, apply_point, resizing_rungs, with_workers, world_sizes
from tlcore.recipe.milder import milder
from tlcore.recipe.space import flat
from tlcore.sweep.cluster.estimates import Estimate, what_matters
from tlcore.sweep.cluster.gpus import smallest
from tlcore.sweep.cluster.growth import Growth, check_can_come
from tlcore.sweep.cluster.resources import Node, Shape, shape_of

_SHOWN_POINTS: Final = 5
_ANY: Final = {"train.learning_rate", "train.warmup_ratio", "train.seed", "train.lr_schedule", "train.epochs"}
"""Settings that change nothing about whether a point fits."""


@dataclass(frozen=True)
class Room:
    """Memory that one worker may take, bytes; None where it is not known, and `source` says of what, or why not."""

    host_bytes: float | None
    device_bytes: float | None
    source: str


@dataclass(frozen=True)
class Verdict:
    """`fits`: True, False, or None where something is unknown; `reason` says what is missing or unknown, empty for a clean yes.

    `changes`: settings over the point that make it fit, None where there are none or none are needed; `needs` is the estimate.
    """

    fits: bool | None
    reason: str = ""
    changes: Point | None = None
    needs: Mapping[str, Any] | None = None
    room: Room | None = None


class FitCheck:
    """Verdicts on points of one recipe on one cluster.

    Args:
        recipe: the whole sweep's.
        nodes: the living nodes, with the memory of their GPUs as far as it is known (`gpus.py`).
        has_gpus: whether the cluster has any, as `Growth.gpus` says.
        estimate: what a worker needs.
        growth: what an autoscaler could add.
    """

    def __init__(
        self,
        recipe: Recipe,
        nodes: Sequence[Node],
        has_gpus: bool | None,
        estimate: Estimate,
        growth: Growth | None = None,
    ) -> None:
        self._recipe, self._nodes, self._has_gpus = recipe, nodes, has_gpus
        self._estimate, self._growth = estimate, growth or Growth()
        self._known: dict[str, Verdict] = {}

    def verdict(self, point: Mapping[str, Any]) -> Verdict:
        """Whether the point can run, and if not, what to change."""
        try:
            recipe = apply_point(self._recipe, point)
        except RecipeError as error:
            return Verdict(False, "; ".join(str(fault) for fault in error.faults))
        return self.of(recipe)

    def on_gpu(self, recipe: Recipe) -> bool:
        """Whether a trial's workers would train on GPUs here."""
        return bool(shape_of(recipe, self._has_gpus).gpus)

    def of(self, recipe: Recipe) -> Verdict:
        """The verdict on one trial's recipe."""
        key = json.dumps(what_matters(recipe), sort_keys=True)
        if key not in self._known:
            self._known[key] = self._judge(recipe)
        return self._known[key]

    def _judge(self, recipe: Recipe) -> Verdict:
        """At every number of workers that the trial has on its way: what does not fit at one of them does not fit."""
        verdicts = {workers: self._judge_at(with_workers(recipe, workers)) for workers in world_sizes(recipe)}
        # what was not estimated cannot be placed, or is refused: no milder settings mend that
        worst = min(verdicts.values(), key=lambda one: ((False, None, True).index(one.fits), one.needs is not None))
        if worst.fits is False and worst.needs is not None:
            return replace(worst, changes=self._mended(recipe, verdicts))
        return worst

    def _judge_at(self, recipe: Recipe) -> Verdict:
        shape = shape_of(recipe, self._has_gpus)
        try:
            check_can_come(shape, self._nodes, self._growth, workers_setting(self._recipe))
        except CannotPlace as error:
            return Verdict(False, f"{error.message}; {error.hint}")
        room = worker_room(shape, self._nodes, most_workers(recipe, self._recipe))
        try:
            needs = self._estimate(recipe, bool(shape.gpus))
        except RequestError as error:  # another number of blocks, or of positions
            return Verdict(False, str(error))
        except TlcoreError as error:  # a model that cannot be read here, which a worker may say better
            needs = {"unknown": error.message}
        fits, reason = compare(needs, room)
        return Verdict(fits, reason, None, needs, room)

    def _mended(self, recipe: Recipe, verdicts: Mapping[int, Verdict]) -> Point | None:
        """The first milder settings that fit at every number of workers; fewest workers have the most micro-batches to try."""
        for changes in milder(with_workers(recipe, min(verdicts))):
            # what this model does not offer, such as recomputed activations; a micro-batch that more workers cannot have
            with suppress(TlcoreError):
                changed = apply_point(recipe, changes)
                if all(self._is_mended(with_workers(changed, workers), one) for workers, one in verdicts.items()):
                    return changes
        return None

    def _is_mended(self, recipe: Recipe, before: Verdict) -> bool:
        """Whether it fits now; where that was unknown it may stay so."""
        if before.room is None:
            return False
        fits = compare(self._estimate(recipe, self.on_gpu(recipe)), before.room)[0]
        return fits is True or (fits is None and before.fits is None)


def workers_setting(recipe: Recipe) -> str:
    """Where the recipe says how many workers a trial has."""
    return "search.scheduler.asha.workers" if resizing_rungs(recipe) else "resources.workers"


def most_workers(recipe: Recipe, sweep: Recipe) -> int:
    """How many workers the sweep can ever have at once."""
    trials = sweep.search.trials
    return recipe.resources.workers * min(trials, sweep.search.at_once or trials)


def compare(needs: Mapping[str, Any], room: Room) -> tuple[bool | None, str]:
    """Whether a worker's needs go into its room, and what is short or unknown."""
    if "unknown" in needs:
        return None, f"the memory that it needs is unknown: {needs['unknown']}"
    short, unknown = [], []
    for what, name in (("device_bytes", "GPU memory"), ("host_bytes", "memory")):
        asked, there = needs[what], getattr(room, what)
        if not asked:
            continue
        if there is None:
            unknown.append(f"{name} of a worker is unknown ({room.source}), {gigabytes(asked)} needed")
        elif asked > there:
            short.append(f"a worker needs {gigabytes(asked)} of {name} and has {gigabytes(there)} ({room.source})")
    if short:
        return False, "; ".join(short)
    return (None, "; ".join(unknown)) if unknown else (True, "")


def worker_room(shape: Shape, nodes: Sequence[Node], most: int) -> Room:
    """Memory for one worker of a shape: of the tightest node that could take it, shared by as many as can sit there at once, and of
    the smallest GPU that it could get.

    Args:
        most: workers that there will ever be at once.
    """
    usable = [(node, seats) for node in nodes if shape.may_use(node) and (seats := _seats(shape, node))]
    if not usable:
        return Room(None, None, "no node has room for a worker")
    gpu_bytes = smallest([node.gpu_bytes for node, _ in usable])
    device = None if gpu_bytes is None else gpu_bytes * min(1.0, shape.gpus)
    memories = [(node.resources.get("memory"), seats) for node, seats in usable]
    shared = [memory / max(1, min(seats, most)) for memory, seats in memories if memory is not None]
    told = len(shared) == len(memories)
    source = "a node's `memory` in Ray, shared by its workers" if told else "a node tells Ray no `memory`"
    if shape.gpus:
        source += "; " + ("no nvidia-smi told its size" if gpu_bytes is None else "of the smallest GPU")
    return Room(min(shared) if told else None, device, source)


def _seats(shape: Shape, node: Node) -> int:
    """How many workers a node takes by what they reserve."""
    per_worker = {key: amount for key, amount in shape.per_worker.items() if amount}
    return min((int(node.resources.get(key, 0.0) / amount + 1e-6) for key, amount in per_worker.items()), default=1)


def gigabytes(size: float) -> str:
    """`2.31 GB`"""
    return f"{size / 1e9:.2f} GB"


@dataclass(frozen=True)
class Admitted:
    """What becomes of a suggested point: `point` runs, `repaired` says what was changed in it (setting -> [suggested, its own]);
    with a `failure` (error, message, hint) it does not run."""

    point: Point
    repaired: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] | None = None


Admit = Callable[[Mapping[str, Any]], Admitted]


def admit_all(point: Mapping[str, Any]) -> Admitted:
    """Every point as it is."""
    return Admitted(dict(point))


def admission(recipe: Recipe, check: FitCheck) -> Admit:
    """By `failures.on_infeasible`. An adaptive searcher may come upon a point that no check before the sweep saw: with `refuse`
    that trial fails, since the sweep has begun."""

    def admit(point: Mapping[str, Any]) -> Admitted:
        verdict = check.verdict(point)
        if verdict.fits is not False:
            return Admitted(dict(point))
        if recipe.failures.on_infeasible == "repair" and verdict.changes is not None:
            before = flat(apply_point(recipe, point))
            repaired = {key: [before[key], value] for key, value in verdict.changes.items()}
            return Admitted({**point, **verdict.changes}, repaired)
        hint = "" if verdict.changes is None else f"it would fit with {in_settings(verdict.changes)}"
        failure = {"error": "CannotFit", "message": f"not run: {verdict.reason}", "hint": hint}
        return Admitted(dict(point), failure=failure)

    return admit


def refuse(bad: Sequence[tuple[Point, Verdict]], points: int) -> CannotFit:
    """The error that names the points that cannot run, and what to change."""
    lines = []
    for point, verdict in bad[:_SHOWN_POINTS]:
        named = (
            ", ".join(f"{key}={value}" for key, value in point.items() if key not in _ANY) or "the recipe as it stands"
        )
        fix = "no milder settings fit" if verdict.changes is None else f"would fit with {in_settings(verdict.changes)}"
        lines.append(f"{named}: {verdict.reason}; {fix}")
    if len(bad) > _SHOWN_POINTS:
        lines.append(f"and {len(bad) - _SHOWN_POINTS} more")
    listed = "\n  ".join(lines)
    return CannotFit(
        f"{len(bad)} of {points} points of the search cannot run here\n  {listed}",
        hint="change the recipe so, or set failures.on_infeasible to repair (does it for you) or drop (leaves them out); "
        "`tlcore plan` shows every point",
    )


def in_settings(changes: Mapping[str, Any]) -> str:
    """`train.micro_batch_size=4 deepspeed.zero_stage=3`, as `--set` takes them."""
    return " ".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in changes.items())
