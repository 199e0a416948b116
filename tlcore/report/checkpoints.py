"""Which checkpoints a word on the command line names, and what `tlcore checkpoints` prints about them.

Owns the finding and the words, as text and as JSON; reads object storage alone. Called by `commands/storage.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.console import RenderableType
from rich.table import Table

from tlcore.checkpoint import CheckpointRef, GcReport, Manifest, Problem, read_manifest, verify
from tlcore.checkpoint.prune import Pruned
from tlcore.errors import CheckpointError, ObjectMissing, RequestError
from tlcore.report import figures
from tlcore.report.runs import committed_steps, find_run, read_run, storage_of
from tlcore.storage import ObjectStore, RunRef, open_store
from tlcore.storage.keys import RUN_JSON, TRIALS_PREFIX, is_run_id, manifest_key

_THREADS = 16
_OF_TRIAL = re.compile(rf"(?P<run>.+)/{TRIALS_PREFIX}(?P<trial>[^/]*)/*\Z")
"""A trial's URL, from its end: what comes before may hold anything."""
_SHORT = re.compile(r"(?P<run>.+)/(?P<trial>t\d{3,})/*\Z")
"""The same as people write it, `<run>/t003`; no run's id looks like it, but a directory may."""


@dataclass(frozen=True)
class Damaged:
    """A checkpoint whose manifest cannot be read, and why."""

    trial: str
    step: int
    text: str


@dataclass(frozen=True)
class FoundCheckpoints:
    """What a word names: the store of the run, its committed checkpoints by trial and step, and the unreadable ones."""

    store: ObjectStore
    manifests: Sequence[Manifest]
    damaged: Sequence[Damaged]


def find_checkpoints(where: str, storage: str, trial: str | None = None) -> FoundCheckpoints:
    """The committed checkpoints that a word names.

    Args:
        where: a checkpoint's URL, a trial's (`<run>/trials/<trial>` or `<run>/<trial>`), or whatever `find_run` takes.
        trial: only those of this trial.

    Raises ObjectMissing for a run, trial or checkpoint that is not there, naming those that are.
    """
    if CheckpointRef.is_one(where):
        ref = CheckpointRef.parse(where)
        store = open_store(ref.run_url)
        if ref.step not in committed_steps(store).get(ref.trial, ()):
            raise _no_checkpoint(store, ref.trial, ref.step)
        found = _read_manifests(store, [(ref.trial, ref.step)])
        if not (found.manifests or found.damaged):
            raise _no_checkpoint(store, ref.trial, ref.step)
        return found
    run, trial = _split(where, storage, trial)
    store = run.open()
    steps = committed_steps(store)
    if not steps:
        require_run(store)
    if trial is not None and trial not in steps:
        raise _no_checkpoint(store, trial)
    return _read_manifests(store, [(name, step) for name in steps if trial in (None, name) for step in steps[name]])


def require_run(store: ObjectStore) -> None:
    """Raise ObjectMissing where nothing says that a run is at the root of `store`: a mistyped URL finds nothing, too."""
    try:
        store.get(RUN_JSON)
    except ObjectMissing as error:
        if not committed_steps(store):
            raise ObjectMissing(f"no run at {store.url}", hint="`tlcore list` shows what there is") from error


def choose_checkpoint(where: str, storage: str, trial: str | None = None) -> tuple[ObjectStore, Manifest]:
    """The one checkpoint that a word means: the one it names, or the best of the trial it names, or of the run's best trial; which
    one is best `StoredRun.chosen_step` says.

    Raises ObjectMissing as `find_checkpoints`, RequestError where a run of several trials has no best one yet;
    CheckpointCorrupt where its manifest cannot be read.
    """
    if CheckpointRef.is_one(where):
        return CheckpointRef.parse(where).open()
    run, trial = _split(where, storage, trial)
    store = run.open()
    steps = committed_steps(store)
    if trial is None:
        trial = _best_trial(where, run, steps)
    if trial not in steps:
        raise _no_checkpoint(store, trial)
    return store, read_manifest(store, trial, _chosen_step(run, trial, steps[trial]))


def _best_trial(where: str, run: RunRef, steps: Mapping[str, Sequence[int]]) -> str:
    if len(steps) == 1:
        return next(iter(steps))
    best = read_run(run, checkpoints=False).best
    if best is None:
        raise RequestError(
            f"{where}: no trial has reported yet, so none is the best",
            hint=f"name one, as {where.rstrip('/')}/<trial>; with checkpoints: {', '.join(steps) or 'none'}",
        )
    return best.trial


def _chosen_step(run: RunRef, trial: str, steps: Sequence[int]) -> int:
    """The newest where nothing says what the run was after: checkpoints alone were copied here."""
    if len(steps) == 1:
        return steps[0]
    try:
        run.identity()
    except ObjectMissing:
        return steps[-1]
    chosen = read_run(run).chosen_step(trial)
    return steps[-1] if chosen is None else chosen


def _split(where: str, storage: str, trial: str | None) -> tuple[RunRef, str | None]:
    """The run, and the trial that the word or the option names."""
    run, named = where, ""
    match = _OF_TRIAL.match(where)
    if match is not None and is_run_id(match["trial"]):  # a recipe may be named `trials`
        match = None
    if match is None and (short := _SHORT.match(where)) is not None:
        is_short = storage_of(where, storage) != where or is_run_id(short["run"].rpartition("/")[2])
        match = short if is_short else None
    if match is not None:
        run, named = match["run"], match["trial"]
    return find_run(run, storage), trial or named or None


def _no_checkpoint(store: ObjectStore, trial: str, step: int | None = None) -> ObjectMissing:
    steps = committed_steps(store)
    if trial in steps and step is not None:
        there = ", ".join(map(str, steps[trial]))
        return ObjectMissing(f"no checkpoint of step {step} of trial {trial!r} in {store.url}", hint=f"steps: {there}")
    hint = f"trials with any: {', '.join(steps)}" if steps else "the run has no checkpoint at all"
    return ObjectMissing(f"no checkpoint of trial {trial!r} in {store.url}", hint=hint)


def _read_manifests(store: ObjectStore, wanted: Sequence[tuple[str, int]]) -> FoundCheckpoints:
    """What can be read of those listed and what cannot, without those that retention has deleted since they were listed."""

    def read(at: tuple[str, int]) -> Manifest | Damaged | None:
        try:
            return read_manifest(store, *at)
        except CheckpointError as error:
            return Damaged(*at, error.message) if _is_committed(store, *at) else None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(read, wanted))
    manifests = [each for each in found if isinstance(each, Manifest)]
    return FoundCheckpoints(store, manifests, [each for each in found if isinstance(each, Damaged)])


def _is_committed(store: ObjectStore, trial: str, step: int) -> bool:
    key = manifest_key(trial, step)
    return any(each.key == key for each in store.list(key))


def _is_unchanged(store: ObjectStore, manifest: Manifest) -> bool:
    """Whether the checkpoint is still the one of this manifest, readable or not."""
    try:
        return read_manifest(store, manifest.trial, manifest.step).attempt == manifest.attempt
    except CheckpointError:
        return _is_committed(store, manifest.trial, manifest.step)


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """One checkpoint as `tlcore checkpoints list --json` prints it."""
    return {
        "trial": manifest.trial,
        "step": manifest.step,
        "written": manifest.written,
        "world_size": manifest.world_size,
        "zero_stage": manifest.zero_stage,
        "state_bytes": manifest.totals.state_bytes,
        "new_bytes": manifest.totals.new_bytes,
        "metrics": dict(manifest.metrics),
        "parent": manifest.parent,
        "key": manifest.key,
        "damaged": None,
    }


def damaged_json(each: Damaged) -> dict[str, Any]:
    """A checkpoint whose manifest cannot be read, in the same list."""
    return {"trial": each.trial, "step": each.step, "damaged": each.text}


def manifest_table(manifests: Iterable[Manifest]) -> RenderableType:
    """Checkpoints for people; `uploaded` is what the save itself sent, the rest was in the store already."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("trial")
    for heading in ("step", "ranks", "ZeRO", "state", "uploaded"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("written", no_wrap=True)
    for each in manifests:
        table.add_row(
            each.trial,
            str(each.step),
            str(each.world_size),
            figures.ABSENT if each.zero_stage is None else str(each.zero_stage),
            figures.size(each.totals.state_bytes),
            figures.size(each.totals.new_bytes),
            each.written[:19].replace("T", " "),
        )
    return table


@dataclass(frozen=True)
class Verdict:
    """One checkpoint after every byte of it was looked at; without problems it restores."""

    trial: str
    step: int
    size_bytes: int
    problems: Sequence[Problem]

    @classmethod
    def on_damaged(cls, each: Damaged) -> Self:
        """On a checkpoint of which not even the manifest can be read."""
        return cls(each.trial, each.step, 0, [Problem(manifest_key(each.trial, each.step), each.text)])


def judge(store: ObjectStore, manifest: Manifest, progress: Callable[[int], None]) -> Verdict | None:
    """Look at every byte of a checkpoint; None where it was deleted, or replaced by a later attempt's, before it was read.

    Raises StorageError where the store does not answer.
    """
    problems = verify(store, manifest, progress=progress)
    if problems and not _is_unchanged(store, manifest):
        return None
    return Verdict(manifest.trial, manifest.step, manifest.totals.state_bytes, problems)


def verdict_line(verdict: Verdict, verdicts: Sequence[Verdict]) -> str:
    """One checkpoint for people: whole, or everything wrong with it and which older one of its trial is whole."""
    name = f"{verdict.trial} step {verdict.step}"
    if not verdict.problems:
        return f"{name}: whole, {figures.size(verdict.size_bytes)}"
    older = [
        each.step for each in verdicts if each.trial == verdict.trial and each.step < verdict.step and not each.problems
    ]
    instead = f"step {max(older)} is whole" if older else "no older one that was looked at is whole"
    return f"{name}: DAMAGED, {instead}\n" + "\n".join(f"  {problem}" for problem in verdict.problems)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The same for programs."""
    return {
        "trial": verdict.trial,
        "step": verdict.step,
        "whole": not verdict.problems,
        "state_bytes": verdict.size_bytes,
        "problems": [{"key": each.key, "text": each.text} for each in verdict.problems],
    }


def gc_lines(report: GcReport) -> list[str]:
    """What a collection did, or would do, by trial."""
    went = "would go" if report.dry_run else "deleted"
    lines = []
    for trial, share in report.trials.items():
        chunks = f"{figures.count(share.chunks, 'chunk')}, {figures.size(share.chunk_bytes)}"
        if not trial:
            lines.append(f"  of no trial any more: {chunks}")
            continue
        steps = f"; steps {', '.join(map(str, sorted(share.steps)))}" if share.steps else ""
        lines.append(f"  {trial}: {chunks}, {figures.count(share.objects, 'leftover')}{steps}")
    total = (
        f"{went}: {figures.count(report.deleted, 'chunk')}, {figures.size(report.deleted_bytes)}"
        f" and {figures.count(report.deleted_leftovers, 'leftover')} of abandoned or deleted checkpoints"
    )
    if report.deleted_halves:
        lines.append(f"  {figures.count(report.deleted_halves, 'half-written file')} of killed writers")
    return [total, *lines, f"kept: {figures.count(report.kept, 'chunk')}, {figures.size(report.kept_bytes)}"]


def pruned_lines(pruned: Pruned | None, dry_run: bool) -> list[str]:
    """What retention over the sweep took away, or would; nothing where it had nothing to do."""
    if pruned is None:
        return []
    went = "would be deleted" if dry_run else "deleted"
    lines = [f"{each.trial} step {each.step}: {went}, {each.reason}" for each in pruned.deleted]
    if pruned.deleted:
        lines.append("  what these alone need goes with a later collection, once the grace period is over")
    if pruned.decision.over_bytes:
        lines.append(f"  what must be kept is {figures.size(pruned.decision.over_bytes)} more than budget.bytes")
    return lines


def pruned_json(pruned: Pruned | None) -> dict[str, Any]:
    """The same for programs."""
    if pruned is None:
        return {"checkpoints_deleted": [], "over_bytes": 0}
    return {
        "checkpoints_deleted": [asdict(each) for each in pruned.deleted],
        "over_bytes": pruned.decision.over_bytes,
    }


def gc_json(report: GcReport) -> dict[str, Any]:
    """The same for programs."""
    facts = asdict(report)
    facts["trials"] = [
        {"trial": trial or None, **asdict(share), "steps": sorted(share.steps)}
        for trial, share in report.trials.items()
    ]
    return facts
