"""The controller's own cost: many stub trials through the real driver on a real store, killed near the end and resumed.

Owns the processes and the figures. The driver is `stub.py` in a process of its own, so that it can be killed and so that its memory
is its own. Called by `__main__.py`.
"""

from __future__ import annotations

import json
import os
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
from tlcore.storage.keys import JOURNAL_PREFIX

TAIL = 20
"""Results left to the resumed driver: enough that trials are under way when the first one is killed."""
TIMEOUT_S = 7200.0


def simulate(directory: Path, store: str, trials: int, results: int, slots: int) -> dict[str, Any]:
    """Run, kill and resume one simulated sweep on a store of a kind ("file", "s3"). Raises RuntimeError if a driver fails.

    Returns:
        driver_ms_per_result (processor time of the driver's process less that of its puts), put_ms (clock, each),
        head_rss_growth_mb (first trial to the kill), resume_s (driver made to first trial started), results, wall_s,
        journal_objects, requests (of the first driver).
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
        reports = len(report_fractions(simulated_recipe(directory, storage, trials, results)))
        settings = {"directory": str(directory), "storage": storage, "trials": trials, "results": results}
        settings |= {"reports": reports}
        kill_after = max(1, trials * reports - TAIL)
        first = _drive(directory, environment, {**settings, "resume": False, "kill_after": kill_after}, -9)
        keys = [info.key for info in newest_run(storage, "simulated").open().list(JOURNAL_PREFIX)]
        second = _drive(directory, environment, {**settings, "resume": True, "kill_after": 0}, 0)
    if first["results"] + second["results"] != trials * reports:
        raise RuntimeError(
            f"{first['results']} + {second['results']} results of {trials * reports}: some repeated or lost"
        )
    figures = {key: first[key] for key in ("driver_ms_per_result", "put_ms", "head_rss_growth_mb", "wall_s", "results")}
    rounded = {key: round(value, 3) for key, value in figures.items()}
    return {
        **rounded,
        "resume_s": round(second["handed_out_s"], 2),
        "journal_objects": len(keys),
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
