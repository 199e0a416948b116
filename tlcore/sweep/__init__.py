"""Sweeps on Ray: `run_sweep` and `run_train` run a recipe's trials in warm worker groups and say what came of them.

Read in this order: `runner.py` (the order of things), `driver.py` (one driver with Tune), `search.py` (which trial),
`slot.py` (a trial to Tune), `group.py` and `worker.py` (its ranks), `mailbox.py` (between the two).
"""

from tlcore.sweep.display import Display
from tlcore.sweep.finals import Finals, finish_sweep
from tlcore.sweep.outcome import SweepOutcome
from tlcore.sweep.runner import SweepOptions, log_directory, run_sweep, run_train

__all__ = ["Display", "Finals", "SweepOptions", "SweepOutcome", "finish_sweep", "log_directory", "run_sweep", "run_train"]
