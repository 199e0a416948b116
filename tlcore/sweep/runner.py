"""A sweep from recipe to outcome: make or find the run, check that it fits, let Tune drive the slots, say what came of it.

Owns the order of things: what can be known to fail is tried before the run exists (storage, placement), and the run's identity
exists before the first trial. A single training run is a sweep of one point through the same slots. Called by `cli.py` and
`jobs/`.
"""

from __future__ import annotations

import getpass
import platform
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tlcore.errors import RequestError, SweepError
from tlcore.recipe import (
    Point,
    Recipe,
    apply_point,
    difference,
    recipe_from_dict,
    trial_points,
    with_workers,
    world_sizes,
)
from tlcore.storage import RunRef, create_run, ensure_embedded, newest_run, probe
from tlcore.storage.account import utc_now
from tlcore.storage.journal import SweepState
from tlcore.sweep.cluster.estimates import Estimate, EstimatorProcess
from tlcore.sweep.cluster.fit import Admit, FitCheck, Verdict, admission, admit_all, refuse, workers_setting
from tlcore.sweep.cluster.gpus import with_gpu_memory
from tlcore.sweep.cluster.growth import check_can_come, read_growth
from tlcore.sweep.cluster.resources import Cluster, Shape, shape_of
from tlcore.sweep.display import Display
from tlcore.sweep.driver import Driver
from tlcore.sweep.examination import SESSION
from tlcore.sweep.halt import Halt
from tlcore.sweep.outcome import SweepOutcome
from tlcore.sweep.quiet import quiet_ray
from tlcore.sweep.search.source import trials_wanted
from tlcore.sweep.search.warm import find_earlier
from tlcore.tasks import build_task
from tlcore.train.signals import stop_signals

MAY_CHANGE: Final = ("resources.", "failures.", "budget.", "report.", "track.", "search.trials", "search.at_once")
"""Settings that a resumed sweep may have otherwise: they change where and how long it runs, not what a trial is, nor which trials
there are up to the number that is wanted, nor what was decided about them."""


@dataclass(frozen=True)
class SweepOptions:
    """What the command decides and the recipe does not.

    Args:
        resume: go on with the newest run of the recipe's name.
        display: shows the sweep live; None shows nothing. Closed by the caller.
        logs: directory for the driver's log; None makes one under the user's cache directory.
        session: import path of the session class that the ranks drive.
        estimate: what a worker needs of memory; None asks `train/estimate.py`, which knows of tlcore's own session alone: with
            another one, memory is not checked.
        clock: current time, timezone-aware: what the journal is dated by and the budget counted with.
    """

    resume: bool = False
    display: Display | None = None
    logs: Path | None = None
    session: str = SESSION
    estimate: Estimate | None = None
    clock: Callable[[], datetime] = utc_now


def log_directory(name: str, now: datetime) -> Path:
    """Where a sweep's logs go by default, so that a command can name the place before anything is started."""
    return Path.home() / ".cache" / "tlcore" / "logs" / f"{name}-{now:%Y%m%d-%H%M%S}"


def run_sweep(recipe: Recipe, options: SweepOptions) -> SweepOutcome:
    """Run or resume the sweep that a recipe describes.

    Raises:
        CannotPlace: a trial can never be placed on this cluster (nothing was started).
        SweepError: no trial took a step, or the budget was used up before any trial reported.
        RequestError, StorageError: the run cannot be resumed, or the storage not used.
    """
    return _run(recipe, options, metrics=recipe.search.metrics)


def run_train(recipe: Recipe, options: SweepOptions) -> SweepOutcome:
    """Run or resume one training run, the recipe as it stands: a sweep of one point."""
    return _run(one_training(recipe), options, metrics=())


def one_training(recipe: Recipe) -> Recipe:
    """The recipe as it stands, with nothing to search."""
    search = recipe.search.model_copy(
        update={
            "space": {},
            "trials": 1,
            "first": (),
            "algorithm": type(recipe.search.algorithm)(),
            "scheduler": type(recipe.search.scheduler)(),
            "from_": None,
        }
    )
    return recipe.model_copy(update={"search": search})


def _run(recipe: Recipe, options: SweepOptions, metrics: Sequence[str]) -> SweepOutcome:
    now = options.clock()
    logs = options.logs or log_directory(recipe.name, now)
    ensure_embedded(recipe.storage)
    probe(recipe.storage)
    check_inputs(recipe)
    run = run_to_resume(recipe) if options.resume else None
    halt = Halt()
    with EstimatorProcess() as process, quiet_ray(logs), stop_signals(halt.interrupt):
        own = process if options.session == SESSION else None
        admit, unknown = _check_fits(recipe, Cluster(), options.estimate or own)
        process.close()  # an adaptive searcher's new combinations start it again
        if halt.asked:  # before there is a run: one without a trial would be the newest, and the next resume take it
            raise KeyboardInterrupt
        earlier = None
        if run is None:
            earlier = find_earlier(recipe)
            run = create_run(recipe.storage, recipe.name, identity(recipe), now, secrets.token_hex(8))
        driver = Driver(
            recipe, run, options.session, metrics, options.display, halt, options.clock, earlier, admit, unknown
        )
        interrupted = driver.drive()
    state = driver.state
    _check_progress(state, halt, interrupted, logs)
    best = state.best(recipe.search.metric, recipe.search.mode)
    exhausted = halt.exhausted if state.ended_by else None
    return SweepOutcome(run, recipe, state, best, logs, interrupted, exhausted, driver.untested)


def identity(recipe: Recipe) -> dict[str, Any]:
    """What `run.json` says about a new run."""
    packages = ("torch", "transformers", "ray", "deepspeed")
    return {
        "recipe": recipe.to_dict(),
        "digest": recipe.digest(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "started_by": getpass.getuser(),
        "host": platform.node(),
    }


def check_inputs(recipe: Recipe) -> None:
    """Model source and data, as far as this machine can tell, while a fault still costs seconds. Raises ModelError, DataError."""
    task = build_task(recipe)
    task.check_data()


def run_to_resume(recipe: Recipe) -> RunRef:
    """The newest run of the recipe's name, if this recipe may go on with it.

    A sweep's points, decisions and names of trials follow from its search: with another one they would be taken for its own.

    Raises:
        ObjectMissing: there is none.
        RequestError: it is of another recipe; says which settings, and both values of each.
    """
    run = newest_run(recipe.storage, recipe.name)
    facts = run.identity()
    stored = recipe_from_dict(facts["recipe"], source=f"{run.url}/run.json")
    if facts.get("kind") == "train":  # without Ray, or imported: its recipe was kept whole, and nothing of it searched
        stored = one_training(stored)
    pairs = {**difference(recipe, stored), **_search_difference(recipe, stored)}
    changed = {key: pair for key, pair in pairs.items() if not key.startswith(MAY_CHANGE)}
    if changed:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in sorted(changed.items()))
        raise RequestError(
            f"cannot resume {run.url} with another recipe: {listed}",
            hint="give the same recipe and the same --set as then, or leave out --resume to start a new run",
        )
    return run


def _search_difference(recipe: Recipe, base: Recipe) -> dict[str, tuple[Any, Any]]:
    """As `difference`, of the search: each domain of the space, algorithm and scheduler as wholes, and the other settings."""
    mine, theirs = _search(recipe), _search(base)
    paths = dict.fromkeys([*mine, *theirs])
    return {path: (theirs.get(path), mine.get(path)) for path in paths if mine.get(path) != theirs.get(path)}


def _search(recipe: Recipe) -> dict[str, Any]:
    search = recipe.to_dict()["search"]
    return {f"search.{key}": value for key, value in search.items() if key != "space"} | {
        f"search.space.{key}": domain for key, domain in search["space"].items()
    }


def _check_fits(recipe: Recipe, cluster: Cluster, estimate: Estimate | None) -> tuple[Admit, list[str]]:
    """See that the sweep's points can run; returns what becomes of each suggestion, and what could not be found out.

    Raises CannotPlace, CannotFit: some cannot and the recipe says refuse, or none can and nothing helps. RequestError: nobody can
    say whether they take GPUs.
    """
    nodes = cluster.nodes()
    growth = read_growth(nodes)
    gpus = growth.gpus(nodes)
    # whatever the searcher, its points come from the same domains
    points = trial_points(recipe, trials_wanted(recipe))
    if recipe.failures.on_infeasible == "refuse" or estimate is None:
        for shape in _shapes(recipe, points, gpus):
            check_can_come(shape, nodes, growth, workers_setting(recipe))
    if estimate is None:
        return admit_all, []
    check = FitCheck(recipe, with_gpu_memory(nodes), gpus, estimate, growth)
    verdicts = [(point, check.verdict(point)) for point in points]
    bad = [(point, verdict) for point, verdict in verdicts if verdict.fits is False]
    if bad and not _goes_on(recipe.failures.on_infeasible, [verdict for _, verdict in verdicts]):
        raise refuse(bad, len(points))
    return admission(recipe, check), sorted({verdict.reason for _, verdict in verdicts if verdict.fits is None})


def _shapes(recipe: Recipe, points: Sequence[Point], gpus: bool | None) -> list[Shape]:
    """Every shape that a trial of these points has on its way, each once."""
    trials = [apply_point(recipe, point) for point in points]
    return list(dict.fromkeys(shape_of(with_workers(each, n), gpus) for each in trials for n in world_sizes(each)))


def _goes_on(policy: str, verdicts: Sequence[Verdict]) -> bool:
    """Whether a sweep with points that cannot run has others to run."""
    if policy == "refuse":
        return False
    return any(verdict.fits is not False or (policy == "repair" and verdict.changes) for verdict in verdicts)


def _check_progress(state: SweepState, halt: Halt, interrupted: bool, logs: Path) -> None:
    if any(trial.results for trial in state.trials.values()) or interrupted:
        return
    if halt.error is not None:
        raise halt.error
    if halt.exhausted is not None:
        raise SweepError(
            f"the budget ended the sweep before any trial reported: {halt.exhausted}", hint=halt.exhausted.hint
        )
    first = next((trial.failure for trial in state.trials.values() if trial.failure is not None), None)
    if first is None:
        raise SweepError("no trial took a step", hint=f"see {logs}")
    raise SweepError(
        f"no trial took a step; {first['trial']} failed first: {first['error']}: {first['message']}",
        hint=first["hint"] or f"see {logs}",
        trial=first["trial"],
        rank=first.get("rank"),
    )
