"""Sweeps on Ray: `run_sweep` and `run_train` run a recipe's trials in warm worker groups and say what came of them.

Read in this order: `runner.py` (the order of things), `driver.py` (one driver with Tune), `search/` (which trial is next),
`schedule/` (which goes on), `slots/` (a trial to Tune, and its ranks), `cluster/` (what fits where), `examination.py` (the best one
on the test data).

Names are imported when first used. Every process that Ray starts for a sweep imports this package on its way to the one module
it needs; with Tune and Train behind it, the board and each mailbox would take seconds and hundreds of MB to hold a dictionary.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlcore.sweep.baselines import baseline_recipe, was_begun
    from tlcore.sweep.display import Display
    from tlcore.sweep.finals import Finals, finish_sweep
    from tlcore.sweep.outcome import SweepOutcome
    from tlcore.sweep.runner import SweepOptions, log_directory, run_sweep, run_train

__all__ = [
    "Display",
    "Finals",
    "SweepOptions",
    "SweepOutcome",
    "baseline_recipe",
    "finish_sweep",
    "log_directory",
    "run_sweep",
    "run_train",
    "was_begun",
]

_PLACES = {
    "Display": "display",
    "Finals": "finals",
    "SweepOptions": "runner",
    "SweepOutcome": "outcome",
    "baseline_recipe": "baselines",
    "finish_sweep": "finals",
    "log_directory": "runner",
    "run_sweep": "runner",
    "run_train": "runner",
    "was_begun": "baselines",
}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{place}"), name)
