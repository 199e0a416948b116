"""Rules between settings of one recipe: combinations that could never run.

Owns every rule that needs no search space (`space_checks.py` has those), no file and no network; those of `transfer` are in
`transfer_checks.py`. Each rule yields
faults; none stops the others. Called by `build.py` on every recipe, so also on every sampled point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tlcore.errors import Fault, RecipeError
from tlcore.recipe.batch import divisors, plan_batch
from tlcore.recipe.credentials import shown
from tlcore.recipe.data_schema import DataSection
from tlcore.recipe.fields import close_to, literal_values
from tlcore.recipe.owned import owned_faults
from tlcore.recipe.rungs import scheduler_fractions, world_sizes
from tlcore.recipe.schema import Recipe
from tlcore.recipe.task_table import TASK_TABLE, metrics_of, takers
from tlcore.recipe.transfer_checks import transfer_faults

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HUB_DATA: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?/[A-Za-z0-9][\w-]*")
"""Looks like a hub dataset's id, and not like a file."""
_HUB_MODEL: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_BUCKET: Final = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9.-]{1,61}[A-Za-z0-9](?:/.*)?")


def faults_between(recipe: Recipe) -> list[Fault]:
    """Every fault that a well-typed recipe has in itself, its search space aside."""
    return [fault for rule in _RULES for fault in rule(recipe)]


def is_hub_id(source: str) -> bool:
    """Whether a `model.source` is taken for the id of a hub model: it looks like one, and no directory here has that path."""
    return _HUB_MODEL.fullmatch(source) is not None and not Path(source).is_dir()


def _name(recipe: Recipe) -> Iterator[Fault]:
    if not _NAME.fullmatch(recipe.name):
        text = "give up to 63 letters, digits, dots, dashes or underscores, the first a letter or digit"
        yield Fault("name", f"got {shown(recipe.name)}, which cannot name a folder in the store; {text}")


def _storage(recipe: Recipe) -> Iterator[Fault]:
    place = recipe.storage
    scheme = place.partition("://")[0] if "://" in place else ""
    if scheme not in ("", "s3", "file") or not place.strip():
        yield Fault("storage", f"got {shown(place)}; give s3://bucket/prefix, file:///directory, or a directory")
    elif scheme == "s3" and not _BUCKET.fullmatch(place):
        yield Fault("storage", f"got {shown(place)}, which names no bucket; give s3://bucket/prefix")
    elif scheme == "file" and not place.startswith("file:///"):
        yield Fault("storage", f"got {shown(place)}, which names a host; give file:///directory with three slashes")


def _texts(recipe: Recipe) -> Iterator[Fault]:
    """Texts that must say something."""
    data = recipe.data
    columns = {f"data.{key}": getattr(data, key) for key in TASK_TABLE[recipe.task].columns}
    must = {"model.source": recipe.model.source, "data.train": data.train, "data.chat_template": data.chat_template}
    for path, value in (must | columns).items():
        if value is not None and not value.strip():
            yield Fault(path, f"got {shown(value)}; give a text that is not empty")


def _model(recipe: Recipe) -> Iterator[Fault]:
    source = recipe.model.source
    if recipe.model.trust_remote_code and recipe.model.revision is None and is_hub_id(source):
        yield Fault(
            "model.trust_remote_code", "got true without model.revision; name the revision whose code you have read"
        )
    if source.startswith("package:") and "/" not in source:
        yield Fault("model.source", f"got {shown(source)}; give package:name/directory inside that package")


def _data(recipe: Recipe) -> Iterator[Fault]:
    data = recipe.data
    for key in ("validation", "test"):
        if getattr(data, key) == data.train:
            split = f", or {data.train}:{key} of a hub dataset" if _HUB_DATA.fullmatch(data.train) else ""
            yield Fault(
                f"data.{key}",
                f"got {shown(data.train)}, the same as data.train; "
                f"give other examples, or a fraction for validation{split}",
            )
    if data.test is not None and data.test == data.validation:
        yield Fault(
            "data.test",
            f"got {shown(data.test)}, the same as data.validation; the test examples are for the final figures alone",
        )
    yield from _columns(recipe)
    if recipe.task == "text-generation":
        yield from _learned(recipe)
    if recipe.task == "translation":
        yield from _languages(recipe)
    yield from _one_class(recipe)
    if data.labels is not None:
        if len(data.labels) < 2 and recipe.task != "object-detection":  # which tells one kind from nothing
            yield Fault(
                "data.labels", f"got {len(data.labels)} class; give at least 2, or null to take them from the examples"
            )
        for name in sorted({name for name in data.labels if data.labels.count(name) > 1}):
            yield Fault("data.labels", f"got {shown(name)} twice; give each class once")


def _columns(recipe: Recipe) -> Iterator[Fault]:
    """Columns are different ones, and settings are those that the task takes."""
    row, seen = TASK_TABLE[recipe.task], dict[str, str]()
    for key in row.columns:
        name = getattr(recipe.data, key)
        if name is not None and name in seen:
            yield Fault(f"data.{key}", f"got {shown(name)}, the same column as data.{seen[name]}; name another one")
        seen.setdefault(name, key)
    for key, field in DataSection.model_fields.items():
        value = getattr(recipe.data, key)
        if not row.takes(key) and value != field.default:
            *others, last = takers(key)
            only = f"{', '.join(others)} and {last} take" if others else f"{last} takes"
            yield Fault(f"data.{key}", f"got {shown(value)} with task {recipe.task}; only {only} it, so take it out")


def _one_class(recipe: Recipe) -> Iterator[Fault]:
    """What goes with one class per example alone, and not with numbers, or with any number of classes."""
    data, smoothing = recipe.data, recipe.train.label_smoothing
    if data.regression:
        for key, given in (("multi_label", data.multi_label), ("labels", data.labels)):
            if given:
                text = f"got {shown(given)} with data.regression, whose labels are numbers and no classes"
                yield Fault(f"data.{key}", f"{text}; take one of them out")
    other = next((f"data.{key}" for key in ("regression", "multi_label") if getattr(data, key)), None)
    if other is not None and data.class_weights is not None:
        text = f"got {shown(data.class_weights)} with {other}; it weighs examples of one class each, so take it out"
        yield Fault("data.class_weights", text)
    if smoothing and (other is not None or not TASK_TABLE[recipe.task].takes("class_weights")):
        *others, last = takers("class_weights")
        what = f"with {other}" if other is not None else f"with task {recipe.task}"
        text = f"got {shown(smoothing)} {what}; {', '.join(others)} and {last} take it, with one class per example"
        yield Fault("train.label_smoothing", f"{text}, so set it to 0")


def _learned(recipe: Recipe) -> Iterator[Fault]:
    """A row is a text, a prompt with its answer, or a conversation."""
    data = recipe.data
    if data.messages is not None and data.target is not None:
        text = f"got {shown(data.target)} with data.messages {shown(data.messages)}"
        yield Fault(
            "data.target", f"{text}; a row is a prompt and its answer or a conversation, so take one of them out"
        )
    if data.input is not None and data.target is None:
        text = f"got {shown(data.input)} without data.target; it is part of a prompt"
        yield Fault("data.input", f"{text}: name the column with the answers, or take it out")
    if data.chat_template is not None and data.messages is None and data.target is None:
        text = f"got {shown(data.chat_template)} with plain texts, which it does not write"
        yield Fault("data.chat_template", f"{text}: name data.messages, or data.target, or take it out")


def _languages(recipe: Recipe) -> Iterator[Fault]:
    """A model is told both languages, or none."""
    for key, other in (("source_language", "target_language"), ("target_language", "source_language")):
        if (given := getattr(recipe.data, key)) is not None and getattr(recipe.data, other) is None:
            text = f"got null with data.{key} {shown(given)}; a model of many languages is told both"
            yield Fault(f"data.{other}", f"{text}: give the code of this one, or take the other out")


def _batch(recipe: Recipe) -> Iterator[Fault]:
    try:
        plan_batch(recipe, recipe.resources.workers)
    except RecipeError as error:
        yield from error.faults


def _workers_by_rung(recipe: Recipe) -> Iterator[Fault]:
    """The shape of `asha.workers`, and that the batch divides at every world size on the way."""
    asha = recipe.search.scheduler.asha
    if asha is None or asha.workers is None:
        return
    path, given, first = "search.scheduler.asha.workers", list(asha.workers), recipe.resources.workers
    rungs = scheduler_fractions(recipe)
    if len(given) != len(rungs) + 1:
        where = ", ".join(f"{rung:.4g}" for rung in rungs) or "none"
        text = f"got {shown(given)}, {_numbers(len(given))} for {_numbers(len(rungs), 'rung')} (at {where})"
        yield Fault(path, f"{text}; give {len(rungs) + 1}: on the way to each rung, and from the last one to the end")
    elif given[0] != first:
        text = f"got {shown(given)}, which begins with {given[0]}, but resources.workers is {first}"
        yield Fault(path, f"{text}; set resources.workers to {given[0]}, or begin with {first}")
    else:
        yield from _batch_by_rung(recipe, path)


def _batch_by_rung(recipe: Recipe, path: str) -> Iterator[Fault]:
    whole = recipe.train.global_batch_size
    for workers in world_sizes(recipe)[1:]:
        if whole % workers:
            would_do = ", ".join(str(size) for size in divisors(whole) if size <= 2 * workers)
            text = f"got {workers} workers, over which train.global_batch_size={whole} does not divide"
            yield Fault(path, f"{text}; give some of {would_do}, or another batch")
            return
        try:
            plan_batch(recipe, workers)
        except RecipeError as error:
            yield Fault(path, f"got {workers} workers, at which {error.faults[0]}")
            return


def _accelerator(recipe: Recipe) -> Iterator[Fault]:
    needs = recipe.resources
    if needs.accelerator is None:
        return
    path, got = "resources.accelerator", shown(needs.accelerator)
    if not needs.accelerator.strip():
        yield Fault(path, f"got {got}; give a type such as A100, or null for any")
    elif needs.gpus_per_worker == 0:
        yield Fault(path, f"got {got} with gpus_per_worker 0; set resources.gpus_per_worker, or take it out")


def _shared_gpu(recipe: Recipe) -> Iterator[Fault]:
    needs = recipe.resources
    share, most = needs.gpus_per_worker, max(world_sizes(recipe))
    if share == "auto" or not 0 < share <= 0.5 or most == 1 or needs.placement == "strict_spread":
        return
    text = f"got {share:g} with {most} workers, of which two may share a GPU; NCCL joins ranks with one each"
    yield Fault("resources.gpus_per_worker", f"{text}: set resources.workers to 1, or this above 0.5")


def _numbers(count: int, what: str = "number") -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _deepspeed(recipe: Recipe) -> Iterator[Fault]:
    settings = recipe.deepspeed
    if settings.offload_param != "none" and settings.zero_stage != 3:
        stage = settings.zero_stage
        text = f"got {settings.offload_param} with zero_stage {stage}; parameters are sharded at stage 3 alone"
        yield Fault("deepspeed.offload_param", f"{text}: set deepspeed.zero_stage to 3, or this to none")
    if settings.offload_optimizer != "none" and settings.zero_stage == 0:
        text = f"got {settings.offload_optimizer} with zero_stage 0; optimizer state is sharded from stage 1 on"
        yield Fault("deepspeed.offload_optimizer", f"{text}: set deepspeed.zero_stage to 1, 2 or 3, or this to none")
    if recipe.train.precision in ("bf16", "fp16") and settings.zero_stage == 0:
        text = f"got {recipe.train.precision} with zero_stage 0, at which checkpoints do not reach DeepSpeed's 16-bit training"
        better = "deepspeed.zero_stage to 1 (the same memory on one worker, less on several)"
        yield Fault("train.precision", f"{text}: set {better}, or this to auto or fp32")
    yield from owned_faults(settings.extra)


def _metric(recipe: Recipe) -> Iterator[Fault]:
    search, known = recipe.search, metrics_of(recipe.task, recipe.data.regression)
    if not search.metrics or len(search.metrics) != len(search.modes):
        text = f"got {len(search.modes)} for {len(search.metrics)} metrics; give a list with one of max, min for each"
        yield Fault("search.mode", text if search.metrics else "got no metric; give at least one search.metric")
        return
    for metric, mode in zip(search.metrics, search.modes, strict=True):
        reporting = recipe.task + (" with data.regression" if recipe.data.regression else "")
        yield from _one_metric(reporting, known, metric, mode)
    for metric in sorted({metric for metric in search.metrics if search.metrics.count(metric) > 1}):
        yield Fault("search.metric", f"got {metric} twice; give each metric once")


def _one_metric(reporting: str, known: Mapping[str, str], metric: str, mode: str) -> Iterator[Fault]:
    if metric not in known:
        meant = close_to(metric, tuple(known))
        hint = f"; did you mean '{meant}'?" if meant else ""
        yield Fault("search.metric", f"got {shown(metric)}; {reporting} reports {', '.join(known)}{hint}")
    elif mode != known[metric]:
        better = "more" if known[metric] == "max" else "less"
        text = f"got {mode} with metric {metric}, of which {better} is better"
        yield Fault("search.mode", f"{text}; give {known[metric]}")


def _one_of(recipe: Recipe) -> Iterator[Fault]:
    for key, section in (("algorithm", recipe.search.algorithm), ("scheduler", recipe.search.scheduler)):
        if len(section.given) > 1:
            yield Fault(f"search.{key}", f"got {' and '.join(section.given)}; give one")


def _baselines(recipe: Recipe) -> Iterator[Fault]:
    given = recipe.report.baselines
    known = tuple(word for word in literal_values("transfer.strategy") if word != "last_n")
    for word in dict.fromkeys(given):
        if word not in known:
            text = (
                "it needs transfer.n, which a baseline has not" if word == "last_n" else "no strategy of this version"
            )
            yield Fault("report.baselines", f"got {shown(word)}: {text}; give some of {', '.join(known)}")
        if given.count(word) > 1:
            yield Fault("report.baselines", f"got {word} twice; give each strategy once")
    for key in ("freeze", "train", "schedule", "target_modules"):
        # a list is no value of a search space, and the comparison is one (`sweep/baselines.py`)
        if given and isinstance(value := getattr(recipe.transfer, key), tuple) and value:
            yield Fault(
                "report.baselines", f"does not go with a list in transfer.{key}; give one text there, or no baselines"
            )


_RULES: Final[tuple[Callable[[Recipe], Iterator[Fault]], ...]] = (
    _name,
    _storage,
    _texts,
    _model,
    _data,
    transfer_faults,
    _batch,
    _workers_by_rung,
    _accelerator,
    _shared_gpu,
    _deepspeed,
    _metric,
    _one_of,
    _baselines,
)
