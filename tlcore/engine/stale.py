"""What DeepSpeed keeps of an engine that was destroyed, let go of.

Owns one known leak. Under ZeRO-3 the parameter coordinator remembers which parameters each module may release in an
`lru_cache` of the class, without a bound, whose keys hold the coordinator and the modules: every engine that a process ever
had stays there, with what its parameters hold (deepspeed/runtime/zero/partitioned_param_coordinator.py). Called by
`sharded.py`.
"""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

_CACHED = "_PartitionedParameterCoordinator__params_to_release"


def forget_engines() -> None:
    """Empty the cache; an engine that still lives fills it again with its next step. Does nothing where there is none."""
    function: Any = getattr(PartitionedParameterCoordinator, _CACHED, None)
    # its decorator keeps what it wraps in a closure, and says so nowhere else
    inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    for each in (function, *inside):
        if hasattr(each, "cache_clear"):
            each.cache_clear()
