"""The controller's own cost: many stub trials through the real driver on a real store, killed near the end and resumed.

Owns the processes and the figures. The driver is `stub.py` in a process of its own, so that it can be killed and so that its memory
is its own. Called by `__main__.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jobs.bench.own_store import OwnStore
from jobs.bench.small_ray import ROOT, start_ray
from jobs.bench.sweep.stub import simulated_recipe
from tlcore.recipe import report_fractions
from tlcore.storage import newest_run
from tlcore.storage.keys import SEGMENTS_PREFIX

TAIL = 20
"""Results left to the resumed driver: enough that trials are under way when the first one is killed."""
TIMEOUT_S = 7200.0


def simulate(directory: Path, store: str, trials: int, epochs: int, slots: int) -> dict[str, Any]:
    """Run, kill and resume one simulated sweep on a store of a kind ("file", "s3"). Raises RuntimeError if a driver fails.

    Args:
        epochs: reports of each trial.
        slots: trials at a time.

    Returns:
        driver_ms_per_result (processor time of the driver's process less that of its puts: the median of ten stretches of the
        run) and driver_ms_range (least and most of them), put_ms (clock, each), head_rss_growth_mb (first trial to the kill)
        and head_rss_mb (after each tenth), resume_s (driver made to first trial started) and resume_read_s (of that, until the
        journal is read and folded), results, wall_s, journal_entries (at the kill), segments, requests (of the first driver).
    """
    with ExitStack() as stack:
        address = _ray(stack, slots)
        storage = str(directory / "store")
        if store == "s3":
            own = OwnStore(directory / "weed")
            stack.callback(own.stop)
            own.start()
            storage = "s3://tlcore/runs"
        # only now: Ray and the store set what drivers need in this process's environment
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
        reports = len(report_fractions(simulated_recipe(directory, storage, trials, epochs)))
        settings = {"directory": str(directory), "storage": storage, "trials": trials, "epochs": epochs}
        settings |= {"reports": reports}
        kill_after = max(1, trials * reports - TAIL)
        first = _drive(directory, environment, {**settings, "resume": False, "kill_after": kill_after}, -9)
        run = newest_run(storage, "simulated").open()
        segments = len(list(run.list(SEGMENTS_PREFIX)))
        second = _drive(directory, environment, {**settings, "resume": True, "kill_after": 0}, 0)
    if first["results"] + second["results"] != trials * reports:
        raise RuntimeError(
            f"{first['results']} + {second['results']} results of {trials * reports}: some repeated or lost"
        )
    return _figures(first, second, segments)


def _figures(first: dict[str, Any], second: dict[str, Any], segments: int) -> dict[str, Any]:
    stretches = [round(ms, 2) for ms in first["driver_ms"]]
    return {
        "driver_ms_per_result": statistics.median(stretches),
        "driver_ms_range": [min(stretches), max(stretches)],
        **{key: round(first[key], 2) for key in ("put_ms", "head_rss_growth_mb", "wall_s")},
        "head_rss_mb": [round(mb) for mb in first["rss_mb"]],
        "resume_s": round(second["handed_out_s"], 2),
        "resume_read_s": round(second["read_s"], 2),
        "results": first["results"],
        "journal_entries": first["entries"],
        "segments": segments,
        "requests": first["requests"],
    }


def _ray(stack: ExitStack, slots: int) -> str:
    import ray

    start_ray(slots)
    stack.callback(ray.shutdown)
    return str(ray.get_runtime_context().gcs_address)


def _drive(directory: Path, environment: dict[str, str], settings: dict[str, Any], expected: int) -> dict[str, Any]:
    out, file = directory / "figures.json", directory / "settings.json"
    file.write_text(json.dumps({**settings, "out": str(out)}))
    command = [sys.executable, "-m", "jobs.bench.sweep.stub", str(file)]
    done = subprocess.run(command, env=environment, stdout=sys.stderr, timeout=TIMEOUT_S, check=False)
    if done.returncode != expected:
        raise RuntimeError(f"the simulated driver ended with {done.returncode}, not {expected}; see {directory}/logs")
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures
