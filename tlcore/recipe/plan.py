"""What a recipe comes to once everything is resolved, as rows of text.

Owns the wording of `tlcore validate`'s plan. Looks at the recipe alone: memory and placement need a cluster
(`tlcore plan`). Called by `cli.py` and `report/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tlcore.recipe.batch import BatchPlan, plan_batch
from tlcore.recipe.domains import Number, in_words
from tlcore.recipe.pairs import mutated_keys
from tlcore.recipe.rungs import report_fractions, resizing_rungs, workers_at
from tlcore.recipe.schema import Recipe
from tlcore.recipe.search_schema import Algorithm
from tlcore.recipe.space import in_one_line, in_order
from tlcore.recipe.task_table import TASK_TABLE


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan."""

    topic: str
    text: str


def resolved_plan(recipe: Recipe) -> list[PlanRow]:
    """The plan of a recipe that passed its checks, in reading order."""
    return [
        PlanRow("name", recipe.name),
        PlanRow("task", recipe.task),
        PlanRow("model", recipe.model.source + (f" at {recipe.model.revision}" if recipe.model.revision else "")),
        *_data(recipe),
        PlanRow("transfer", _transfer(recipe)),
        PlanRow("train", _train(recipe)),
        PlanRow("batch", _batch(plan_batch(recipe, recipe.resources.workers))),
        PlanRow("sharding", _sharding(recipe)),
        PlanRow("workers", _workers(recipe)),
        PlanRow("reports", f"at {_listed(report_fractions(recipe))} of {_count(recipe.train.epochs, 'epoch')}"),
        PlanRow("checkpoints", _checkpoints(recipe)),
        PlanRow("failures", _failures(recipe)),
        *_search(recipe),
        *_budget(recipe),
        PlanRow("storage", recipe.storage),
        PlanRow("digest", recipe.digest()),
    ]


def _data(recipe: Recipe) -> Iterator[PlanRow]:
    data = recipe.data
    row = TASK_TABLE[recipe.task]
    unread = {"text"} if data.messages is not None else set()
    columns = ", ".join(name for key in row.columns if key not in unread and (name := getattr(data, key)) is not None)
    bound = f"; {data.max_length} tokens at most" if row.takes("max_length") else ""
    bound += f"; {data.max_seconds:g} s at most" if row.takes("max_seconds") else ""
    yield PlanRow("train data", f"{data.train} (columns {columns}{bound})")
    held_out = isinstance(data.validation, float)
    yield PlanRow("validation", f"{data.validation} of the training examples" if held_out else str(data.validation))
    yield PlanRow("test", data.test or "none: no final figures on unseen examples")


def _transfer(recipe: Recipe) -> str:
    transfer = recipe.transfer
    return {
        "full": f"full: {_weights(recipe)} are trained",
        "head": "head: only the new head is trained" + (", on cached features" if transfer.cache_features else ""),
        "last_n": f"last_n: the head and the last {transfer.n} blocks are trained",
        "gradual": f"gradual: first the head is trained, then {_schedule(recipe)}{_decay(recipe)}",
        "layerwise": f"layerwise: {_weights(recipe)} are trained{_decay(recipe)}",
        "lora": _lora(recipe),
        "dora": _lora(recipe),
        "qlora": f"{_lora(recipe)}; the blocks' linear layers are kept in four bits",
        "bitfit": "bitfit: the head and all biases are trained",
        "scratch": "scratch: the same network from random weights",
    }.get(transfer.strategy, transfer.strategy)


def _weights(recipe: Recipe) -> str:
    train, freeze = recipe.transfer.named("train"), recipe.transfer.named("freeze")
    return (", ".join(train) if train else "all weights") + (f" but {', '.join(freeze)}" if freeze else "")


def _schedule(recipe: Recipe) -> str:
    given = recipe.transfer.unfreezing
    if isinstance(given, float):
        return f"the blocks from the top evenly up to {given:g} of the trial"
    return f"the next block from the top at each of {', '.join(f'{each:g}' for each in given)} of the trial"


def _decay(recipe: Recipe) -> str:
    decay = recipe.transfer.layer_decay
    return f", each part at {decay:g} of the rate of the one above it" if decay < 1 else ""


def _lora(recipe: Recipe) -> str:
    transfer = recipe.transfer
    layers = transfer.target_modules
    where = "every linear layer of the blocks" if isinstance(layers, str) else ", ".join(layers)
    return (
        f"{transfer.strategy}: the head and updates of rank {transfer.lora_rank} (alpha {transfer.lora_alpha:g}, dropout "
        f"{transfer.dropout or 0:g}) on {where} are trained"
    )


def _train(recipe: Recipe) -> str:
    train = recipe.train
    return (
        f"{_count(train.epochs, 'epoch')}, {train.optimizer} at learning rate {train.learning_rate:g}, "
        f"{train.lr_schedule} after {train.warmup_ratio:g} warm-up, weight decay {train.weight_decay:g}, "
        f"precision {train.precision}, seed {train.seed}"
    )


def _batch(plan: BatchPlan) -> str:
    workers, steps = _count(plan.world_size, "worker"), _count(plan.accumulation_steps, "accumulation step")
    return f"{plan.global_batch_size} samples per step = {workers} x micro-batch {plan.micro_batch_size} x {steps}"


def _sharding(recipe: Recipe) -> str:
    settings = recipe.deepspeed
    what = ("nothing", "optimizer state", "optimizer state and gradients", "optimizer state, gradients and parameters")
    moved = [name for name in ("offload_optimizer", "offload_param") if getattr(settings, name) != "none"]
    return f"ZeRO-{settings.zero_stage}: {what[settings.zero_stage]} sharded" + (
        f"; {' and '.join(moved)}: cpu" if moved else ""
    )


def _workers(recipe: Recipe) -> str:
    needs = recipe.resources
    gpus = (
        "a GPU each where there are any"
        if needs.gpus_per_worker == "auto"
        else f"{_count(needs.gpus_per_worker, 'GPU')} each"
    )
    each = f"{_count(needs.cpus_per_worker, 'CPU')} and {gpus}"
    kind = f" on {needs.accelerator}" if needs.accelerator else ""
    more = "".join(f", {workers_at(recipe, rung)} from {rung:.4g} on" for rung in resizing_rungs(recipe))
    return f"{needs.workers} per trial{more}, {each}{kind}, {needs.placement}, isolation {needs.isolation}"


def _checkpoints(recipe: Recipe) -> str:
    settings = recipe.checkpoint
    every = [
        f"every {_count(value, unit)}"
        for unit, value in (
            ("step", settings.every_steps),
            ("epoch", settings.every_epochs),
            ("minute", settings.every_minutes),
        )
        if value is not None
    ]
    when = ", ".join([*every, "at each report"])
    kept = f"the last {settings.keep_last} and the best {settings.keep_best} of a trial are kept"
    if settings.keep_best_overall > settings.keep_best:
        kept += f", the best {settings.keep_best_overall} of all trials"
    if settings.keep_stopped is not None:
        kept += f", the last {settings.keep_stopped} of one that ended early"
    if recipe.budget.bytes is not None:
        kept += f", {recipe.budget.bytes} bytes in all"
    return f"{when}; {kept}"


def _failures(recipe: Recipe) -> str:
    most = recipe.failures
    memory = {"fail": "fails", "adapt": "goes on with milder settings"}[most.on_oom]
    survived = [
        _count(most.max_lost_workers, "lost worker"),
        _count(most.max_lost_nodes, "lost node"),
        f"{_count(most.max_hangs, 'hang')} (of {_count(most.hang_minutes, 'minute')})",
    ]
    return f"a trial survives {', '.join(survived)}; out of memory it {memory}"


def _search(recipe: Recipe) -> Iterator[PlanRow]:
    search = recipe.search
    judged = ", ".join(f"{mode} of {metric}" for metric, mode in zip(search.metrics, search.modes, strict=True))
    at_once = "" if search.at_once is None else f" ({search.at_once} at a time at most)"
    yield PlanRow(
        "trials",
        f"{search.trials}{at_once} by {_chosen(search.algorithm)}, scheduler {search.scheduler.name}, {judged}",
    )
    if mutated := mutated_keys(recipe):
        yield PlanRow("  changed in mid-trial", ", ".join(mutated))
    if search.from_ is not None:
        yield PlanRow("  warmed by", search.from_)
    for key in in_order(search.space):
        yield PlanRow(f"  {key}", in_words(search.space[key]))
    for place, point in enumerate(search.first, start=1):
        yield PlanRow(f"  first {place}", in_one_line(point))


def _budget(recipe: Recipe) -> Iterator[PlanRow]:
    budget = recipe.budget
    limits = [
        f"{_count(value, unit)}"
        for value, unit in ((budget.hours, "hour"), (budget.worker_hours, "worker-hour"))
        if value is not None
    ]
    if limits:
        yield PlanRow("budget", f"{' and '.join(limits)} over all drivers; then it stops, resumable")
    if budget.price_per_worker_hour is not None:
        yield PlanRow("price", f"{budget.price_per_worker_hour:g} per worker-hour")


def _chosen(algorithm: Algorithm) -> str:
    return f"optuna {algorithm.sampler}" if algorithm.optuna is not None else algorithm.name


def _listed(fractions: tuple[float, ...]) -> str:
    if len(fractions) > 8:
        return f"{_listed(fractions[:4])}, ... {_listed(fractions[-2:])}"
    return ", ".join(f"{fraction:.4g}" for fraction in fractions)


def _count(number: Number, what: str) -> str:
    return f"{number:g} {what}" + ("" if number == 1 else "s")
