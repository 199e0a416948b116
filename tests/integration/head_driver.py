"""A driver with a Ray of its own: `head_driver.py DIRECTORY WHAT` runs or resumes the sweep in DIRECTORY.

When the fourth trial has started it writes down what its scheduler knows of every rung, and kills WHAT: `head` is Ray's own
processes of this node, `everything` those, the workers and itself, `nothing` leaves all alive. Each life leaves its rungs in
`rungs-<life>.json`, from the second on those of its first start, which are what it made of the journal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
from ray_fixtures import CPUS, HERE

sys.path.insert(0, str(HERE.parent / "unit"))
from scheduler_bench import state_of
from sweep_bench import Notes, make_recipe, options

from jobs.bench.small_ray import start_ray
from tlcore.sweep import driver, run_sweep

RATES = [5e-4, 6e-4, 1e-5, 7e-4, 8e-4]
LAST = "t003"


def kill(what):
    """Without a moment for anybody to say or write anything."""
    below = psutil.Process().children(recursive=True)
    chosen = [one for one in below if what == "everything" or one.name() in ("gcs_server", "raylet")]
    assert {"gcs_server", "raylet"} <= {one.name() for one in chosen}
    for one in chosen:
        one.kill()
    if what == "everything":
        os.kill(os.getpid(), signal.SIGKILL)


def main(directory, what):
    life = len(list(directory.glob("rungs-*.json")))
    seats = []
    make = driver.make_seats

    def noted(recipe, conductor):
        seats.append(make(recipe, conductor))
        return seats[0]

    def act(event):
        if event["kind"] == "started" and event["trial"] == LAST and not (directory / f"rungs-{life}.json").exists():
            (directory / f"rungs-{life}.json").write_text(json.dumps(state_of(seats[0])["rungs"]))
            if what != "nothing":
                kill(what)

    driver.make_seats = noted
    start_ray(CPUS, also=(HERE,))
    outcome = run_sweep(make_recipe(directory, RATES), options(directory, Notes(act), resume=life > 0))
    sys.stdout.write(json.dumps({"complete": outcome.complete}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
