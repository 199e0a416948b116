"""What `tlcore list` and `tlcore show` print, read from object storage alone.

Owns the reading and the words, as text and as JSON. Needs no cluster, no local file and no Ray: `run.json`, the journal
and the manifests say everything. A run that stopped without saying so is called unfinished, with the age of its last
entry: storage cannot tell a killed sweep from a slow one. Called by `cli.py` and `checkpoints.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tlcore.checkpoint import CheckpointRef, best_step
from tlcore.errors import ObjectMissing, RecipeError, StorageError
from tlcore.recipe import Recipe, apply_point, difference, recipe_from_dict
from tlcore.report import figures
from tlcore.report.findings import front_table, lineage_json, lineage_lines, loss_lines, warmed_line
from tlcore.report.rows import RUNNING, UNFINISHED, TrialRow
from tlcore.report.tables import best_lines, chosen_words, final_table, gain_line
from tlcore.report.usage import usage_lines
from tlcore.report.view import SweepView
from tlcore.storage import ObjectStore, RunRef, list_runs, newest_run, parse_run_url
from tlcore.storage.journal import Entry, read_journal
from tlcore.storage.keys import TRIALS_PREFIX, parse_manifest_key

_THREADS = 16
FINISHED = "finished"
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class StoredRun:
    """One run as the store has it. `checkpoints` are the committed steps of each trial, ascending."""

    ref: RunRef
    identity: Mapping[str, Any]
    entries: Sequence[Entry]
    view: SweepView
    checkpoints: Mapping[str, Sequence[int]]

    @property
    def state(self) -> str:
        """`finished` when the journal says so."""
        return FINISHED if self.view.state.finished else UNFINISHED

    @property
    def final(self) -> Mapping[str, float]:
        """Metrics of the best trial on the test data, empty when they were not taken: of what was the best one once they may be."""
        return self._final_entry.get("metrics") or {}

    @property
    def _final_entry(self) -> Entry:
        finals = (entry for entry in reversed(self.entries) if entry["kind"] == "final")
        of_best = (entry for entry in finals if self.best is None or entry.get("trial") == self.best.trial)
        return next(of_best, {})

    def chosen_step(self, trial: str) -> int | None:
        """Step of the checkpoint to use of a trial, None for one without any: what the test figures are of, where they were taken
        and it is still there; else its best. Raises StorageError."""
        steps, final = self.checkpoints.get(trial, ()), self._final_entry
        if steps and final.get("trial") == trial:
            named = final.get("checkpoint")  # a run without Ray took them of its last state, and did not say so
            step = CheckpointRef.parse(named).step if named else steps[-1]
            if step in steps:
                return step
        return best_step(self.ref.open(), trial, *self.metrics, steps=steps)

    def rows(self) -> list[TrialRow]:
        """One row per trial, with the newest checkpoint that the store really has; what runs may also be dead."""
        return [
            replace(
                row,
                state=UNFINISHED if row.state == RUNNING else row.state,
                checkpoint_step=max(self.checkpoints.get(row.trial, ()), default=None),
            )
            for row in self.view.rows()
        ]

    @property
    def expected_trials(self) -> int:
        """How many trials are to come in all; not less than there are, where a resume asked for fewer."""
        return max(self.view.expected_trials, len(self.view.state.trials))

    @property
    def metrics(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Every metric of the search, and the mode of each."""
        search = (self.identity.get("recipe") or {}).get("search") or {}
        return _listed(search.get("metric", "")), _listed(search.get("mode", "max"))

    @property
    def best(self) -> TrialRow | None:
        """The best trial so far."""
        return self.view.best()


@dataclass(frozen=True)
class UnreadableRun:
    """A run that was started and cannot be read, and why."""

    ref: RunRef
    reason: str


def storage_of(word: str, storage: str) -> str:
    """Where to look for what a word names: the word itself when it is a URL or a path, else `storage`."""
    return word if "://" in word or word.startswith(("/", "./", "../", "~/")) else storage


def find_run(sweep: str, storage: str) -> RunRef:
    """The run that a word names: `name` (its newest run), `name/run-id`, or the run's URL or directory."""
    if storage_of(sweep, storage) == sweep:
        return parse_run_url(sweep)
    name, _, run_id = sweep.strip("/").partition("/")
    if not run_id:
        return newest_run(storage, name)
    for ref in list_runs(storage, name):
        if ref.run_id == run_id:
            return ref
    raise ObjectMissing(f"no run {run_id!r} of {name!r} in {storage}", hint="`tlcore list` shows what there is")


def read_run(ref: RunRef, *, checkpoints: bool = True) -> StoredRun:
    """Read one run; without `checkpoints` its trials are not listed, which is what a list of many runs wants."""
    store, identity = ref.open(), ref.identity()
    entries = read_journal(store)
    recipe = identity.get("recipe") or {}
    search = recipe.get("search") or {}
    title = f"{ref.name}/{ref.run_id}"
    expected = 1 if identity.get("kind") == "train" else int(search.get("trials", 0))
    metrics, modes = _listed(search.get("metric", "")), _listed(search.get("mode", "max"))
    view = SweepView(title, metrics[0], modes[0], expected, entries)
    return StoredRun(ref, identity, entries, view, committed_steps(store) if checkpoints else {})


def _listed(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else (str(value),)


def committed_steps(store: ObjectStore) -> dict[str, list[int]]:
    """Trial to the steps of its committed checkpoints, ascending."""
    found: dict[str, list[int]] = {}
    for info in store.list(TRIALS_PREFIX):
        parsed = parse_manifest_key(info.key)
        if parsed is not None:
            found.setdefault(parsed.trial, []).append(parsed.step)
    return {trial: sorted(steps) for trial, steps in sorted(found.items())}


def all_runs(storage: str) -> list[StoredRun | UnreadableRun]:
    """Every run that was started in a storage, newest first; one that is damaged hides none of the others."""
    with ThreadPoolExecutor(_THREADS) as pool:
        read = pool.map(_started, list_runs(storage))
        return sorted((run for run in read if run is not None), key=lambda run: run.ref.run_id, reverse=True)


def _started(ref: RunRef) -> StoredRun | UnreadableRun | None:
    try:
        return read_run(ref, checkpoints=False)
    except ObjectMissing:
        return None
    except StorageError as error:
        if error.retry_helps:  # that is the store's trouble, not this run's
            raise
        return UnreadableRun(ref, error.message)


def list_table(runs: Iterable[StoredRun | UnreadableRun], now: datetime) -> RenderableType:
    """Runs, newest first: what each found and whether it ended."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("last entry", no_wrap=True)
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("best")
    for run in runs:
        table.add_row(*_list_cells(run, now))
    return table


def _list_cells(run: StoredRun | UnreadableRun, now: datetime) -> list[Text]:
    if isinstance(run, UnreadableRun):
        title = f"{run.ref.name}/{run.ref.run_id}"
        return [Text(title), Text(UNREADABLE, "red"), *[Text(figures.ABSENT)] * 2, Text(run.reason)]
    rows, best = run.view.rows(), run.best
    age = _age_s(run, now)
    found = f"{figures.metric(best.metric)} {run.view.metric} ({best.trial})" if best else figures.ABSENT
    return [
        Text(run.view.title),
        Text(run.state, "green" if run.state == FINISHED else "yellow"),
        Text(figures.ABSENT if age is None else f"{figures.duration(age)} ago"),
        Text(f"{sum(row.ended for row in rows)}/{run.expected_trials}"),
        Text(found),
    ]


def _age_s(run: StoredRun, now: datetime) -> float | None:
    if not run.entries:
        return None
    return (now - datetime.fromisoformat(run.entries[-1]["time"])).total_seconds()


def run_json(run: StoredRun | UnreadableRun) -> dict[str, Any]:
    """One run as `tlcore show --json` prints it; `tlcore list --json` is a list of these without the trials. Of one that cannot be
    read there are name, run_id, url, state and `reason`."""
    if isinstance(run, UnreadableRun):
        place = {"name": run.ref.name, "run_id": run.ref.run_id, "url": run.ref.url}
        return {**place, "state": UNREADABLE, "reason": run.reason}
    best = run.best
    return {
        "name": run.ref.name,
        "run_id": run.ref.run_id,
        "url": run.ref.url,
        "created": run.identity.get("created"),
        "state": run.state,
        "metric": run.view.metric,
        "mode": run.view.mode,
        "expected_trials": run.expected_trials,
        "ended_trials": sum(row.ended for row in run.view.rows()),
        "best": None if best is None else {"trial": best.trial, "metric": best.metric},
        "test": dict(run.final),
        "ended_by": run.view.state.ended_by or None,
        "used": run.view.used().to_dict(),
    }


def show_json(run: StoredRun) -> dict[str, Any]:
    """The whole run: `run_json`, its identity and every trial with its checkpoints."""
    trials = []
    for row in run.rows():
        facts = asdict(row)
        facts["by_rung"] = [{"fraction": fraction, "metric": value} for fraction, value in sorted(row.by_rung.items())]
        facts["checkpoints"] = list(run.checkpoints.get(row.trial, ()))
        facts["lineage"] = lineage_json(run.view.state.trials.get(row.trial))
        trials.append(facts)
    metrics, modes = run.metrics
    front = [trial.trial for trial in run.view.state.front(metrics, modes)] if len(metrics) > 1 else None
    step = None if run.best is None else run.chosen_step(run.best.trial)
    chosen = None if run.best is None or step is None else str(CheckpointRef(run.ref.url, run.best.trial, step))
    facts = {"identity": dict(run.identity), "trials": trials, "front": front, "checkpoint": chosen}
    return {**run_json(run), **facts}


def show_parts(run: StoredRun, console: Console) -> list[RenderableType]:
    """The whole run for people."""
    rows, view = run.rows(), run.view
    ended = sum(row.ended for row in rows)
    parts: list[RenderableType] = [
        Text.assemble(
            (view.title, "bold"), f"  {_state(run)}, {ended} of {figures.count(run.expected_trials, 'trial')} ended"
        ),
        Text(f"started {figures.moment(run.identity.get('created'))}, stored at {run.ref.url}", overflow="fold"),
        Text(),
        final_table(rows, view.metric, view.mode, console) if rows else Text("no trial was suggested yet"),
    ]
    metrics, modes = run.metrics
    if len(metrics) > 1:
        parts += [Text(), front_table(view.state, metrics, modes)]
    sentences = [*_findings(run), *usage_lines(view.used()), *warmed_line(run.entries), *lineage_lines(view.state)]
    sentences += loss_lines(view.state, run.entries)
    return [*parts, Text(), *map(Text, sentences)] if sentences else parts


def _state(run: StoredRun) -> str:
    return f"{run.state} by its {by}" if (by := run.view.state.ended_by) else run.state


def _findings(run: StoredRun) -> list[str]:
    best, view = run.best, run.view
    if best is None:
        return []
    lines = []
    recipe = _recipe(run)
    if recipe is not None and run.expected_trials > 1:
        lines += best_lines(best, view.metric, difference(apply_point(recipe, dict(best.point)), recipe))
        lines.append(gain_line(view.rows(), view.metric, view.mode, recipe.transfer.strategy))
    if run.final:
        said = ", ".join(f"{name} {figures.metric(value)}" for name, value in run.final.items())
        lines.append(f"on the test data: {said}")
    if said := _saves(view.rows()):
        lines.append(said)
    step = run.chosen_step(best.trial)
    if step is not None:
        name = chosen_words(step, run.checkpoints[best.trial][-1]) or "its newest checkpoint"
        lines.append(f"{name}: {CheckpointRef(run.ref.url, best.trial, step)}")
    return lines


def _saves(rows: Sequence[TrialRow]) -> str:
    """What writing checkpoints took on each trial's rank 0, all trials together; empty where none has told."""
    told = [row.saves for row in rows if row.saves]
    total = {name: sum(each.get(name, 0) for each in told) for name in told[0]} if told else {}
    if not total.get("saves"):
        return ""
    parts = [
        f"{figures.count(total['saves'], 'save')} from rank 0",
        f"{figures.size(total['bytes_new'])} sent",
        f"{figures.size(total['bytes_reused'])} there already",
        f"training kept {figures.brief(total['stall_s'])}",
    ]
    if total["upload_s"] > 0:
        parts.append(figures.speed(total["bytes_new"] / total["upload_s"]))
    parts += [f"{total[name]} {name}" for name in ("failed", "retries") if total[name]]
    return f"checkpoints: {', '.join(parts)}"


def _recipe(run: StoredRun) -> Recipe | None:
    """The stored recipe, unless this version no longer accepts it: an old run must still be shown."""
    try:
        return recipe_from_dict(run.identity.get("recipe") or {}, source=f"{run.ref.url}/run.json")
    except RecipeError:
        return None
