"""`tlcore plan`: every kind of point that a recipe's space has, and whether it can run here, before anything is started.

Owns which points those are (settings that change neither batch, shape nor memory are of no account; of the
rest, what the sweep will draw), and the plan as plain data. The verdicts are `fit.py`'s, the same as before a sweep. The cluster is
the one at RAY_ADDRESS, else this machine as a local Ray would see it, without starting one. Called by `commands/plan.py`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tlcore.errors import RecipeError, TlcoreError
from tlcore.recipe import Point, Recipe, apply_point, plan_batch, trial_points
from tlcore.recipe.milder import with_settings
from tlcore.storage import ensure_embedded, probe
from tlcore.sweep.cluster.estimates import EstimatorProcess, what_matters
from tlcore.sweep.cluster.fit import FitCheck, Verdict
from tlcore.sweep.cluster.gpus import gpu_memories, smallest, with_gpu_memory
from tlcore.sweep.cluster.growth import Growth, read_growth
from tlcore.sweep.cluster.resources import Cluster, Node
from tlcore.sweep.quiet import quiet_ray
from tlcore.sweep.search.source import trials_wanted

_MOST_DRAWN: Final = 2000
_RAY_SHARE: Final = 0.7
"""Of a machine's free memory, what Ray calls a node's `memory`: the rest is its object store's."""


@dataclass(frozen=True)
class Site:
    """Where trials would run: nodes, what to call it, and what an autoscaler could add."""

    nodes: Sequence[Node]
    name: str
    growth: Growth


def make_plan(recipe: Recipe) -> dict[str, Any]:
    """The plan, JSON-able: `points` (each with settings, batch, needs by stage, verdict), `site`, `storage`, `fits`.

    Raises:
        TlcoreError: the recipe's model cannot be read, the cluster not reached, or nobody can say whether trials take GPUs there.
    """
    with EstimatorProcess() as estimate, site() as there:
        estimate.prepare(recipe)
        check = FitCheck(recipe, there.nodes, there.growth.gpus(there.nodes), estimate, there.growth)
        points = [_row(recipe, point, trials, check, estimate) for point, trials in distinct_points(recipe)]
    storage = storage_problem(recipe.storage)
    fits = storage is None and any(row["fits"] is not False for row in points)
    return {"name": recipe.name, "site": there.name, "storage": storage, "fits": fits, "points": points}


def distinct_points(recipe: Recipe) -> list[tuple[Point, int]]:
    """The points of the space that differ in what matters, as the sweep draws them, and how many of its trials each stands for."""
    found: dict[str, tuple[Point, int]] = {}
    for point in trial_points(recipe, min(trials_wanted(recipe), _MOST_DRAWN)):
        try:
            key = json.dumps(what_matters(apply_point(recipe, point)), sort_keys=True)
        except RecipeError as error:
            key = str(error)
        first, trials = found.get(key, (point, 0))
        found[key] = (first, trials + 1)
    return list(found.values())


def _row(recipe: Recipe, point: Point, trials: int, check: FitCheck, estimate: EstimatorProcess) -> dict[str, Any]:
    verdict = check.verdict(point)
    row: dict[str, Any] = {
        "point": _of_note(recipe, point),
        "trials": trials,
        "fits": verdict.fits,
        "reason": verdict.reason,
        "changes": verdict.changes,
    }
    try:
        mine = apply_point(recipe, point)
    except RecipeError:
        return row
    batch = plan_batch(mine, mine.resources.workers)
    return {
        **row,
        "batch": {
            "global": batch.global_batch_size,
            "workers": batch.world_size,
            "micro": batch.micro_batch_size,
            "accumulation": batch.accumulation_steps,
        },
        "stage": mine.deepspeed.zero_stage,
        "room": _room(verdict),
        "by_stage": [_at_stage(mine, stage, check.on_gpu(mine), estimate) for stage in range(4)],
    }


def _of_note(recipe: Recipe, point: Point) -> Point:
    """Settings of a point without those that change nothing here."""
    return {key: value for key, value in point.items() if _matters(recipe, key)}


def _matters(recipe: Recipe, key: str) -> bool:
    section, _, name = key.partition(".")
    if section == "train":
        return name in what_matters(recipe)["train"]
    return section in ("model", "data", "transfer", "deepspeed", "resources") and name not in ("alpha", "dropout")


def _room(verdict: Verdict) -> dict[str, Any] | None:
    if verdict.room is None:
        return None
    room = verdict.room
    return {"host_bytes": room.host_bytes, "device_bytes": room.device_bytes, "source": room.source}


def _at_stage(recipe: Recipe, stage: int, on_gpu: bool, estimate: EstimatorProcess) -> dict[str, Any]:
    """What a worker needs at another stage; offloads that a stage does not have are left out there."""
    changes: dict[str, Any] = {"deepspeed.zero_stage": stage}
    if stage == 0:
        changes["deepspeed.offload_optimizer"] = "none"
        if recipe.train.precision in ("bf16", "fp16"):
            changes["train.precision"] = "fp32"
    if stage < 3:
        changes["deepspeed.offload_param"] = "none"
    try:
        return dict(estimate(with_settings(recipe, changes), on_gpu))
    except TlcoreError as error:
        return {"unknown": error.message}


def storage_problem(storage: str) -> str | None:
    """Why the storage cannot be written, or None."""
    try:
        ensure_embedded(storage)
        probe(storage)
    except TlcoreError as error:
        return str(error)
    return None


@contextmanager
def site() -> Iterator[Site]:
    """The cluster at RAY_ADDRESS, connected to for the time of the block; else this machine."""
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        yield this_machine()
        return
    with tempfile.TemporaryDirectory(prefix="tlcore-") as logs, quiet_ray(Path(logs)):
        nodes = Cluster().nodes()
        yield Site(with_gpu_memory(nodes), f"the cluster at {address}", read_growth(nodes))


def this_machine() -> Site:
    """One node with this machine's cores, GPUs and free memory."""
    from ray._private.utils import get_system_memory, get_used_memory

    gpus = gpu_memories()
    free = _RAY_SHARE * (get_system_memory() - get_used_memory())
    resources = {"CPU": float(os.cpu_count() or 1), "memory": free, "GPU": float(len(gpus))}
    return Site([Node(resources, {}, gpu_bytes=smallest(gpus))], "this machine", Growth())


def summary(plan: Mapping[str, Any]) -> str:
    """One line on the whole plan."""
    rows = plan["points"]
    bad = sum(row["fits"] is False for row in rows)
    open_ = sum(row["fits"] is None for row in rows)
    said = f"{len(rows) - bad - open_} of {len(rows)} kinds of point fit"
    return said + (f", {bad} do not" if bad else "") + (f", {open_} unknown" if open_ else "")
