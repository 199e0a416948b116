"""From finished arms to figures: means over seeds, and paired differences with their intervals.

Owns the log (one JSON line per finished arm and seed) and the arithmetic. Called by `__main__.py` and tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from jobs.bench.intervals import paired_difference

Record = dict[str, Any]
COMPARED: Final = {
    "population": (("pbt", "random"), ("pbt", "random-decay")),
    "sweep": (("tpe", "default"), ("asha", "default"), ("random", "default"), ("tpe", "random"), ("asha", "random")),
}
"""By part, the pairs of arms whose difference is told: (of, less)."""
MEASURES: Final = ("test_accuracy", "test_loss", "eval_accuracy", "eval_loss")


def read_log(path: Path, design: str | None = None) -> list[Record]:
    """The finished arms of a log; none where it does not exist.

    Raises:
        ValueError: it has figures of another design than this one, or, without one, of several.
    """
    if not path.exists():
        return []
    text = path.read_text()
    # what a killed bench left of its last line is not a record
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    records = [json.loads(line) for line in lines]
    found = sorted({record["design"] for record in records})
    if design is not None and set(found) - {design}:
        raise ValueError(f"{path} has figures of design {', '.join(found)}, this is {design}: give another file")
    if len(found) > 1:
        raise ValueError(f"{path} has figures of several designs: {', '.join(found)}; no comparison holds across them")
    return records


def append_log(path: Path, record: Record) -> None:
    """Add one finished arm, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def is_done(records: Iterable[Record], part: str, arm: str, seed: int) -> bool:
    """Whether the arm has run under the seed."""
    return any((each["part"], each["arm"], each["seed"]) == (part, arm, seed) for each in records)


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Each part's arms, with means over their seeds, and its differences over the seeds that both sides have.

    Returns:
        part -> {"arms": arm -> {seeds, steps, trials, failed, takeovers, and MEASURES (means)}, "differences": "a - b" -> measure
        -> {value, low, high, pairs}}. Losses: negative is better for a.
    """
    return {part: _part([record for record in records if record["part"] == part], part) for part in COMPARED}


def _part(records: Sequence[Record], part: str) -> dict[str, Any]:
    by_arm: dict[str, dict[int, Record]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    differences = {}
    for of, less in COMPARED[part]:
        seeds = sorted(by_arm.get(of, {}).keys() & by_arm.get(less, {}).keys())
        if seeds:
            differences[f"{of} - {less}"] = {
                name: paired_difference(
                    [measure(by_arm[of][seed], name) for seed in seeds],
                    [measure(by_arm[less][seed], name) for seed in seeds],
                ).to_dict()
                for name in MEASURES
            }
    return {"arms": {arm: _means(list(seeds.values())) for arm, seeds in by_arm.items()}, "differences": differences}


def _means(records: Sequence[Record]) -> dict[str, Any]:
    counts = {name: round(fmean(each[name] for each in records), 1) for name in ("steps", "trials", "failed")}
    takeovers = round(fmean(each["takeovers"] for each in records), 1)
    measures = {name: round(fmean(measure(each, name) for each in records), 4) for name in MEASURES}
    return {"seeds": len(records), **counts, "takeovers": takeovers, **measures}


def measure(record: Record, name: str) -> float:
    """A figure of an arm's best trial, by its name: of the test examples or of the validation examples."""
    metrics = record["test"] if name.startswith("test_") else record["best"]["metrics"]
    return float(metrics[name])


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines: list[str] = []
    for part, found in figures.items():
        if not found["arms"]:
            continue
        lines.append(f"{part:14}{'seeds':>6}{'steps':>8}{'trials':>8}" + "".join(f"{name:>15}" for name in MEASURES))
        for arm, means in found["arms"].items():
            counts = f"{means['seeds']:>6}{means['steps']:>8g}{means['trials']:>8g}"
            lines.append(f"  {arm:12}{counts}" + "".join(f"{means[name]:>15.4f}" for name in MEASURES))
        for pair, gaps in found["differences"].items():
            for name in ("test_accuracy", "test_loss"):
                lines.append(f"  {pair}: {name} {_spread(gaps[name])}")
    return "\n".join(lines) or "nothing has run yet"


def _spread(gap: dict[str, Any]) -> str:
    if gap["low"] is None:
        return f"{gap['value']:+.4f} (one seed: no interval)"
    return f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}], {gap['pairs']} seeds"
