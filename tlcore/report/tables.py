"""What a sweep says when it ends: trials by metric, the best recipe, what transfer gained, examples, how to resume.

Owns the words. Works on plain rows, never on the store, and prints nothing itself: every function returns text or a
table for the caller's console. Called by `cli.py` and `runs.py`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tlcore.report import figures
from tlcore.report.cells import trial_table
from tlcore.report.rows import FAILED, TrialRow, best_of, better, ranked, usable

SCRATCH = "scratch"


def final_table(rows: Sequence[TrialRow], metric: str, mode: str, console: Console) -> RenderableType:
    """All trials by `metric`, best first, and below them why any failed, and what any was adapted to."""
    best = best_of(rows, mode)
    table = trial_table(ranked(rows, mode), metric, best.trial if best else None, console, live=False)
    hints = {row.trial: row.reason.partition("\n")[2] for row in rows}
    parts: list[RenderableType] = [table]
    for trial, line in failure_lines(rows).items():
        parts += [line, Text(f"  {hints[trial]}")] if hints[trial] else [line]
    return Group(*parts, *adapted_lines(rows).values())


def failure_lines(rows: Iterable[TrialRow]) -> dict[str, Text]:
    """One line for each failed trial: the error, without the hint that may follow it."""
    return {
        row.trial: Text(f"{row.trial} failed: {row.reason.partition(chr(10))[0] or 'no reason was recorded'}", "red")
        for row in rows
        if row.state == FAILED
    }


def adapted_lines(rows: Iterable[TrialRow]) -> dict[str, Text]:
    """One line for each trial that runs with other settings than its point says, since memory ran out."""
    return {
        row.trial: Text(f"{row.trial} ran out of memory; it goes with {_settings(row.adapted)}", "yellow")
        for row in rows
        if row.adapted
    }


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} {figures.sampled(value)}" for path, value in settings.items())


def best_lines(row: TrialRow, metric: str, difference: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """The best trial and where its recipe differs from the one given: dotted path to (the recipe's value, its own)."""
    reached = f"{metric} {figures.metric(row.metric)} at {figures.share(row.rung)} of its epochs"
    if not difference:
        return [f"best trial {row.trial}: {reached}; its recipe is the one given, unchanged"]
    width = max(len(path) for path in difference)
    lines = [f"best trial {row.trial}: {reached}; its recipe differs in"]
    return lines + [
        f"  {path:<{width}}  {figures.sampled(mine)}  (recipe: {figures.sampled(given)})"
        for path, (given, mine) in difference.items()
    ]


@dataclass(frozen=True)
class TransferGain:
    """Best transferred trial against best one from scratch at `rung`, the deepest fraction that both kinds reached."""

    rung: float
    transferred: TrialRow
    scratch: TrialRow
    gain: float
    """How much better the transferred one is, in the metric's unit; positive is better, whatever the mode."""
    counts: tuple[int, int]
    """Transferred and scratch trials that were evaluated at `rung`."""


def transfer_gain(rows: Iterable[TrialRow], mode: str, strategy_of_recipe: str) -> TransferGain | None:
    """None when no rung was reached both by a trial from scratch and by a transferred one."""
    groups: dict[bool, list[TrialRow]] = {True: [], False: []}
    for row in rows:
        groups[row.point.get("transfer.strategy", strategy_of_recipe) == SCRATCH].append(row)
    reached = [
        {rung for row in group for rung, value in row.by_rung.items() if usable(value)} for group in groups.values()
    ]
    common = reached[0] & reached[1]
    if not common:
        return None
    rung = max(common)
    scratch, scratch_count = _best_at(groups[True], rung, mode)
    transferred, transferred_count = _best_at(groups[False], rung, mode)
    difference = transferred.by_rung[rung] - scratch.by_rung[rung]
    return TransferGain(
        rung, transferred, scratch, difference if mode == "max" else -difference, (transferred_count, scratch_count)
    )


def _best_at(rows: Sequence[TrialRow], rung: float, mode: str) -> tuple[TrialRow, int]:
    there = [row for row in rows if usable(row.by_rung.get(rung))]
    best = there[0]
    for row in there[1:]:
        if better(mode, row.by_rung[rung], best.by_rung[rung]):
            best = row
    return best, len(there)


def gain_line(rows: Sequence[TrialRow], metric: str, mode: str, strategy_of_recipe: str) -> str:
    """What transfer gained over `scratch`, in one sentence that also says so when it lost, or when nobody can know."""
    found = transfer_gain(rows, mode, strategy_of_recipe)
    if found is None:
        kinds = {row.point.get("transfer.strategy", strategy_of_recipe) == SCRATCH for row in rows if row.by_rung}
        if True not in kinds:
            return "transfer gain: unknown, no trial with transfer.strategy scratch reached a rung"
        if False not in kinds:
            return "transfer gain: unknown, only trials from scratch reached a rung"
        return "transfer gain: unknown, no rung was reached both from scratch and with transfer"
    verdict = "gained nothing over" if found.gain == 0 else "gained over" if found.gain > 0 else "LOST against"
    amount = "" if found.gain == 0 else f" {figures.gain(found.gain)}"
    transferred, scratch = found.transferred, found.scratch
    return (
        f"transfer {verdict} scratch:{amount} {metric} at {figures.share(found.rung)} of the epochs "
        f"({transferred.trial} {figures.metric(transferred.by_rung[found.rung])}, "
        f"scratch {scratch.trial} {figures.metric(scratch.by_rung[found.rung])}; "
        f"best of {found.counts[0]} against best of {found.counts[1]})"
    )


def prediction_lines(predictions: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each prediction on one line: the input as given, shortened, then what the model said."""
    return [_prediction(each) for each in predictions]


def _prediction(prediction: Mapping[str, Any]) -> str:
    facts = dict(prediction)
    given = facts.pop("input", facts.pop("text", None))
    expected = facts.pop("expected", None)
    parts = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            continue  # a score for every class: for --json, not for a line
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        parts.append(shown if name in {"label", "prediction", "score"} else f"{name} {shown}")
    said = " ".join(parts) + ("" if expected is None else f" (expected {expected})")
    return said if given is None else f"{_shortened(str(given))!r} -> {said}"


def _shortened(text: str, limit: int = 72) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def chosen_words(step: int, last: int) -> str:
    """Which checkpoint of its trial is the chosen one; empty for the newest."""
    return "" if step == last else f"checkpoint of step {step} of {last}, the best of this trial"


def resume_line(words: Sequence[str]) -> str:
    """How to go on after an interrupt: the words after `tlcore` as they were given, with `--resume`."""
    kept = [word for word in words if word != "--resume"]
    return f"committed checkpoints are kept; to resume: {shlex.join([*program(), *kept, '--resume'])}"


def program() -> list[str]:
    """How this `tlcore` can be called from here, whether or not its environment is activated."""
    script = Path(sys.executable).with_name("tlcore")
    if os.environ.get("VIRTUAL_ENV") == sys.prefix and script.exists():
        return ["tlcore"]
    return [_from_here(script)] if script.exists() else [_from_here(Path(sys.executable)), "-m", "tlcore"]


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
