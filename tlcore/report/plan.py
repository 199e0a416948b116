"""What `tlcore validate` prints: the recipe resolved, on one screen.

Owns the words only; every number comes from `recipe/`. Light on purpose: imports nothing that `tlcore.recipe` does not.
"""

from __future__ import annotations

from tlcore.recipe import Recipe, plan_batch, report_fractions
from tlcore.recipe.domains import in_words
from tlcore.report import figures


def plan_lines(recipe: Recipe) -> list[str]:
    """The plan of a valid recipe, one labelled line per part."""
    parts = [
        ("model", f"{recipe.model.source}, transfer {_transfer(recipe)}"),
        ("data", _data(recipe)),
        ("batch", _batch(recipe)),
        ("sharding", _sharding(recipe)),
        ("trials", _trials(recipe)),
        *(("search" if number == 0 else "", line) for number, line in enumerate(_space(recipe))),
        ("saves", _saves(recipe)),
        ("storage", f"{recipe.storage.rstrip('/')}/{recipe.name}/<run>"),
    ]
    return [f"{recipe.name}: {recipe.task}", *(f"  {label:<9} {text}" for label, text in parts)]


def _transfer(recipe: Recipe) -> str:
    n = "" if recipe.transfer.n is None else f" n={recipe.transfer.n}"
    return f"{recipe.transfer.strategy}{n}"


def _data(recipe: Recipe) -> str:
    held_out = recipe.data.validation
    validation = f"{held_out:.3g} of train" if isinstance(held_out, float) else held_out
    return f"train {recipe.data.train}, validation {validation}, test {recipe.data.test or 'none'}"


def _batch(recipe: Recipe) -> str:
    plan = plan_batch(recipe, recipe.resources.workers)
    return (
        f"{plan.global_batch_size} = {figures.count(plan.world_size, 'worker')} x micro-batch {plan.micro_batch_size}"
        f" x accumulation {plan.accumulation_steps}"
    )


def _sharding(recipe: Recipe) -> str:
    offloaded = [
        name
        for name, where in (
            ("optimizer", recipe.deepspeed.offload_optimizer),
            ("parameters", recipe.deepspeed.offload_param),
        )
        if where != "none"
    ]
    offload = f", {' and '.join(offloaded)} offloaded to the CPU" if offloaded else ""
    return f"ZeRO stage {recipe.deepspeed.zero_stage}, precision {recipe.train.precision}{offload}"


def _trials(recipe: Recipe) -> str:
    rungs = ", ".join(figures.share(fraction) for fraction in report_fractions(recipe))
    return (
        f"{recipe.search.trials}, scheduler {recipe.search.scheduler.name}, judged by {recipe.search.metric} "
        f"({recipe.search.mode}) at {rungs} of {figures.count(recipe.train.epochs, 'epoch')}"
    )


def _space(recipe: Recipe) -> list[str]:
    return [f"{path} {in_words(domain)}" for path, domain in recipe.search.space.items()]


def _saves(recipe: Recipe) -> str:
    wanted = recipe.checkpoint
    every = [
        text
        for value, text in (
            (wanted.every_steps, f"every {figures.count(wanted.every_steps or 0, 'step')}"),
            (wanted.every_epochs, f"every {figures.count(wanted.every_epochs or 0, 'epoch')}"),
            (wanted.every_minutes, f"every {wanted.every_minutes} minutes"),
        )
        if value is not None
    ]
    return (
        f"{', '.join([*every, 'at every rung and at the end'])}; kept: last {wanted.keep_last}, best {wanted.keep_best}"
    )
