"""The table of trials, as wide as the terminal allows.

Owns columns, headings and colors of the table that the live display, the end of a sweep and `tlcore show` share.
Sampled values get a column each where there is room, one merged column where there is not; the bytes of the last save go before
that. Workers get a column where trials differ in them. Called by `live.py` and `tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tlcore.report import figures
from tlcore.report.rows import COMPLETED, FAILED, RUNNING, STOPPED, UNFINISHED, WAITING, TrialRow

STATE_STYLES = {
    WAITING: "dim",
    RUNNING: "cyan",
    COMPLETED: "green",
    STOPPED: "",
    FAILED: "bold red",
    UNFINISHED: "yellow",
}


def trial_table(
    rows: Sequence[TrialRow], metric: str, best: str | None, console: Console, *, live: bool = True
) -> Table:
    """A borderless table of `rows` in the order given, in the widest form that fits the console.

    Args:
        best: the trial to mark.
        live: with loss and samples per second, and telling a trial that starts from one that steps.
    """
    names = figures.short_names(dict.fromkeys(path for row in rows for path in row.point))
    for saved in (save_with_bytes, save_without_bytes) if live else (saved_step,):
        wide = _table(rows, metric, best, names, saved, merged=False, live=live)
        if Measurement.get(console, console.options.update(max_width=10_000), wide).maximum <= console.width:
            return wide
    return _table(rows, metric, best, names, saved_step, merged=True, live=live)


def _table(
    rows: Sequence[TrialRow],
    metric: str,
    best: str | None,
    names: Mapping[str, str],
    saved: Callable[[TrialRow], str],
    *,
    merged: bool,
    live: bool,
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0) if not merged else (0, 1, 0, 0), header_style="bold")
    table.add_column("trial", no_wrap=True)
    table.add_column("state", no_wrap=True)
    sized = _differ_in_workers(rows)
    for heading in ("workers", "rung", "step") if sized else ("rung", "step"):
        table.add_column(heading, justify="right", no_wrap=True)
    if live:
        table.add_column("loss", justify="right", no_wrap=True)
    table.add_column(metric.removeprefix("eval_"), justify="right", no_wrap=True)
    if live:
        table.add_column("samples/s", justify="right", no_wrap=True)
    table.add_column("saved", justify="right", no_wrap=True)
    if merged and names:
        table.add_column(" ".join(names.values()), no_wrap=True, overflow="ellipsis", ratio=1)
    else:
        for name in names.values():
            table.add_column(name, no_wrap=True)
    for row in rows:
        cells = _cells(row, row.trial == best, names, saved, merged=merged, live=live)
        if sized:
            cells.insert(2, Text(figures.whole(row.workers)))
        table.add_row(*cells)
    return table


def _differ_in_workers(rows: Sequence[TrialRow]) -> bool:
    return len({row.workers for row in rows if row.workers is not None}) > 1


def _cells(
    row: TrialRow,
    is_best: bool,
    names: Mapping[str, str],
    saved: Callable[[TrialRow], str],
    *,
    merged: bool,
    live: bool,
) -> list[Text]:
    mark = "*" if is_best else " "
    cells = [
        Text(f"{row.trial}{mark}", "bold" if is_best else ""),
        Text("starting" if live and row.state == RUNNING and row.step is None else row.state, STATE_STYLES[row.state]),
        Text(figures.share(row.rung)),
        Text(steps(row)),
    ]
    if live:
        cells.append(Text(figures.metric(row.loss)))
    cells.append(Text(figures.metric(row.metric), "bold" if is_best else ""))
    if live:
        cells.append(Text(figures.rate(row.samples_per_s)))
    cells.append(Text(saved(row)))
    values = [figures.sampled(row.point[path]) if path in row.point else figures.ABSENT for path in names]
    if merged and values:
        while values and values[-1] == figures.ABSENT:
            values.pop()
        cells.append(Text(" ".join(values)))
    elif not merged:
        cells.extend(Text(value) for value in values)
    return cells


def steps(row: TrialRow) -> str:
    """`16/63`, `16` while the total is unknown, `-` before the first step."""
    if row.step is None:
        return figures.ABSENT
    return str(row.step) if row.total_steps is None else f"{row.step}/{row.total_steps}"


def saved_step(row: TrialRow) -> str:
    """The last checkpoint alone."""
    return figures.whole(row.checkpoint_step)


def save_without_bytes(row: TrialRow) -> str:
    """As `save_with_bytes`, where that is too wide."""
    return save_with_bytes(row, sizes=False)


def save_with_bytes(row: TrialRow, *, sizes: bool = True) -> str:
    """The last checkpoint and what its save took on rank 0: `120 · 8 ms · 45 MB/s · 86 MiB new, 0 B reused · 2 retries` (stall,
    speed of the new bytes, requests made again where there were any)."""
    if row.checkpoint_step is None:
        return figures.ABSENT
    parts = [str(row.checkpoint_step)]
    if row.stall_s is not None:
        parts.append(figures.brief(row.stall_s))
    if row.save_bytes_per_s is not None:
        parts.append(figures.speed(row.save_bytes_per_s))
    if sizes and row.save_bytes_new is not None:
        parts.append(f"{figures.size(row.save_bytes_new)} new, {figures.size(row.save_bytes_reused or 0)} reused")
    if row.save_retries:
        parts.append(figures.count(row.save_retries, "retry", "retries"))
    return " · ".join(parts)
