"""A running sweep, live: a table on a terminal, one line per event in a log.

Owns the two displays behind `open_display`; both take the same three calls (`on_event` with a journal entry,
`on_progress` with the latest progress by trial, `close`) from the sweep's driver, one at a time. Neither knows Ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tlcore.recipe import Recipe
from tlcore.report import figures
from tlcore.report.cells import trial_table
from tlcore.report.rows import RUNNING, WAITING, Estimate, TrialRow, estimate, ranked
from tlcore.report.tables import adapted_lines, failure_lines
from tlcore.report.usage import spending, stopping_line
from tlcore.report.view import SweepView
from tlcore.storage import newest_run
from tlcore.storage.account import utc_now
from tlcore.storage.journal import Entry, read_journal

HEARTBEAT_S = 60.0
_LINES_AROUND_TABLE = 9
"""Log line (twice when folded), title, blank, heading, "and ... more", blank, bar, estimate."""
_FEWEST_ROWS = 4
_MOST_FAILURES = 3


class Display:
    """What both displays share: the folded view, and how much of the sweep lies behind."""

    utc: Callable[[], datetime] = staticmethod(utc_now)
    """The time as the journal's entries have it."""

    def __init__(self, view: SweepView, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.view = view
        self.console = console
        self._clock = clock
        self._began_s = clock()
        self._share_before = _trained(view)
        self._training_since_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""
        self.view.apply(event)
        if event["kind"] == "resumed":
            self._began_s, self._share_before, self._training_since_s = self._clock(), _trained(self.view), None
        self._notice_training()

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the latest progress of every running trial."""
        self.view.progress(snapshot)
        self._notice_training()

    def close(self) -> None:
        """Show the last state and give the terminal back. May be called twice."""

    def elapsed_s(self) -> float:
        """Seconds since the display began."""
        return self._clock() - self._began_s

    def spending(self, ahead: Estimate) -> str:
        """What was used so far and is expected in all, empty while that says nothing."""
        return spending(self.view.used(self.utc()), ahead)

    def _notice_training(self) -> None:
        """The pace counts from the first step on: the minute in which worker groups start would distort it."""
        if self._training_since_s is not None:
            return  # asked at every entry, and counting takes as long as there are trials
        trained = _trained(self.view)
        if trained > self._share_before:
            self._training_since_s, self._share_before = self._clock(), trained

    def _estimate(self, rows: Sequence[TrialRow]) -> Estimate:
        since = self._training_since_s
        training_s = 0.0 if since is None else self._clock() - since
        return estimate(rows, self.view.expected_trials, training_s, self._share_before)


def _trained(view: SweepView) -> float:
    return sum(row.fraction for row in view.rows())


class TableDisplay(Display):
    """A table redrawn in place, with a bar for the whole sweep below it; what is printed meanwhile scrolls above."""

    def __init__(self, view: SweepView, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(view, console, clock)
        self._lock = threading.Lock()  # the redrawing thread reads while the driver writes
        self._live = Live(self, console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def on_event(self, event: Entry) -> None:
        """Take one journal entry; the next refresh shows it."""
        with self._lock:
            super().on_event(event)

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the latest progress; the next refresh shows it."""
        with self._lock:
            super().on_progress(snapshot)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.transient = kind is None  # a sweep that ended well is told again, whole, by its final table
        self.close()

    def close(self) -> None:
        """Draw once more and give the terminal back."""
        if self._live.is_started:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            ahead = self._estimate(self.view.rows())
            picture = render(self.view, ahead, self.elapsed_s(), console, self.spending(ahead))
        yield picture


def render(view: SweepView, ahead: Estimate, elapsed_s: float, console: Console, spent: str = "") -> RenderableType:
    """The whole picture, no taller than the console: title, table, failures, bar, what was used."""
    rows = view.rows()
    best = view.best()
    failures = _failures(rows)
    around = _LINES_AROUND_TABLE + len(failures) + bool(spent)
    shown = chosen(rows, view.mode, max(_FEWEST_ROWS, console.height - around))
    parts: list[RenderableType] = [
        _title(view, rows),
        Text(),
        trial_table(shown, view.metric, best.trial if best else None, console),
    ]
    names = {row.trial for row in shown}
    left_out = [row for row in rows if row.trial not in names]
    if left_out:
        parts.append(Text(f"and {len(left_out)} more: {_by_state(left_out)}", "dim"))
    usage = [Text(spent, no_wrap=True, overflow="ellipsis")] if spent else []
    return Group(*parts, *failures, Text(), *_overall(ahead, elapsed_s, console), *usage)


def _failures(rows: Sequence[TrialRow]) -> list[Text]:
    running = [row for row in rows if not row.ended]
    return [
        *_newest(list(failure_lines(rows).values()), "failure"),
        *_newest(list(adapted_lines(running).values()), "adaptation"),
    ]


def _newest(lines: list[Text], what: str) -> list[Text]:
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    earlier = len(lines) - _MOST_FAILURES
    if earlier <= 0:
        return lines
    return [*lines[earlier:], Text(f"{figures.count(earlier, f'earlier {what}')} not shown", lines[-1].style)]


def chosen(rows: Sequence[TrialRow], mode: str, most: int) -> list[TrialRow]:
    """All rows in trial order while they fit; else the running ones, the best of the ended ones, the waiting ones."""
    if len(rows) <= most:
        return list(rows)
    running = [row for row in rows if row.state == RUNNING][:most]
    rest = [row for row in ranked(rows, mode) if row.state not in {RUNNING, WAITING}]
    waiting = [row for row in rows if row.state == WAITING]
    return (running + rest + waiting)[:most]


def _title(view: SweepView, rows: Sequence[TrialRow]) -> Text:
    ended = sum(row.ended for row in rows)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(view.title, "bold")
    if view.state.stopping:
        text.append(f"  {stopping_line(view.state.stopping)}", "yellow")
        return text
    if view.state.testing is not None:
        trial, step = view.state.testing
        return text.append(f"  {trial}'s checkpoint of step {step} on data.test")
    text.append(f"  {ended} of {figures.count(max(view.expected_trials, len(rows)), 'trial')} ended")
    counts = _by_state([row for row in rows if row.state != WAITING])
    return text.append(f": {counts}" if counts else "")


def _by_state(rows: Sequence[TrialRow]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    return ", ".join(f"{number} {state}" for state, number in counts.items())


def _overall(ahead: Estimate, elapsed_s: float, console: Console) -> list[RenderableType]:
    spent = f"{figures.duration(elapsed_s)} so far"
    how = ""
    if ahead.share >= 1.0:
        left = ", all trials ended"
    elif ahead.left_s is None:
        left = ""
    else:
        left = f", about {figures.duration(ahead.left_s)} left"
        pace = "early estimate: pace of the first steps" if ahead.early else "estimate: pace so far"
        how = f"{pace}; open trials end where the ended ones did on average"
    line = Table.grid(padding=(0, 1))
    width = max(10, min(50, console.width - 50))
    line.add_row(
        ProgressBar(total=1.0, completed=ahead.share, width=width, complete_style="cyan", finished_style="green"),
        f"{ahead.share:.0%}",
        f"{spent}{left}",
    )
    return [line, Text(how, "dim", no_wrap=True, overflow="ellipsis")]


class LineDisplay(Display):
    """One plain line per event, `time trial what key=value ...`; one about the whole sweep after a silent minute."""

    def __init__(
        self,
        view: SweepView,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        super().__init__(view, console, clock)
        self._now = now
        self._spoke_s = clock()
        self._saved: dict[str, int] = {row.trial: row.checkpoint_step or 0 for row in view.rows()}

    def on_event(self, event: Entry) -> None:
        """Print the line that this entry deserves, if any."""
        super().on_event(event)
        line = self._line_of(event)
        if line:
            self._say(line)
        row = self.view.row(event.get("trial"))
        self._say_saved([] if row is None else [row])

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Print checkpoints committed since, and one line on the whole when nothing was said for a minute."""
        super().on_progress(snapshot)
        self._say_saved(self.view.rows())
        if self._clock() - self._spoke_s >= HEARTBEAT_S:
            rows = self.view.rows()
            ahead = self._estimate(rows)
            left = "" if ahead.left_s is None else f" left~{figures.duration(ahead.left_s)}{' (early)' * ahead.early}"
            spent = self.spending(ahead)
            self._say(f"sweep {ahead.share:.0%} ({_by_state(rows)}){left}{' ' if spent else ''}{spent}")

    def _say(self, line: str) -> None:
        self._spoke_s = self._clock()
        text = "".join(char if char.isprintable() else " " for char in line)
        self.console.file.write(f"{self._now():%H:%M:%S} {text}\n")
        self.console.file.flush()

    def _say_saved(self, rows: Sequence[TrialRow]) -> None:
        for row in rows:
            if row.checkpoint_step is not None and row.checkpoint_step > self._saved.get(row.trial, 0):
                self._saved[row.trial] = row.checkpoint_step
                self._say(" ".join([f"{row.trial} checkpoint committed step={row.checkpoint_step}", *_cost(row)]))

    def _line_of(self, event: Entry) -> str:
        kind, row = event["kind"], self.view.row(event.get("trial"))
        if kind == "resumed":
            return f"sweep resumed ({_by_state(self.view.rows()) or 'no trial yet'})"
        if kind == "unknown":
            return f"the check before the sweep leaves open: {'; '.join(event['reasons'])}"
        if kind == "avoided":
            return f"sweep avoids node={event['node']} after {event['losses']} losses of {', '.join(event['trials'])}"
        if kind == "stopping":
            return stopping_line(event["reason"])
        if row is None:
            return ""
        measured = f"rung={figures.share(row.rung)} {self.view.metric}={figures.metric(row.metric)}"
        if kind == "dropped":
            return f"{row.trial} {'; '.join(row.reason.splitlines())}"
        if kind == "suggested" and event.get("repaired"):
            repaired = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in event["repaired"].items())
            return f"{row.trial} would not fit and runs with {repaired}"
        if kind == "started":
            values = (f"{path}={figures.sampled(value)}" for path, value in row.point.items())
            workers = [f"workers={row.workers}"] if row.workers is not None else []
            return " ".join([row.trial, "started", *workers, *values])
        if kind == "result":
            return " ".join([row.trial, measured, *_training(row)])
        if kind == "lost":
            return f"{row.trial} lost rank={event.get('rank')} step={event.get('step')} cause: {event.get('cause')}"
        if kind == "adapted":
            return " ".join(
                [row.trial, "adapted", *_changed(event), f"step={event.get('step')} reason: {event.get('reason')}"]
            )
        if kind == "took_over":
            return " ".join([row.trial, f"took over {event['parent']} step={event['step']}", *_changed(event)])
        if kind == "fell_back":
            passed_over = f"the checkpoint of step {event.get('instead')} cannot be used: {event.get('reason')}"
            place = "its beginning" if event.get("step") is None else f"step={event['step']}"
            return f"{row.trial} restored at {place}: {passed_over}"
        if kind == "warned":
            return f"{row.trial} did not close as it should: {event['error']}: {event['message']}"
        if kind == "stopped":
            return f"{row.trial} stopped by={row.reason or 'request'} {measured}"
        if kind == "left":
            at = "no checkpoint yet" if event.get("step") is None else f"checkpoint committed step={event['step']}"
            return f"{row.trial} waits: the sweep is stopping, {at}"
        if kind == "completed":
            return f"{row.trial} completed {measured}"
        if kind == "testing":
            return f"{row.trial} testing: its checkpoint of step={event['step']} on data.test"
        if kind == "final":
            measured = " ".join(f"{key}={figures.metric(value)}" for key, value in event["metrics"].items())
            return f"{row.trial} tested {measured}"
        return f"{row.trial} failed {'; '.join(row.reason.splitlines())}" if kind == "failed" else ""


def _changed(event: Entry) -> list[str]:
    return [f"{key}={figures.sampled(old)}->{figures.sampled(new)}" for key, (old, new) in event["changed"].items()]


def _training(row: TrialRow) -> list[str]:
    facts = {
        "step": None if row.step is None else str(row.step),
        "loss": None if row.loss is None else figures.metric(row.loss),
        "samples/s": None if row.samples_per_s is None else figures.rate(row.samples_per_s),
    }
    return [f"{name}={text}" for name, text in facts.items() if text is not None]


def _cost(row: TrialRow) -> list[str]:
    """What the last save took on rank 0: how long it kept training, how fast its new bytes went, how many those were and how many
    were stored already, and requests made again, where there were any."""
    facts = {
        "stall": None if row.stall_s is None else figures.brief(row.stall_s),
        "speed": None if row.save_bytes_per_s is None else figures.speed(row.save_bytes_per_s),
        "new": None if row.save_bytes_new is None else figures.size(row.save_bytes_new),
        "reused": None if row.save_bytes_reused is None else figures.size(row.save_bytes_reused),
        "retries": str(row.save_retries) if row.save_retries else None,
    }
    return [f"{name}={text.replace(' ', '')}" for name, text in facts.items() if text is not None]


def live_view(recipe: Recipe, resume: bool = False, trials: int | None = None) -> SweepView:
    """An empty view of the sweep that a recipe describes, or of what its newest run has done so far.

    Args:
        trials: how many are to come, where that is not the recipe's number.
    Raises ObjectMissing when there is nothing to resume.
    """
    entries = read_journal(newest_run(recipe.storage, recipe.name).open()) if resume else []
    search = recipe.search
    view = SweepView(recipe.name, search.metric, search.mode, trials or search.trials, entries)
    view.expected_trials = trials or search.trials  # the journal has the number of before
    return view


def open_display(
    view: SweepView, console: Console | None = None, logs: str = "", *, table: bool | None = None
) -> TableDisplay | LineDisplay:
    """The table on a terminal, lines elsewhere.

    Args:
        logs: where the log files are; named on the first line printed.
        table: True or False overrules what the console says about itself.
    """
    screen = console or Console()
    if logs:
        screen.print(f"logs: {logs}", soft_wrap=True, highlight=False, markup=False)
    as_table = screen.is_terminal and not screen.is_dumb_terminal if table is None else table
    return TableDisplay(view, screen) if as_table else LineDisplay(view, screen)
