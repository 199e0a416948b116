"""What a search did besides trying points: takeovers, several metrics at once, an earlier sweep's results, what was lost.

Owns the words and the Pareto table; the facts are the journal's. Called by `runs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table

from tlcore.report import figures
from tlcore.storage.journal import Entry, SweepState, TrialState


def lineage_lines(state: SweepState) -> list[str]:
    """One line per takeover, in the order of trials: whose state, from which step, what was changed."""
    return [
        f"{trial.trial} took over {taken.parent} at step {taken.step} ({figures.share(taken.fraction)}), {_changed(taken.changed)}"
        for trial in state.trials.values()
        for taken in trial.lineage
    ]


def _changed(changed: Any) -> str:
    said = ", ".join(f"{key} {figures.sampled(old)} -> {figures.sampled(new)}" for key, (old, new) in changed.items())
    return said or "nothing changed"


def lineage_json(trial: TrialState | None) -> list[dict[str, Any]]:
    """A trial's takeovers as `tlcore show --json` prints them."""
    return [
        {"parent": taken.parent, "step": taken.step, "fraction": taken.fraction, "changed": dict(taken.changed)}
        for taken in (trial.lineage if trial is not None else ())
    ]


def front_table(state: SweepState, metrics: Sequence[str], modes: Sequence[str]) -> RenderableType:
    """The Pareto front: trials that no other one beats in every metric."""
    table = Table(title="not beaten in all metrics at once", title_justify="left", box=None, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for metric, mode in zip(metrics, modes, strict=True):
        table.add_column(f"{metric} ({mode})", justify="right", no_wrap=True)
    for trial in state.front(metrics, modes):
        table.add_row(trial.trial, *(figures.metric(trial.final(metric)) for metric in metrics))
    return table


def warmed_line(entries: Iterable[Entry]) -> list[str]:
    """How many results of an earlier sweep the searcher began with."""
    return [
        f"began with {figures.count(len(entry['used']), 'result')} of {entry['source']}"
        + (f"; {entry['unused']} did not fit" if entry["unused"] else "")
        for entry in entries
        if entry["kind"] == "warmed"
    ]


_LOST: Final = {
    "worker": ("lost worker", "lost workers"),
    "node": ("lost node", "lost nodes"),
    "hang": ("hang", "hangs"),
    "storage": ("time without its store", "times without its store"),
    "slot": ("lost slot", "lost slots"),
}


def loss_lines(state: SweepState, entries: Iterable[Entry]) -> list[str]:
    """What befell each trial, and which nodes were avoided for it."""
    told = [f"{trial.trial} had {_losses(trial)}" for trial in state.trials.values() if trial.losses]
    return told + [
        f"node {entry['node']} was avoided after {entry['losses']} losses of {', '.join(entry['trials'])}"
        for entry in entries
        if entry["kind"] == "avoided"
    ]


def _losses(trial: TrialState) -> str:
    return ", ".join(figures.count(times, *_LOST.get(loss, (loss, loss))) for loss, times in trial.losses.items())
