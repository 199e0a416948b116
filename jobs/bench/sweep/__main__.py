"""A sweep's wall time against the documented Ray pattern, and the controller's own cost with a thousand stub trials.

    python -m jobs.bench.sweep --part walls --json         eight small trials under ASHA on either side, three rounds
    python -m jobs.bench.sweep --part simulate --simulate 1000 --results 100000 --store file
                                                           full size: 1,000 stub trials, 100,000 results
    python -m jobs.bench.sweep --quick --json              do both run at all

Owns the command and its table; `walls.py` and `simulate.py` say what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.bench.sweep import walls

QUICK_TRIALS = 3
TARGETS = {"driver_ms_per_result": 5.0, "resume_s": 30.0, "head_rss_growth_mb": 200.0}
QUICK = (20, 400)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.sweep", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a few trials, 400 results: does it run at all")
    parser.add_argument("--part", choices=("walls", "simulate", "both"), default="both", help="what to measure")
    parser.add_argument("--rounds", type=int, default=3, help="sweeps of each side whose walls are compared")
    parser.add_argument("--simulate", type=int, default=1000, metavar="TRIALS", help="how many stub trials")
    parser.add_argument("--results", type=int, default=100_000, help="how many reports all of them make together")
    parser.add_argument("--slots", type=int, default=4, help="stub trials at a time")
    parser.add_argument(
        "--store", choices=("file", "s3", "both"), default="both", help="where the simulated run is kept"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.simulate, options.results = min(options.simulate, QUICK[0]), min(options.results, QUICK[1])
    if not 0 < options.simulate <= options.results:
        parser.error(f"--results {options.results} for --simulate {options.simulate}: each trial reports at least once")
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        figures: dict[str, Any] = {}
        if options.part != "simulate":
            figures |= _walls(directory, options)
        if options.part != "walls":
            figures |= _simulate(directory, options)
    print(json.dumps(figures) if options.json else table(figures))
    return 0


def _walls(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    place = directory / "walls"
    place.mkdir()
    rounds, trials = (1, QUICK_TRIALS) if options.quick else (options.rounds, walls.TRIALS)
    return walls.walls(place, rounds, trials)


def _simulate(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    from jobs.bench.sweep.simulate import simulate

    trials, epochs = options.simulate, options.results // options.simulate
    found: dict[str, Any] = {"trials": trials, "results_each": epochs}
    for store in ("file", "s3") if options.store == "both" else (options.store,):
        place = directory / store
        place.mkdir()
        found[store] = simulate(place, store, trials, epochs, options.slots)
    return found


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines = walls.table(figures) if "wall_ratio" in figures else []
    if "trials" in figures:
        lines.append(f"{figures['trials']} stub trials, each reporting {figures['results_each']} times")
    for store in [name for name in ("file", "s3") if name in figures]:
        for key, value in figures[store].items():
            target = f"   (target below {TARGETS[key]:g})" if key in TARGETS else ""
            lines.append(f"{store:6}{key:24}{value!s:>12}{target}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
