"""A driver in its own process that kills itself right after a journal entry: `pair_driver.py DIRECTORY PAIR KIND COUNT`."""

from __future__ import annotations

import os
import signal
import sys

from sweep_bench import Notes
from test_sweep_pairs import LONG, SHORT, make_recipe, options

from tlcore.sweep import run_sweep


def drive(directory, pair, kind, count):
    """Run the pair's sweep and die at the `count`th entry of a kind."""
    notes = Notes(lambda event: len(notes.of(kind)) == count and os.kill(os.getpid(), signal.SIGKILL))
    run_sweep(make_recipe(directory, *(SHORT | LONG)[pair]), options(directory, notes))


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
