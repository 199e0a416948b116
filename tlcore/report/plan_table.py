"""The plan of a sweep as a table: each kind of point, its batch, what a worker needs by ZeRO stage, and what to change.

Owns the words and the layout; the plan is plain data, the same as `tlcore plan --json` prints. Called by `commands/plan.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_MARKS = {True: ("fits", "green"), False: ("does not fit", "red"), None: ("unknown", "yellow")}


def plan_parts(plan: Mapping[str, Any]) -> RenderableType:
    """Table, then a line for each point that does not fit or is not known, then site and storage."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("#", "point", "trials", "batch"):
        table.add_column(title)
    for stage in range(4):
        table.add_column(f"ZeRO-{stage}", justify="right")
    table.add_column("room", justify="right")
    table.add_column("")
    for number, row in enumerate(plan["points"], start=1):
        mark, colour = _MARKS[row["fits"]]
        table.add_row(
            str(number), _point(row), str(row["trials"]), _batch(row), *_stages(row), _room(row), Text(mark, colour)
        )
    return Group(table, *_lines(plan))


def _point(row: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in row["point"].items()) or "as the recipe says"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _batch(row: Mapping[str, Any]) -> str:
    batch = row.get("batch")
    if batch is None:
        return "-"
    return f"{batch['global']} = {batch['workers']} x {batch['micro']} x {batch['accumulation']}"


def _stages(row: Mapping[str, Any]) -> Iterator[Text]:
    for stage, needs in enumerate(row.get("by_stage", [{}] * 4)):
        used = stage == row.get("stage")
        yield Text(_bytes(needs) + ("*" if used else " "), "bold" if used else "")


def _bytes(needs: Mapping[str, Any]) -> str:
    if "host_bytes" not in needs:
        return "?" if needs else "-"
    return _gigabytes(needs["device_bytes"] or needs["host_bytes"])


def _room(row: Mapping[str, Any]) -> str:
    room = row.get("room")
    if room is None:
        return "-"
    on_gpu = any(needs.get("device_bytes") for needs in row["by_stage"])
    size = room["device_bytes"] if on_gpu else room["host_bytes"]
    return "?" if size is None else _gigabytes(size)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _lines(plan: Mapping[str, Any]) -> Iterator[Text]:
    yield Text(
        "GB per worker at its peak, the whole process; * is the stage that the point uses; batch: workers x micro x steps"
    )
    for number, row in enumerate(plan["points"], start=1):
        if row["fits"] is True:
            continue
        yield Text(f"{number}: {row['reason']}", _MARKS[row["fits"]][1])
        if (
            row["fits"] is False and row.get("room") is not None
        ):  # else it is not memory that is short, and the reason says
            yield Text("   " + _advice(row["changes"]))
    yield Text(f"on {plan['site']}; storage " + ("can be written" if plan["storage"] is None else "cannot be written:"))
    if plan["storage"] is not None:
        yield Text(plan["storage"], "red")


def _advice(changes: Mapping[str, Any] | None) -> str:
    if changes is None:
        return "no milder settings fit: a smaller model or data.max_length, more memory, or another transfer.strategy"
    return "fits with " + " ".join(f"--set {key}={_value(value)}" for key, value in changes.items())
