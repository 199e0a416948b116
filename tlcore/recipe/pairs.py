"""Which algorithm goes with which scheduler, space and number of metrics.

Owns the table of pairs that make no sense, with the reason and the way out, and what each algorithm and scheduler asks of
the space. Called by `space_checks.py`, on whole recipes only: a trial's own recipe has nothing left to search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown
from tlcore.recipe.domains import Domain
from tlcore.recipe.schema import Recipe
from tlcore.recipe.space import in_order

IN_MID_TRIAL: Final = (
    "train.learning_rate",
    "train.weight_decay",
    "train.gradient_clip",
    "train.lr_schedule",
    "train.warmup_ratio",
    "train.global_batch_size",
    "train.micro_batch_size",
    "transfer.n",
)
"""Settings that a trial can change between two steps and go on."""

_EARLY: Final = ("asha", "hyperband", "bohb", "median")
_RUNGS: Final = ("asha", "hyperband", "bohb")


def mutated_keys(recipe: Recipe) -> tuple[str, ...]:
    """Settings that a population scheduler changes, in the space's order; none without such a scheduler."""
    population = recipe.search.scheduler.population
    if population is None:
        return ()
    wanted = IN_MID_TRIAL if population.mutate is None else population.mutate
    takes = _is_range if recipe.search.scheduler.pb2 is not None and population.mutate is None else _any
    return tuple(key for key, domain in recipe.search.space.items() if key in wanted and takes(domain))


def _any(domain: Domain) -> bool:
    return True


def _is_range(domain: Domain) -> bool:
    return domain.choice is None and domain.grid is None and not domain.when


def pair_faults(recipe: Recipe) -> Iterator[Fault]:
    """Every fault of algorithm, scheduler and metrics together."""
    yield from _algorithm_and_scheduler(recipe)
    yield from _metrics(recipe)
    yield from _ranges_alone(recipe)
    yield from _generation(recipe)
    yield from _population(recipe)
    yield from _warm_start(recipe)


def _algorithm_and_scheduler(recipe: Recipe) -> Iterator[Fault]:
    search = recipe.search
    algorithm, scheduler = search.algorithm.name, search.scheduler.name
    path = "search.scheduler"
    if scheduler == "bohb" and algorithm != "bohb":
        text = f"got bohb with algorithm {algorithm}; bohb's HyperBand goes with bohb's model"
        yield Fault(path, f"{text}: set search.algorithm to bohb, or this to hyperband")
    elif algorithm == "bohb" and scheduler not in _RUNGS:
        text = f"got {scheduler} with algorithm bohb, which learns from rungs"
        yield Fault(path, f"{text}: give bohb, hyperband or asha, or set search.algorithm to optuna")
    elif search.scheduler.population is not None and algorithm != "random":
        text = f"got {scheduler} with algorithm {algorithm}; its trials change their settings as they go"
        yield Fault(path, f"{text}: set search.algorithm to random, or this to asha")
    elif search.algorithm.sampler == "nsga2" and scheduler in _EARLY:
        text = f"got {scheduler} with sampler nsga2, which learns nothing from trials that stopped early"
        yield Fault(path, f"{text}: give none, or set search.algorithm.optuna.sampler to tpe")


def _metrics(recipe: Recipe) -> Iterator[Fault]:
    search = recipe.search
    if len(search.metrics) == 1:
        return
    if search.scheduler.name != "none":
        text = f"got {search.scheduler.name} with {len(search.metrics)} metrics; a scheduler stops trials by one"
        yield Fault("search.scheduler", f"{text}: give none, or one search.metric")
    if search.algorithm.sampler == "cmaes" or search.algorithm.bohb is not None:
        name = search.algorithm.sampler or search.algorithm.name
        text = f"got {name} with {len(search.metrics)} metrics, and it follows one"
        yield Fault("search.algorithm", f"{text}: give optuna with sampler tpe or nsga2, or one search.metric")


def _ranges_alone(recipe: Recipe) -> Iterator[Fault]:
    if recipe.search.algorithm.sampler != "cmaes":
        return
    for key, domain in recipe.search.space.items():
        if not _is_range(domain):
            what = "a condition" if domain.when else f"a {domain.kind}"
            text = f"has {what}; sampler cmaes moves in ranges alone"
            yield Fault(f"search.space.{key}", f"{text}: use uniform, loguniform, quniform or randint, or sampler tpe")


def _generation(recipe: Recipe) -> Iterator[Fault]:
    optuna = recipe.search.algorithm.optuna
    if optuna is not None and optuna.sampler == "nsga2" and optuna.startup == 1:
        text = "got 1 with sampler nsga2, whose generations are as large; a point has two parents"
        yield Fault("search.algorithm.optuna.startup", f"{text}: give at least 2, or null for 10")


def _population(recipe: Recipe) -> Iterator[Fault]:
    search = recipe.search
    population = search.scheduler.population
    if population is None:
        return
    name = search.scheduler.name
    path = f"search.scheduler.{name}"
    for key in population.mutate or ():
        if key not in search.space:
            yield Fault(f"{path}.mutate", f"{key} is not in search.space; give it a domain there, or take it out")
        elif key not in IN_MID_TRIAL:
            text = f"{key} cannot change while a trial runs"
            yield Fault(f"{path}.mutate", f"{text}; give some of {', '.join(IN_MID_TRIAL)}, or take it out")
        elif name == "pb2" and not _is_range(search.space[key]):
            text = f"{key} is no plain range, which pb2's model needs"
            yield Fault(f"{path}.mutate", f"{text}; use uniform, loguniform, quniform or randint without when, or pbt")
    yield from _dragged_along(recipe)
    if not mutated_keys(recipe):
        what = "ranges" if name == "pb2" else "setting"
        text = f"got {name}, but search.space has no {what} that it could change in mid-trial"
        yield Fault("search.scheduler", f"{text}; search some of {', '.join(IN_MID_TRIAL)}")
    elif search.trials < 2:
        yield Fault("search.trials", f"got {search.trials} with {name}; a population has at least 2")


def _dragged_along(recipe: Recipe) -> Iterator[Fault]:
    """Settings that no trial can change, and that a takeover would, since their conditions are on what it changes."""
    changing = set(mutated_keys(recipe))
    for key in in_order(recipe.search.space):
        moved = [other for other in recipe.search.space[key].when if other in changing]
        if not moved:
            continue
        changing.add(key)
        if key not in IN_MID_TRIAL:
            text = f"{moved[0]} changes in mid-trial, and {key} cannot"
            yield Fault(
                f"search.space.{key}.when", f"{text}; take the condition out, or leave {moved[0]} out of mutate"
            )


def _warm_start(recipe: Recipe) -> Iterator[Fault]:
    search = recipe.search
    if search.from_ is None:
        return
    if search.algorithm.optuna is None and search.algorithm.bohb is None:
        text = f"got {shown(search.from_)} with algorithm {search.algorithm.name}, which learns nothing from results"
        yield Fault("search.from", f"{text}; set search.algorithm to optuna or bohb, or take it out")
