"""What the sweep's integration tests share: recipes, a display that takes notes, a look around afterwards.

As a script it is a driver in its own process, to be interrupted or killed: `sweep_bench.py DIRECTORY ACTION TRIAL FRACTION`
runs or resumes the sweep in DIRECTORY and does ACTION (SIGINT, SIGKILL) to itself when TRIAL has reported FRACTION. Its file
`rates.json` has the learning rates, or {"rates", "changes"} with more of `make_recipe`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import ray

from tlcore.recipe import recipe_from_dict
from tlcore.sweep import SweepOptions, run_sweep

SESSION = "standin_session:StandInSession"


def make_recipe(directory, rates, **changes):
    """A sweep over these learning rates, one trial at a time, under ASHA with rungs at 1/4, 1/2 and the whole."""
    directory = Path(directory)
    inputs = write_inputs(directory)
    base = {
        "name": "standin",
        "task": "text-classification",
        "model": {"source": str(inputs / "model")},
        "data": {"train": str(inputs / "train.csv")},
        "train": {"global_batch_size": 8},
        "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2},
        "storage": str(directory / "store"),
        "search": {
            "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
            "first": [{"train.learning_rate": rate} for rate in rates],
            "trials": len(rates),
            "scheduler": {"asha": {"grace": 0.25, "reduction": 2}},
        },
    }
    return recipe_from_dict({**base, **changes})


def write_inputs(directory):
    """What the driver looks at before it starts anything; the stand-in session reads none of it."""
    inputs = directory / "inputs"
    (inputs / "model").mkdir(parents=True, exist_ok=True)
    (inputs / "model" / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 1}))
    (inputs / "train.csv").write_text("text,label\ngood,yes\nbad,no\n")
    return inputs


def hold_trial(directory, trial, step):
    """Have a trial stand still at a step until it is interrupted, once."""
    (Path(directory) / f"{trial}.fault").write_text(json.dumps({"kind": "hold", "rank": 0, "step": step}))


def break_trial(directory, trial, kind, rank, step):
    """Have one rank fail once: kill, raise or data."""
    (Path(directory) / f"{trial}.fault").write_text(json.dumps({"kind": kind, "rank": rank, "step": step}))


def read_trace(directory):
    """What the ranks say they did, in order."""
    path = Path(directory) / "trace.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Notes:
    """A display that remembers, and may act on a result."""

    def __init__(self, act=None):
        self.events, self.snapshots, self._act = [], [], act

    def on_event(self, event):
        self.events.append(event)
        if self._act is not None:
            self._act(event)

    def on_progress(self, snapshot):
        self.snapshots.append(snapshot)

    def close(self):
        pass

    def of(self, kind):
        return [event for event in self.events if event["kind"] == kind]


def options(directory, notes, resume=False, **more):
    return SweepOptions(resume=resume, display=notes, logs=Path(directory) / "logs", session=SESSION, **more)


def kill_slot():
    """Kill the process of a living slot."""
    os.kill(next(one["Pid"] for one in ray._private.state.actors().values() if _is_alive_slot(one)), signal.SIGKILL)


def _is_alive_slot(actor):
    return (actor["ActorClassName"], actor["State"]) == ("Slot", "ALIVE")


def leftovers(trace, cpus):
    """What a sweep left behind in the cluster, after giving it time to go; empty when all is well."""
    deadline = time.monotonic() + 600
    while (found := _leftovers(trace, cpus)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _leftovers(trace, cpus):
    found = [f"rank with pid {pid}" for pid in sorted({line["pid"] for line in trace}) if _alive(pid)]
    actors = ray._private.state.actors().values()
    ours = {"Slot", "Mailbox", "Board", "RayTrainWorker", "TrainController", "PlacementGroupCleaner"}
    found += [str(one["ActorClassName"]) for one in actors if one["State"] == "ALIVE" and one["ActorClassName"] in ours]
    free = ray.available_resources().get("CPU", 0.0)
    return found + ([] if free == cpus else [f"{cpus - free} CPUs still reserved"])


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def drive(directory, action, trial, fraction):
    """Be a driver that is interrupted or killed."""

    def act(event):
        if (event["kind"], event["trial"], event.get("fraction")) == ("result", trial, fraction):
            os.kill(os.getpid(), getattr(signal, action))

    given = json.loads((Path(directory) / "rates.json").read_text())
    rates, changes = (given, {}) if isinstance(given, list) else (given["rates"], given["changes"])
    resume = (Path(directory) / "store").exists()
    outcome = run_sweep(make_recipe(directory, rates, **changes), options(directory, Notes(act), resume))
    sys.stdout.write(json.dumps({"interrupted": outcome.interrupted, "complete": outcome.complete}))


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
